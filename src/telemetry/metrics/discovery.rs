//! What is counted of the sources of discovery.

use super::page::Page;
use crate::telemetry::names::{self, Definition};

/// One source, as its owner has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoverySource {
    /// As configured.
    pub name: String,
    /// In its last good view.
    pub targets: usize,
    /// Those of them that are not in the fleet.
    pub left_out: usize,
    /// Whether the view may be out of date, or is missing.
    pub failing: bool,
    /// Views that were taken up.
    pub answers: u64,
    /// Answers that were none.
    pub failures: u64,
}

pub(super) fn write(page: &mut Page, sources: &[DiscoverySource]) {
    let mut gauge = |definition: &Definition, value: fn(&DiscoverySource) -> usize| {
        let labels: Vec<_> = sources.iter().map(|source| [&*source.name]).collect();
        page.family(definition, labels.iter().zip(sources).map(|(labels, source)| (&labels[..], value(source))));
    };
    gauge(&names::DISCOVERY_TARGETS, |source| source.targets);
    gauge(&names::DISCOVERY_LEFT_OUT, |source| source.left_out);
    gauge(&names::DISCOVERY_FAILING, |source| usize::from(source.failing));
    let of = |source: &'_ DiscoverySource| {
        [("taken", source.answers), ("failed", source.failures)]
            .map(|(result, count)| (source.name.clone(), result, count))
    };
    let counts: Vec<_> = sources.iter().flat_map(of).collect();
    let labels: Vec<_> = counts.iter().map(|(name, result, _)| [&**name, *result]).collect();
    let series = labels.iter().zip(&counts).map(|(labels, (.., count))| (&labels[..], *count));
    page.family(&names::DISCOVERY_ANSWERS, series);
}
