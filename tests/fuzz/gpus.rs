//! Pages of GPU exporters.

use snapgate::fleet::GpuPage;

use crate::attack::Parser;

pub(crate) const PARSER: Parser = Parser {
    name: "gpus",
    fixtures: &[],
    words: &[
        "\n",
        "# TYPE DCGM_FI_DEV_GPU_UTIL gauge\n",
        "DCGM_FI_DEV_GPU_UTIL",
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_FB_FREE",
        "DCGM_FI_DEV_FB_RESERVED",
        "{gpu=\"0\",UUID=\"GPU-0\"}",
        "{gpu=\"1\",UUID=\"GPU-1\",pod=\"p\",namespace=\"n\",container=\"c\"}",
        "UUID=\"",
        "GPU_I_ID=\"1\"",
        "exported_pod=\"p\"",
        "pod_name=\"p\"",
        "\\\"",
        " 9223372036854775794",
        " NaN",
        " 0.5",
        " 100",
        "}",
        "{",
        ",",
    ],
    bytes_max: 16 << 10,
    read,
};

/// Whatever comes: GPUs with names, shares that can be true, and no more garbage than lines.
fn read(bytes: &[u8]) -> String {
    let Some(page) = GpuPage::read(bytes) else { return String::new() };
    let lines = memchr::memchr_iter(b'\n', bytes).count() + 1;
    assert!(page.garbage as usize <= lines && page.gpus.len() <= lines, "{page:?}");
    for gpu in &page.gpus {
        let name = gpu.name();
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?} is no name");
        assert!(gpu.utilization().is_none_or(|share| (0.0..=1.0).contains(&share)), "{gpu:?}");
        assert!(gpu.memory().is_none_or(|(used, all)| (0.0..=all).contains(&used) && all.is_finite()), "{gpu:?}");
    }
    let told =
        |gpu: &snapgate::fleet::Gpu| (gpu.utilization().is_some(), gpu.memory().is_some(), gpu.name().contains('/'));
    format!("{:?}{:?}", page.garbage.checked_ilog2(), page.gpus.iter().take(4).map(told).collect::<Vec<_>>())
}
