//! `name=value, name=value`: what people write, and what vLLM sends.

use super::Rules;
use super::collect::{Collector, Group, NUMBERS};
use crate::snapshot::load_report::Flaw;

/// Reads a list; empty entries are none.
pub(super) fn read(list: &str, into: &mut Collector) -> Result<(), Flaw> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).try_for_each(|entry| read_entry(entry, into))
}

fn read_entry(entry: &str, into: &mut Collector) -> Result<(), Flaw> {
    let (name, value) = entry.split_once(['=', ':']).unwrap_or((entry, ""));
    let name = if into.rules() == Rules::Lenient { name.trim_end() } else { name };
    let value = value.trim();
    if name.is_empty() || value.is_empty() {
        return into.drop_entry(Flaw::NoValue);
    }
    let Ok(value) = value.parse::<f64>() else { return into.drop_entry(Flaw::NotANumber) };
    if let Some(name) = NUMBERS.into_iter().find(|known| *known == name) {
        return into.number(name, value);
    }
    match name.split_once('.') {
        Some(("named_metrics", key)) => into.metric(Group::NamedMetrics, key, value),
        Some(("utilization", key)) => into.metric(Group::Utilization, key, value),
        // In this format requests have no cost.
        _ => into.drop_entry(Flaw::UnknownName),
    }
}
