//! How it stands with what tells of GPUs: for operators, not for choices.

use super::moment::Moment;

/// What reads the GPUs' pages knows of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuHealth {
    /// As configured.
    pub exporters: Vec<GpuExporter>,
    /// What is in the way of knowing the GPUs of a target, by its slot, ascending. A target that is not here has no trouble.
    pub problems: Vec<(u32, Box<str>)>,
}

impl GpuHealth {
    /// What is in the way of knowing the GPUs of the target in this slot.
    pub fn problem(&self, slot: u32) -> Option<&str> {
        let place = self.problems.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
        Some(&self.problems[place].1)
    }
}

/// One DCGM exporter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuExporter {
    /// The node whose GPUs it tells of.
    pub node: Box<str>,
    /// Its page.
    pub url: Box<str>,
    /// When the last good page was asked for; `None` before the first.
    pub read: Option<Moment>,
    /// GPUs on that page; an instance of a divided one counts as one.
    pub gpus: u32,
    /// Lines of it that could not be read or believed.
    pub garbage_lines: u32,
    /// Why the last page could not be read; `None` if it could.
    pub error: Option<Box<str>>,
    /// How many pages in a row could not be read.
    pub failures: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_found_by_the_slot() {
        let problems = vec![(2, "two".into()), (7, "seven".into())];
        let health = GpuHealth { problems, ..GpuHealth::default() };
        assert_eq!([1, 2, 3, 7].map(|slot| health.problem(slot)), [None, Some("two"), None, Some("seven")]);
    }
}
