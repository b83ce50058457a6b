//! Where a target runs, in the words of Kubernetes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The most labels that are kept of one target, by name; a pod has a handful.
pub const LABELS_MAX: usize = 64;

/// The pod that a target is, for joins with whatever else speaks of it: Prometheus and Loki call these `namespace`, `pod`,
/// `uid` and `node`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The pod's namespace.
    pub namespace: Box<str>,
    /// The pod's name.
    pub pod: Box<str>,
    /// The pod's UID: another one if a pod of the same name is created again. Empty if nobody said.
    pub uid: Box<str>,
    /// The node it runs on; `None` if nobody said.
    pub node: Option<Box<str>>,
    /// By name, [`LABELS_MAX`] at most.
    pub labels: BTreeMap<Box<str>, Box<str>>,
}
