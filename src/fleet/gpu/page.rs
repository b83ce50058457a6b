//! What a page of NVIDIA's DCGM exporter says of each GPU of its node.

use std::borrow::Cow;
use std::collections::HashMap;

use super::labels::labels;
use crate::fleet::prometheus;

/// GPUs, and instances of divided ones, on one page. A node has sixteen at most, each divided into seven; shared ones are
/// there once for each pod.
const GPUS_MAX: usize = 1024;

/// The longest label that is taken, in bytes: names of pods have 253 at most.
const LABEL_BYTES_MAX: usize = 253;

/// What of a GPU is read. Copying into and out of its memory (`DCGM_FI_DEV_MEM_COPY_UTIL`) is not among it: that is how busy
/// the memory is, not how full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// Share of time in which anything ran, in per cent. Instances of a divided GPU have none.
    Busy,
    /// Share of time in which the engine for graphics and computing was at work, 0..1. Instances have it, too.
    Active,
    /// Memory in MiB.
    Used,
    Free,
    /// What the driver keeps for itself; not every exporter tells.
    Reserved,
}

/// Their names, and the largest value that can be true.
const FIELDS: [(Field, &[u8], f64); Field::COUNT] = [
    (Field::Busy, b"DCGM_FI_DEV_GPU_UTIL", 100.0),
    (Field::Active, b"DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1.0),
    (Field::Used, b"DCGM_FI_DEV_FB_USED", MEMORY_MIB_MAX),
    (Field::Free, b"DCGM_FI_DEV_FB_FREE", MEMORY_MIB_MAX),
    (Field::Reserved, b"DCGM_FI_DEV_FB_RESERVED", MEMORY_MIB_MAX),
];

/// A hundred TiB.
const MEMORY_MIB_MAX: f64 = 100.0 * 1024.0 * 1024.0;

/// From here on a value is none: DCGM says so that a GPU cannot tell something (2³¹ - 16 and up in 32 bits, 2⁴⁷ and up as a
/// float, 2⁶³ - 16 and up in 64 bits). Newer exporters leave such lines out.
const BLANK: f64 = 2_147_483_632.0;

impl Field {
    const COUNT: usize = 5;
}

/// Who uses a GPU, as the exporter knows it from Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Holder {
    pub(super) pod: Box<str>,
    pub(super) namespace: Box<str>,
    pub(super) container: Box<str>,
}

/// A GPU, or an instance of a divided one, as used by one container or by nobody that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Identity {
    /// Its place on the node.
    pub(super) index: Option<u32>,
    pub(super) uuid: Box<str>,
    /// Which of the parts of a divided GPU.
    pub(super) instance: Option<u32>,
    pub(super) holder: Option<Holder>,
}

/// What is said of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpu {
    pub(super) identity: Identity,
    values: [Option<f64>; Field::COUNT],
}

impl Gpu {
    /// By what it is called in samples.
    pub fn name(&self) -> Box<str> {
        match self.identity.instance {
            Some(instance) => format!("{}/{instance}", self.identity.uuid).into(),
            None => self.identity.uuid.clone(),
        }
    }

    /// Share of time in which it was busy, 0..1.
    pub fn utilization(&self) -> Option<f64> {
        self.value(Field::Busy).map(|percent| percent / 100.0).or_else(|| self.value(Field::Active))
    }

    /// Memory in use, and all there is.
    pub fn memory(&self) -> Option<(f64, f64)> {
        let (used, free) = self.value(Field::Used).zip(self.value(Field::Free))?;
        let all = used + free + self.value(Field::Reserved).unwrap_or(0.0);
        (all > 0.0).then_some((used, all))
    }

    fn value(&self, field: Field) -> Option<f64> {
        self.values[field as usize]
    }
}

/// One page.
#[derive(Debug, PartialEq)]
pub struct GpuPage {
    /// In the order of their places on the node.
    pub gpus: Vec<Gpu>,
    /// Lines that could not be read or believed.
    pub garbage: u32,
}

impl GpuPage {
    /// `None` if nothing on it is of a GPU.
    pub fn read(text: &[u8]) -> Option<Self> {
        let mut all: HashMap<Identity, [Option<f64>; Field::COUNT]> = HashMap::new();
        let mut refused = 0;
        let garbage = prometheus::read(text, field_of, |line| {
            let place = line.key;
            if line.value.is_nan() || line.value >= BLANK {
                return;
            }
            let identity = identity(line.labels).filter(|_| (0.0..=FIELDS[place].2).contains(&line.value));
            let room = all.len() < GPUS_MAX;
            match identity.filter(|identity| room || all.contains_key(identity)) {
                Some(identity) => all.entry(identity).or_default()[place] = Some(line.value),
                None => refused += 1,
            }
        });
        let mut gpus: Vec<_> = all.into_iter().map(|(identity, values)| Gpu { identity, values }).collect();
        gpus.sort_unstable_by(|a, b| a.identity.cmp(&b.identity));
        (!gpus.is_empty()).then_some(Self { gpus, garbage: garbage + refused })
    }
}

/// The place of a field by its name.
fn field_of(name: &[u8]) -> Option<usize> {
    name.starts_with(b"DCGM_FI_").then(|| FIELDS.iter().position(|(_, known, _)| *known == name)).flatten()
}

/// `None` without a UUID that can be kept.
fn identity(text: &[u8]) -> Option<Identity> {
    let mut identity = Identity::default();
    // Where somebody else has read the exporter before, what it said itself has `exported_` before it, and what has not is
    // the exporter's own pod. Exporters of old have names of their own.
    let mut holders = [Holder::default(), Holder::default(), Holder::default()];
    for (name, value) in labels(text) {
        let (holder, name) = match name.strip_prefix(b"exported_") {
            Some(name) => (0, name),
            None if name.starts_with(b"pod_") || name == b"container_name" => (2, name),
            None => (1, name),
        };
        match name {
            b"UUID" => identity.uuid = kept(value)?,
            b"gpu" => identity.index = value.parse().ok(),
            b"GPU_I_ID" => identity.instance = value.parse().ok(),
            b"pod" | b"pod_name" => holders[holder].pod = kept(value)?,
            b"namespace" | b"pod_namespace" => holders[holder].namespace = kept(value)?,
            b"container" | b"container_name" => holders[holder].container = kept(value)?,
            _ => {}
        }
    }
    identity.holder = holders.into_iter().find(|holder| !holder.pod.is_empty());
    (!identity.uuid.is_empty()).then_some(identity)
}

/// A label that is no longer than it may be and has nothing in it that no name has.
fn kept(value: Cow<'_, str>) -> Option<Box<str>> {
    let sound = value.len() <= LABEL_BYTES_MAX && value.bytes().all(|byte| byte.is_ascii_graphic());
    sound.then(|| value.into_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> GpuPage {
        GpuPage::read(text.as_bytes()).unwrap()
    }

    fn only(text: &str) -> Gpu {
        let mut page = read(text);
        assert_eq!((page.gpus.len(), page.garbage), (1, 0), "{page:?}");
        page.gpus.remove(0)
    }

    #[test]
    fn the_table_is_in_the_order_of_the_fields() {
        for (place, (field, name, _)) in FIELDS.iter().enumerate() {
            assert_eq!((*field as usize, field_of(name)), (place, Some(place)));
        }
    }

    #[test]
    fn a_gpu_is_as_busy_as_it_says_in_per_cent_and_as_full_as_its_memory_is_used() {
        let gpu = only(
            "# TYPE DCGM_FI_DEV_GPU_UTIL gauge\n\
             DCGM_FI_DEV_GPU_UTIL{gpu=\"1\",UUID=\"GPU-a\",device=\"nvidia1\",modelName=\"NVIDIA H100\"} 63\n\
             DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu=\"1\",UUID=\"GPU-a\"} 0.5\n\
             DCGM_FI_DEV_MEM_COPY_UTIL{gpu=\"1\",UUID=\"GPU-a\"} 7\n\
             DCGM_FI_DEV_FB_USED{gpu=\"1\",UUID=\"GPU-a\"} 300\n\
             DCGM_FI_DEV_FB_FREE{gpu=\"1\",UUID=\"GPU-a\"} 90\n\
             DCGM_FI_DEV_FB_RESERVED{gpu=\"1\",UUID=\"GPU-a\"} 10\n",
        );
        assert_eq!((gpu.utilization(), gpu.memory()), (Some(0.63), Some((300.0, 400.0))));
        let identity = Identity { index: Some(1), uuid: "GPU-a".into(), instance: None, holder: None };
        assert_eq!((&gpu.identity, &*gpu.name()), (&identity, "GPU-a"));
    }

    #[test]
    fn what_an_exporter_does_not_tell_is_not_guessed() {
        let gpu = only("DCGM_FI_DEV_FB_USED{UUID=\"GPU-a\"} 300\nDCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID=\"GPU-a\"} 0.25\n");
        assert_eq!((gpu.utilization(), gpu.memory()), (Some(0.25), None), "how much is free is not known");
        let gpu = only("DCGM_FI_DEV_FB_USED{UUID=\"GPU-a\"} 3\nDCGM_FI_DEV_FB_FREE{UUID=\"GPU-a\"} 1\n");
        assert_eq!((gpu.utilization(), gpu.memory()), (None, Some((3.0, 4.0))), "nothing is reserved");
        let gpu = only("DCGM_FI_DEV_FB_USED{UUID=\"GPU-a\"} 0\nDCGM_FI_DEV_FB_FREE{UUID=\"GPU-a\"} 0\n");
        assert_eq!(gpu.memory(), None, "a GPU without memory");
    }

    #[test]
    fn instances_of_a_divided_gpu_are_told_apart() {
        let page = read(
            "DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu=\"0\",UUID=\"GPU-a\",GPU_I_PROFILE=\"1g.10gb\",GPU_I_ID=\"9\"} 0.5\n\
             DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu=\"0\",UUID=\"GPU-a\",GPU_I_PROFILE=\"2g.20gb\",GPU_I_ID=\"3\"} 0.25\n\
             DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\",GPU_I_PROFILE=\"1g.10gb\",GPU_I_ID=\"9\"} 10\n",
        );
        let shown: Vec<_> = page.gpus.iter().map(|gpu| (gpu.name().into_string(), gpu.utilization())).collect();
        assert_eq!(shown, [("GPU-a/3".to_owned(), Some(0.25)), ("GPU-a/9".to_owned(), Some(0.5))]);
    }

    #[test]
    fn the_pod_is_found_under_each_of_its_names() {
        let holder =
            |labels: &str| only(&format!("DCGM_FI_DEV_GPU_UTIL{{UUID=\"GPU-a\",{labels}}} 1\n")).identity.holder;
        let of = |pod: &str, namespace: &str, container: &str| {
            Some(Holder { pod: pod.into(), namespace: namespace.into(), container: container.into() })
        };
        assert_eq!(holder("pod=\"v-0\",namespace=\"llm\",container=\"vllm\""), of("v-0", "llm", "vllm"));
        assert_eq!(
            holder("pod=\"dcgm-x\",namespace=\"gpu\",exported_pod=\"v-0\",exported_namespace=\"llm\""),
            of("v-0", "llm", "")
        );
        assert_eq!(holder("pod_name=\"v-0\",pod_namespace=\"llm\",container_name=\"vllm\""), of("v-0", "llm", "vllm"));
        assert_eq!(holder("pod=\"\",namespace=\"\",container=\"\""), None, "the GPU is idle");
    }

    #[test]
    fn values_that_cannot_be_true_are_not_taken() {
        for (value, garbage) in [
            ("-1", 1),
            ("101", 1),
            ("+Inf", 0),
            ("-Inf", 1),
            ("NaN", 0),
            ("2147483632", 0),
            ("140737488355328", 0),
            ("9223372036854775792", 0),
            ("many", 1),
        ] {
            let text =
                format!("DCGM_FI_DEV_FB_USED{{UUID=\"GPU-a\"}} 1\nDCGM_FI_DEV_GPU_UTIL{{UUID=\"GPU-a\"}} {value}\n");
            let page = read(&text);
            assert_eq!((page.gpus[0].utilization(), page.garbage), (None, garbage), "{value}");
        }
    }

    #[test]
    fn a_line_that_names_no_gpu_is_garbage_and_a_page_without_gpus_is_none() {
        let long = "x".repeat(LABEL_BYTES_MAX + 1);
        let text = format!(
            "DCGM_FI_DEV_GPU_UTIL 5\nDCGM_FI_DEV_GPU_UTIL{{gpu=\"0\"}} 5\nDCGM_FI_DEV_GPU_UTIL{{UUID=\"{long}\"}} 5\n\
             DCGM_FI_DEV_GPU_UTIL{{UUID=\"a\\n\"}} 5\nDCGM_FI_DEV_GPU_UTIL{{UUID=\"GPU-a\"}} 5\n"
        );
        assert_eq!(read(&text).garbage, 4);
        for text in ["", "vllm:num_requests_running 1\n", "DCGM_FI_DEV_GPU_TEMP{UUID=\"GPU-a\"} 50\n", "<html>\n"] {
            assert_eq!(GpuPage::read(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_page_with_too_many_gpus_costs_no_more() {
        let text: String =
            (0..GPUS_MAX + 10).map(|n| format!("DCGM_FI_DEV_GPU_UTIL{{UUID=\"GPU-{n}\"}} 1\n")).collect();
        let page = read(&text);
        assert_eq!((page.gpus.len(), page.garbage), (GPUS_MAX, 10));
    }

    proptest! {
        #[test]
        fn no_page_panics(lines in prop::collection::vec("DCGM_FI_DEV_(GPU_UTIL|FB_USED)(\\{[a-zA-Z_=\",\\\\0-9-]{0,30}\\})? [0-9a-z.+-]{0,6}", 0..20)) {
            if let Some(page) = GpuPage::read((lines.join("\n") + "\n").as_bytes()) {
                for gpu in &page.gpus {
                    prop_assert!(gpu.utilization().is_none_or(|share| (0.0..=1.0).contains(&share)));
                }
            }
        }
    }
}
