//! What vLLM calls its numbers, as a table, and how a page of them becomes quantities.

use std::hash::Hasher;
use std::time::{Duration, Instant};

use super::prometheus;
use super::rates::{Growth, Window};
use crate::snapshot::Quantity;

/// The most series one counter may have on a page. vLLM has one per engine and finish reason; past this the page is
/// not what we take it for, and matching each series with its predecessor would cost too much.
const SERIES_MAX: usize = 1024;

/// One number that is looked for on the page, summed or maximised over its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Waiting,
    Running,
    KvCacheUsage,
    PrefixQueries,
    PrefixHits,
    Requests,
    Tokens,
}

/// How the series of several engines (data parallelism: one series per `engine` label) become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Combine {
    /// A gauge of things that add up.
    Sum,
    /// A share: the fullest engine is the one that will refuse work.
    Max,
    /// A counter: the growth of each series adds up, so that one engine's restart is not taken for all of them.
    Growth,
}

/// One row of the table.
#[derive(Debug)]
struct Row {
    input: Input,
    /// Newest first. The first that is on the page counts and hides the others: a version in between sends both.
    /// Counters stand without `_total`, which OpenMetrics demands and other exporters leave out.
    names: &'static [&'static str],
    combine: Combine,
    /// The largest value that can be true; anything above, below 0 or not a number is not taken.
    most: f64,
}

/// vLLM, version 1 engine. In the order of [`Input`].
const VLLM: [Row; Input::COUNT] = [
    Row { input: Input::Waiting, names: &["vllm:num_requests_waiting"], combine: Combine::Sum, most: f64::MAX },
    Row { input: Input::Running, names: &["vllm:num_requests_running"], combine: Combine::Sum, most: f64::MAX },
    Row {
        input: Input::KvCacheUsage,
        names: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
        combine: Combine::Max,
        most: 1.0,
    },
    // Both count tokens, not requests.
    Row {
        input: Input::PrefixQueries,
        names: &["vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries"],
        combine: Combine::Growth,
        most: f64::MAX,
    },
    Row {
        input: Input::PrefixHits,
        names: &["vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits"],
        combine: Combine::Growth,
        most: f64::MAX,
    },
    // One series per finish reason: aborted and failed requests have finished, too.
    Row { input: Input::Requests, names: &["vllm:request_success"], combine: Combine::Growth, most: f64::MAX },
    Row { input: Input::Tokens, names: &["vllm:generation_tokens"], combine: Combine::Growth, most: f64::MAX },
];

/// What all names begin with, so that other lines are told apart by one comparison.
const PREFIX: &[u8] = b"vllm:";

impl Input {
    const COUNT: usize = 7;
}

/// Whether the page can give the quantity at all.
pub(super) const fn gives(quantity: Quantity) -> bool {
    !matches!(quantity, Quantity::GpuUtilization | Quantity::GpuMemoryUtilization)
}

/// The row of a sample's name, and how new the name is (0 is the newest).
fn row_of(name: &[u8]) -> Option<(usize, usize)> {
    if !name.starts_with(PREFIX) {
        return None;
    }
    let base = name.strip_suffix(b"_total").unwrap_or(name);
    VLLM.iter().enumerate().find_map(|(row, Row { names, combine, .. })| {
        let name = if *combine == Combine::Growth { base } else { name };
        names.iter().position(|known| known.as_bytes() == name).map(|rank| (row, rank))
    })
}

/// What one page says of one input.
#[derive(Clone, Debug, Default)]
struct Found {
    /// Which of the row's names it was.
    rank: usize,
    /// Sum or maximum so far; `None` until a series was found. Counters have theirs in `series`.
    value: Option<f64>,
    /// Each series of a counter: a hash of its labels, and its value.
    series: Vec<(u64, f64)>,
}

/// What one page says.
#[derive(Debug)]
struct Page {
    found: [Found; Input::COUNT],
    garbage: u32,
}

impl Page {
    fn read(text: &[u8]) -> Self {
        let mut found = [const { Found { rank: usize::MAX, value: None, series: Vec::new() } }; Input::COUNT];
        let mut refused = 0;
        let garbage = prometheus::read(text, row_of, |line| {
            let (row, rank) = line.key;
            let (row, found) = (&VLLM[row], &mut found[row]);
            let usable = (0.0..=row.most).contains(&line.value) && found.series.len() < SERIES_MAX;
            if !usable {
                refused += 1;
            } else if rank <= found.rank {
                found.add(row.combine, rank, line.labels, line.value);
            }
        });
        Self { found, garbage: garbage + refused }
    }

    fn found(&self, input: Input) -> Option<&Found> {
        let found = &self.found[input as usize];
        (found.value.is_some() || !found.series.is_empty()).then_some(found)
    }
}

impl Found {
    fn add(&mut self, combine: Combine, rank: usize, labels: &[u8], value: f64) {
        if rank < self.rank {
            *self = Self { rank, ..Self::default() };
        }
        match combine {
            Combine::Sum => self.value = Some(self.value.unwrap_or(0.0) + value),
            Combine::Max => self.value = Some(self.value.unwrap_or(0.0).max(value)),
            Combine::Growth => self.series.push((hash(labels), value)),
        }
    }
}

/// Names a series without keeping its labels.
fn hash(labels: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(labels);
    hasher.finish()
}

/// What a page gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// In the order of [`Quantity::ALL`]; `None` where the page says nothing new.
    pub values: [Option<f64>; Quantity::COUNT],
    /// Lines that could not be read or believed.
    pub garbage: u32,
    /// The newest name of each input that was not on the page.
    pub absent: Vec<&'static str>,
}

/// The pages of one target in their order: remembers what rates and ratios need of the earlier ones.
#[derive(Debug)]
pub struct Pages {
    growth: [Growth; Input::COUNT],
    prefix: Window<2>,
    requests: Window<1>,
    tokens: Window<1>,
}

impl Pages {
    /// Rates and ratios will be over `window`.
    pub fn new(window: Duration) -> Self {
        Self {
            growth: Default::default(),
            prefix: Window::new(window),
            requests: Window::new(window),
            tokens: Window::new(window),
        }
    }

    /// Reads the page that was asked for at `at`; `None` if nothing of it is vLLM's.
    ///
    /// A rate needs two pages. The prefix hit ratio needs queries within the window, too: without them it says nothing
    /// new, so the last ratio stays, with its growing age, until somebody asks again.
    pub fn read(&mut self, text: &[u8], at: Instant) -> Option<Observation> {
        let page = Page::read(text);
        let absent: Vec<_> =
            VLLM.iter().filter(|row| page.found(row.input).is_none()).map(|row| row.names[0]).collect();
        if absent.len() == VLLM.len() {
            return None;
        }
        let gauge = |input| page.found(input).and_then(|found| found.value);
        let mut values = [None; Quantity::COUNT];
        values[Quantity::Waiting as usize] = gauge(Input::Waiting);
        values[Quantity::Running as usize] = gauge(Input::Running);
        values[Quantity::KvCacheUsage as usize] = gauge(Input::KvCacheUsage);

        let mut total = |input| page.found(input).map(|found| self.growth[input as usize].after(&found.series));
        if let (Some(queries), Some(hits)) = (total(Input::PrefixQueries), total(Input::PrefixHits)) {
            values[Quantity::PrefixCacheHitRatio as usize] = self.prefix.after(at, [queries, hits]).and_then(|span| {
                let [queries, hits] = span.growth;
                // The engine counts one after the other, and the page may fall in between.
                (queries > 0.0).then(|| (hits / queries).min(1.0))
            });
        }
        let rate = |window: &mut Window<1>, total| window.after(at, [total]).map(|span| span.per_second()[0]);
        values[Quantity::EngineRequestsPerSecond as usize] =
            total(Input::Requests).and_then(|total| rate(&mut self.requests, total));
        values[Quantity::EngineTokensPerSecond as usize] =
            total(Input::Tokens).and_then(|total| rate(&mut self.tokens, total));
        Some(Observation { values, garbage: page.garbage, absent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: &[u8] = include_bytes!("../../tests/fixtures/vllm-0.32.0/metrics.txt");
    const BUSY: &[u8] = include_bytes!("../../tests/fixtures/vllm-0.32.0/metrics-busy.txt");

    const WINDOW: Duration = Duration::from_secs(10);

    /// What the last of the pages gives, when one is read each second.
    fn last_of(pages: &[&[u8]]) -> Option<Observation> {
        let (mut target, start) = (Pages::new(WINDOW), Instant::now());
        let mut seconds = 0..;
        pages
            .iter()
            .map(|page| target.read(page, start + Duration::from_secs(seconds.next().unwrap())))
            .last()
            .flatten()
    }

    fn values(pages: &[&str]) -> [Option<f64>; Quantity::COUNT] {
        let pages: Vec<_> = pages.iter().map(|page| page.as_bytes()).collect();
        last_of(&pages).unwrap().values
    }

    fn value(pages: &[&str], quantity: Quantity) -> Option<f64> {
        values(pages)[quantity as usize]
    }

    #[test]
    fn the_table_is_in_the_order_of_the_inputs_and_shares_its_prefix() {
        for (place, row) in VLLM.iter().enumerate() {
            assert_eq!(row.input as usize, place);
            for name in row.names {
                assert!(name.as_bytes().starts_with(PREFIX) && !name.ends_with("_total"), "{name}");
            }
        }
    }

    #[test]
    fn a_real_page_gives_its_gauges_at_once() {
        let idle = last_of(&[IDLE]).unwrap();
        assert_eq!(idle.values, [Some(0.0), Some(0.0), Some(0.0), None, None, None, None, None]);
        assert_eq!((idle.garbage, idle.absent.len()), (0, 0));
        let busy = last_of(&[BUSY]).unwrap();
        assert_eq!(
            busy.values,
            [Some(2.0), Some(4.0), Some(0.000_976_681_723_843_242_4), None, None, None, None, None]
        );
        assert_eq!((busy.garbage, busy.absent.len()), (0, 0));
    }

    #[test]
    fn two_real_pages_give_rates_and_the_ratio() {
        // 1332 - 105 queries without a hit, 8 - 5 requests, 2981 - 38 tokens, in one second.
        let values = last_of(&[IDLE, BUSY]).unwrap().values;
        assert_eq!(values[Quantity::PrefixCacheHitRatio as usize], Some(0.0));
        assert_eq!(values[Quantity::EngineRequestsPerSecond as usize], Some(3.0));
        assert_eq!(values[Quantity::EngineTokensPerSecond as usize], Some(2943.0));
    }

    #[test]
    fn several_engines_add_up_except_for_the_fullest_cache() {
        let page = |a: f64, b: f64| {
            format!(
                "vllm:num_requests_waiting{{engine=\"0\"}} 1\nvllm:num_requests_waiting{{engine=\"1\"}} 4\n\
                 vllm:num_requests_running{{engine=\"0\"}} 2\nvllm:num_requests_running{{engine=\"1\"}} 3\n\
                 vllm:kv_cache_usage_perc{{engine=\"0\"}} 0.5\nvllm:kv_cache_usage_perc{{engine=\"1\"}} 0.25\n\
                 vllm:generation_tokens_total{{engine=\"0\"}} {a}\nvllm:generation_tokens_total{{engine=\"1\"}} {b}\n"
            )
        };
        let values = values(&[&page(100.0, 1000.0), &page(130.0, 1070.0)]);
        assert_eq!(values, [Some(5.0), Some(5.0), Some(0.5), None, None, None, None, Some(100.0)]);
    }

    #[test]
    fn a_restart_of_one_engine_is_not_a_jump_of_the_sum() {
        let page = |a: f64, b: f64| {
            format!(
                "vllm:generation_tokens_total{{engine=\"0\"}} {a}\nvllm:generation_tokens_total{{engine=\"1\"}} {b}\n"
            )
        };
        // The second engine starts again and has made 7 tokens since; the first made 10.
        assert_eq!(value(&[&page(100.0, 5000.0), &page(110.0, 7.0)], Quantity::EngineTokensPerSecond), Some(17.0));
    }

    #[test]
    fn old_names_count_where_the_new_ones_are_not() {
        let old = "vllm:gpu_cache_usage_perc 0.75\nvllm:gpu_prefix_cache_queries_total 100\n\
                   vllm:gpu_prefix_cache_hits_total 10\n";
        let later = "vllm:gpu_cache_usage_perc 0.5\nvllm:gpu_prefix_cache_queries_total 140\n\
                     vllm:gpu_prefix_cache_hits_total 30\n";
        assert_eq!(value(&[old], Quantity::KvCacheUsage), Some(0.75));
        assert_eq!(value(&[old, later], Quantity::PrefixCacheHitRatio), Some(0.5));

        for both in [
            "vllm:gpu_cache_usage_perc 0.9\nvllm:kv_cache_usage_perc 0.1\n",
            "vllm:kv_cache_usage_perc 0.1\nvllm:gpu_cache_usage_perc 0.9\n",
        ] {
            assert_eq!(value(&[both], Quantity::KvCacheUsage), Some(0.1), "{both}");
        }
    }

    #[test]
    fn a_counter_may_lack_its_suffix_and_a_gauge_may_not_have_one() {
        let page = |tokens: u32| format!("vllm:generation_tokens {tokens}\nvllm:num_requests_waiting_total 9\n");
        let values = values(&[&page(0), &page(5)]);
        assert_eq!(values[Quantity::EngineTokensPerSecond as usize], Some(5.0));
        assert_eq!(values[Quantity::Waiting as usize], None);
    }

    #[test]
    fn nothing_asked_gives_no_ratio() {
        let page = |queries: u32, hits: u32| {
            format!("vllm:prefix_cache_queries_total {queries}\nvllm:prefix_cache_hits_total {hits}\n")
        };
        assert_eq!(value(&[&page(100, 50), &page(100, 50)], Quantity::PrefixCacheHitRatio), None);
        assert_eq!(value(&[&page(100, 50), &page(300, 200)], Quantity::PrefixCacheHitRatio), Some(0.75));
        assert_eq!(value(&[&page(100, 50), &page(101, 60)], Quantity::PrefixCacheHitRatio), Some(1.0));
    }

    #[test]
    fn what_cannot_be_true_is_missing_and_counted() {
        let page = "vllm:num_requests_waiting NaN\nvllm:num_requests_running -1\nvllm:kv_cache_usage_perc 41\n\
                    vllm:generation_tokens_total +Inf\nvllm:request_success_total 3\n";
        let observation = last_of(&[page.as_bytes()]).unwrap();
        assert_eq!(observation.values, [None; Quantity::COUNT]);
        assert_eq!(observation.garbage, 4);
        assert_eq!(observation.absent.len(), 6, "all but vllm:request_success: {:?}", observation.absent);
    }

    #[test]
    fn a_counter_with_too_many_series_costs_no_more() {
        let page: String =
            (0..SERIES_MAX + 10).map(|n| format!("vllm:request_success_total{{n=\"{n}\"}} 1\n")).collect();
        assert_eq!(last_of(&[page.as_bytes()]).unwrap().garbage, 10);
    }

    #[test]
    fn another_engines_page_gives_nothing() {
        assert_eq!(last_of(&[b"sglang:num_running_reqs 3\nprocess_open_fds 9\n".as_slice()]), None);
        assert_eq!(last_of(&[b"".as_slice()]), None);
    }
}
