//! The page of the DCGM exporter of a simulated node: a pod's GPUs, as busy and as full as its engine makes them.

use std::fmt::Write;

use super::engine::Load;
use crate::demo::draws::hash_of;

/// Where it is.
pub(super) const PATH: &str = "/dcgm/metrics";

/// Memory of a GPU in MiB: of an H100 with 80 GB, and what its driver keeps.
const MEMORY_MIB: f64 = 81_559.0;
const RESERVED_MIB: f64 = 551.0;

/// The share of it that an engine takes at its start, as vLLM does, and what each running request takes beside that.
const TAKEN: f64 = 0.92;
const REQUEST_MIB: f64 = 24.0;

/// How busy one running request keeps a GPU, 0..1; each more adds less.
const BUSY_ALONE: f64 = 0.45;

/// Whose GPUs they are, and how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    /// The pod, which is also the node's name.
    pub(super) pod: &'a str,
    pub(super) gpus: u32,
    /// Requests that run at once.
    pub(super) capacity: u32,
}

impl Node<'_> {
    pub(super) fn page(&self, load: Load) -> String {
        let running = load.running as f64;
        let busy = 1.0 - (1.0 - BUSY_ALONE).powf(running);
        let mine = MEMORY_MIB - RESERVED_MIB;
        let used = (MEMORY_MIB * TAKEN + running.min(f64::from(self.capacity)) * REQUEST_MIB).min(mine).round();
        let metrics = [
            ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", (busy * 100.0).round()),
            ("DCGM_FI_DEV_MEM_COPY_UTIL", "Memory utilization (in %).", (busy * 60.0).round()),
            ("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", mine - used),
            ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", used),
            ("DCGM_FI_DEV_FB_RESERVED", "Framebuffer memory reserved (in MiB).", RESERVED_MIB),
            ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "Ratio of time the graphics engine is active.", busy),
        ];
        let mut page = String::with_capacity(4096);
        for (name, help, value) in metrics {
            writeln!(page, "# HELP {name} {help}\n# TYPE {name} gauge").expect("writing to a string does not fail");
            for gpu in 0..self.gpus {
                let (uuid, pod) = (self.uuid(gpu), self.pod);
                writeln!(
                    page,
                    "{name}{{gpu=\"{gpu}\",UUID=\"{uuid}\",pci_bus_id=\"00000000:{:02X}:00.0\",device=\"nvidia{gpu}\",\
                     modelName=\"NVIDIA H100 80GB HBM3\",Hostname=\"{pod}\",container=\"vllm\",namespace=\"default\",\
                     pod=\"{pod}\"}} {value}",
                    gpu + 1
                )
                .expect("writing to a string does not fail");
            }
        }
        page
    }

    /// The same each time, as a GPU's is.
    fn uuid(&self, gpu: u32) -> String {
        let (high, low) = (hash_of(&(self.pod, gpu)), hash_of(&(gpu, self.pod)));
        let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
        format!("GPU-{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(page: &str, name: &str, gpu: u32) -> f64 {
        let begin = format!("{name}{{gpu=\"{gpu}\",");
        let line = page.lines().find(|line| line.starts_with(&begin)).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    #[test]
    fn gpus_are_the_busier_the_more_runs_and_nearly_full_whatever_does() {
        let node = Node { pod: "vllm-1", gpus: 2, capacity: 16 };
        let page = |running| node.page(Load { running, ..Load::default() });
        let busy = [0, 1, 4, 16].map(|running| value(&page(running), "DCGM_FI_DEV_GPU_UTIL", 1));
        assert!(busy[0] == 0.0 && busy.is_sorted_by(|a, b| a < b) && busy[3] <= 100.0, "{busy:?}");
        for running in [0, 16, 1_000] {
            let [used, free, reserved] =
                ["USED", "FREE", "RESERVED"].map(|name| value(&page(running), &format!("DCGM_FI_DEV_FB_{name}"), 0));
            assert_eq!(used + free + reserved, MEMORY_MIB);
            assert!(used / MEMORY_MIB > 0.9 && free >= 0.0, "{used} {free}");
        }
    }

    #[test]
    fn a_gpu_keeps_its_uuid_and_shares_it_with_no_other() {
        let of = |pod, gpu| Node { pod, gpus: 2, capacity: 1 }.uuid(gpu);
        assert_eq!((of("a", 0).len(), of("a", 0)), (40, of("a", 0)));
        assert!(of("a", 0) != of("a", 1) && of("a", 0) != of("b", 0));
    }
}
