//! What is counted of the exporters of GPUs. Which there are is configured.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::number::locked;
use super::page::Page;
use crate::telemetry::names;

/// Of all of them, by node.
#[derive(Debug, Default)]
pub(super) struct GpuExporters(Mutex<BTreeMap<Box<str>, OfExporter>>);

#[derive(Debug, Default)]
struct OfExporter {
    read: u64,
    failures: BTreeMap<&'static str, u64>,
}

impl GpuExporters {
    /// These are all there are; whose pages may fail for these reasons.
    pub(super) fn set<'a>(&self, nodes: impl Iterator<Item = &'a str>, reasons: &[&'static str]) {
        let new = || OfExporter { read: 0, failures: reasons.iter().map(|reason| (*reason, 0)).collect() };
        let mut all = locked(&self.0);
        let mut before = std::mem::take(&mut *all);
        *all = nodes.map(|node| before.remove_entry(node).unwrap_or_else(|| (node.into(), new()))).collect();
    }

    pub(super) fn read(&self, node: &str) {
        if let Some(exporter) = locked(&self.0).get_mut(node) {
            exporter.read += 1;
        }
    }

    pub(super) fn failed(&self, node: &str, reason: &'static str) {
        if let Some(exporter) = locked(&self.0).get_mut(node) {
            *exporter.failures.entry(reason).or_default() += 1;
        }
    }

    pub(super) fn write(&self, page: &mut Page) {
        let all = locked(&self.0);
        let read: Vec<_> = all.iter().map(|(node, exporter)| ([&**node], exporter.read)).collect();
        page.family(&names::GPU_EXPORTER_SCRAPES, read.iter().map(|(labels, count)| (&labels[..], *count)));
        let mut failures = Vec::new();
        for (node, exporter) in &*all {
            failures.extend(exporter.failures.iter().map(|(reason, count)| ([&**node, *reason], *count)));
        }
        page.family(&names::GPU_EXPORTER_FAILURES, failures.iter().map(|(labels, count)| (&labels[..], *count)));
    }
}
