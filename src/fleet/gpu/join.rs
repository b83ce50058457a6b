//! Whose GPUs are whose: what a page of an exporter says of the GPUs of one target.

use std::collections::BTreeSet;
use std::fmt;

use super::page::{Gpu, Holder};
use crate::snapshot::GpuUuids;

/// GPUs, and instances of divided ones, that one target may have: a whole node of sixteen, each divided into seven.
const GPUS_OF_TARGET_MAX: usize = 112;

/// Which GPUs are a target's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpusOf {
    /// Those that an exporter says a pod has.
    Pod(PodGpus),
    /// Those of a node: these, or all if none is named.
    Node {
        /// As the exporter's entry in the configuration names it.
        node: String,
        /// Each once.
        ids: Vec<GpuId>,
    },
}

/// A pod, as far as it has to be named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodGpus {
    /// Its name.
    pub pod: String,
    /// Where the name is not the only one of its kind.
    pub namespace: Option<String>,
    /// If others in the pod have GPUs, too.
    pub container: Option<String>,
    /// If exporters of other nodes are not to be believed.
    pub node: Option<String>,
}

/// A GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GpuId {
    /// By its place: the whole of it, however it is divided.
    Index(u32),
    /// One instance of a divided one: the GPU's place, and the instance's number.
    Instance(u32, u32),
    /// By its UUID: the whole of it, or `UUID/INSTANCE`.
    Uuid(String),
}

/// As in the configuration.
impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Instance(index, instance) => write!(f, "{index}:{instance}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

impl GpuId {
    fn is_of(&self, gpu: &Gpu) -> bool {
        let identity = &gpu.identity;
        match self {
            Self::Index(index) => identity.index == Some(*index),
            Self::Instance(index, instance) => (identity.index, identity.instance) == (Some(*index), Some(*instance)),
            Self::Uuid(uuid) => *identity.uuid == **uuid || *gpu.name() == **uuid,
        }
    }
}

/// In words.
impl fmt::Display for PodGpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, namespace, container, node } = self;
        write!(f, "pod {pod}")?;
        for (what, name) in [("in namespace", namespace), ("in container", container), ("on node", node)] {
            name.as_ref().map_or(Ok(()), |name| write!(f, " {what} {name}"))?;
        }
        Ok(())
    }
}

impl PodGpus {
    /// Whether a GPU's user is this one.
    pub(super) fn is(&self, holder: &Holder) -> bool {
        let named = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
        *holder.pod == *self.pod
            && named(&self.namespace, &holder.namespace)
            && named(&self.container, &holder.container)
    }
}

/// What a page says of a target's GPUs. A quantity that one of them does not tell is not known of the target.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::fleet) struct Found {
    /// The mean of them, 0..1.
    pub(in crate::fleet) utilization: Option<f64>,
    /// What all of them use of what all of them have, 0..1.
    pub(in crate::fleet) memory: Option<f64>,
    /// In their order on the node. `None` if it is not known which they are.
    pub(in crate::fleet) uuids: Option<GpuUuids>,
    /// What is in the way of knowing more.
    pub(in crate::fleet) problem: Option<Box<str>>,
}

impl Found {
    /// Of the GPUs that the page says a pod has; `None` if it has none.
    pub(super) fn of_pod(pod: &PodGpus, gpus: &[&Gpu]) -> Option<Self> {
        let is_its = |gpu: &&Gpu| gpu.identity.holder.as_ref().is_some_and(|holder| pod.is(holder));
        let its: Vec<_> = gpus.iter().copied().filter(is_its).collect();
        let namespaces: BTreeSet<_> =
            its.iter().filter_map(|gpu| Some(&*gpu.identity.holder.as_ref()?.namespace)).collect();
        if namespaces.len() > 1 {
            let namespaces = namespaces.into_iter().collect::<Vec<_>>().join(" and ");
            let problem = format!("there are pods {} in {namespaces}: name the `namespace`", pod.pod);
            return Some(Self { problem: Some(problem.into()), ..Self::default() });
        }
        (!its.is_empty()).then(|| Self::of(its))
    }

    /// Of GPUs of the node of the page: these, or all.
    pub(super) fn of_node(node: &str, ids: &[GpuId], gpus: &[Gpu]) -> Self {
        if ids.is_empty() {
            return Self::of(gpus.iter().collect());
        }
        let missing: Vec<_> =
            ids.iter().filter(|id| !gpus.iter().any(|gpu| id.is_of(gpu))).map(GpuId::to_string).collect();
        if !missing.is_empty() {
            let problem = format!("{node} has no GPU {}", missing.join(", "));
            return Self { problem: Some(problem.into()), ..Self::default() };
        }
        Self::of(gpus.iter().filter(|gpu| ids.iter().any(|id| id.is_of(gpu))).collect())
    }

    fn of(mut gpus: Vec<&Gpu>) -> Self {
        let key = |gpu: &Gpu| (gpu.identity.index, gpu.identity.uuid.clone(), gpu.identity.instance);
        gpus.sort_by_key(|gpu| key(gpu));
        // One that several containers share is there for each of them.
        gpus.dedup_by_key(|gpu| key(gpu));
        // Of one that is there as a whole, its instances are parts.
        let whole: BTreeSet<_> =
            gpus.iter().filter(|gpu| gpu.identity.instance.is_none()).map(|gpu| gpu.identity.uuid.clone()).collect();
        gpus.retain(|gpu| gpu.identity.instance.is_none() || !whole.contains(&gpu.identity.uuid));
        if gpus.len() > GPUS_OF_TARGET_MAX {
            let problem = format!("{} GPUs are more than the {GPUS_OF_TARGET_MAX} that a target may have", gpus.len());
            return Self { problem: Some(problem.into()), ..Self::default() };
        }
        let utilizations: Option<Vec<_>> = gpus.iter().map(|gpu| gpu.utilization()).collect();
        let memories: Option<Vec<_>> = gpus.iter().map(|gpu| gpu.memory()).collect();
        let silent = gpus.iter().find(|gpu| gpu.utilization().is_none() || gpu.memory().is_none()).map(|gpu| {
            let of = if gpu.utilization().is_none() { "utilization" } else { "memory" };
            format!("the exporter says nothing of the {of} of {}", gpu.name()).into()
        });
        let mean = |shares: Vec<f64>| shares.iter().sum::<f64>() / shares.len() as f64;
        let filled = |memories: Vec<(f64, f64)>| {
            let (used, all) = memories.iter().fold((0.0, 0.0), |sum, memory| (sum.0 + memory.0, sum.1 + memory.1));
            used / all
        };
        Self {
            utilization: utilizations.map(mean),
            memory: memories.map(filled),
            uuids: Some(gpus.iter().map(|gpu| gpu.name()).collect()),
            problem: silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::GpuPage;
    use super::*;

    /// A GPU's lines: its place and UUID, more labels, and how busy and full it is.
    fn lines(index: u32, more: &str, busy: u32, used: u32) -> String {
        let labels = format!("{{gpu=\"{index}\",UUID=\"GPU-{index}\"{more}}}");
        format!(
            "DCGM_FI_DEV_GPU_UTIL{labels} {busy}\nDCGM_FI_DEV_FB_USED{labels} {used}\n\
             DCGM_FI_DEV_FB_FREE{labels} {}\n",
            100 - used
        )
    }

    fn held(index: u32, namespace: &str, container: &str, busy: u32, used: u32) -> String {
        lines(index, &format!(",pod=\"v-0\",namespace=\"{namespace}\",container=\"{container}\""), busy, used)
    }

    fn page(lines: &[String]) -> Vec<Gpu> {
        GpuPage::read(lines.concat().as_bytes()).unwrap().gpus
    }

    fn uuids(found: &Found) -> Vec<&str> {
        found.uuids.iter().flat_map(|uuids| uuids.iter()).map(|uuid| &**uuid).collect()
    }

    fn of_pod(pod: &PodGpus, gpus: &[Gpu]) -> Option<Found> {
        Found::of_pod(pod, &gpus.iter().collect::<Vec<_>>())
    }

    #[test]
    fn several_gpus_are_as_busy_as_their_mean_and_as_full_as_all_of_them_together() {
        let uneven = "DCGM_FI_DEV_GPU_UTIL{gpu=\"2\",UUID=\"GPU-2\"} 0\nDCGM_FI_DEV_FB_USED{gpu=\"2\",UUID=\"GPU-2\"} 0\n\
                      DCGM_FI_DEV_FB_FREE{gpu=\"2\",UUID=\"GPU-2\"} 300\n";
        let gpus = page(&[lines(1, "", 30, 50), lines(0, "", 60, 90), uneven.to_owned()]);
        let found = Found::of_node("n", &[], &gpus);
        assert_eq!((found.utilization, found.memory, &found.problem), (Some(0.3), Some(140.0 / 500.0), &None));
        assert_eq!(uuids(&found), ["GPU-0", "GPU-1", "GPU-2"], "in their order on the node");
        let found = Found::of_node("n", &[GpuId::Index(2), GpuId::Uuid("GPU-0".into())], &gpus);
        assert_eq!((found.utilization, found.memory), (Some(0.3), Some(90.0 / 400.0)));
        assert_eq!(uuids(&found), ["GPU-0", "GPU-2"]);
    }

    #[test]
    fn one_that_is_missing_or_says_too_little_is_a_problem_and_leaves_the_quantity_unknown() {
        let gpus = page(&[lines(0, "", 60, 90), "DCGM_FI_DEV_GPU_UTIL{gpu=\"1\",UUID=\"GPU-1\"} 20\n".to_owned()]);
        let found = Found::of_node("n", &[GpuId::Index(0), GpuId::Index(7), GpuId::Instance(0, 3)], &gpus);
        let expected = Found { problem: Some("n has no GPU 7, 0:3".into()), ..Found::default() };
        assert_eq!(found, expected);
        let found = Found::of_node("n", &[], &gpus);
        assert_eq!((found.utilization, found.memory), (Some(0.4), None));
        assert_eq!(found.problem.as_deref(), Some("the exporter says nothing of the memory of GPU-1"));
    }

    #[test]
    fn a_pod_has_what_its_labels_say_and_a_shared_gpu_counts_once() {
        let gpus = page(&[
            held(0, "llm", "vllm", 60, 90),
            held(1, "llm", "vllm", 20, 10),
            held(1, "llm", "sidecar", 20, 10),
            held(2, "llm", "sidecar", 0, 0),
            lines(3, ",pod=\"other\",namespace=\"llm\"", 100, 100),
            lines(4, "", 100, 100),
        ]);
        let pod = PodGpus { pod: "v-0".into(), ..PodGpus::default() };
        assert_eq!(uuids(&of_pod(&pod, &gpus).unwrap()), ["GPU-0", "GPU-1", "GPU-2"]);
        let engine = PodGpus { container: Some("vllm".into()), namespace: Some("llm".into()), ..pod.clone() };
        let found = of_pod(&engine, &gpus).unwrap();
        assert_eq!((uuids(&found), found.utilization), (vec!["GPU-0", "GPU-1"], Some(0.4)));
        let elsewhere = PodGpus { namespace: Some("prod".into()), ..pod };
        assert_eq!(of_pod(&elsewhere, &gpus), None);
    }

    #[test]
    fn two_pods_of_one_name_are_not_taken_for_one() {
        let gpus = page(&[held(0, "llm", "vllm", 60, 90), held(1, "test", "vllm", 20, 10)]);
        let pod = PodGpus { pod: "v-0".into(), ..PodGpus::default() };
        let found = of_pod(&pod, &gpus).unwrap();
        let words = "there are pods v-0 in llm and test: name the `namespace`";
        assert_eq!(found, Found { problem: Some(words.into()), ..Found::default() });
        let named = PodGpus { namespace: Some("test".into()), ..pod };
        assert_eq!(uuids(&of_pod(&named, &gpus).unwrap()), ["GPU-1"]);
    }

    #[test]
    fn a_divided_gpu_is_its_instances_unless_it_is_there_as_a_whole() {
        let instance = |number: u32, busy: u32| lines(0, &format!(",GPU_I_ID=\"{number}\""), busy, 50);
        let gpus = page(&[instance(1, 10), instance(2, 30), lines(1, "", 100, 100)]);
        let found = Found::of_node("n", &[GpuId::Index(0)], &gpus);
        assert_eq!((uuids(&found), found.utilization), (vec!["GPU-0/1", "GPU-0/2"], Some(0.2)));
        for id in [GpuId::Instance(0, 2), GpuId::Uuid("GPU-0/2".into())] {
            let found = Found::of_node("n", std::slice::from_ref(&id), &gpus);
            assert_eq!((uuids(&found), found.utilization), (vec!["GPU-0/2"], Some(0.3)), "{id}");
        }
        let both = page(&[instance(1, 10), lines(0, "", 70, 50)]);
        assert_eq!(Found::of_node("n", &[], &both).utilization, Some(0.7));
    }

    #[test]
    fn nobody_has_more_gpus_than_a_node_can_have() {
        let all: Vec<_> = (0..113).map(|index| lines(index, "", 1, 1)).collect();
        let found = Found::of_node("n", &[], &page(&all));
        assert!(found.uuids.is_none() && found.problem.unwrap().starts_with("113 GPUs are more than the 112"));
    }
}
