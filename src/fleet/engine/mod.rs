//! What engines call their numbers, a table each, and how a page of them becomes quantities.
//!
//! vLLM and SGLang are recognised by their pages. The other shipped tables follow documentation and were never tried, so that
//! they count only where somebody names them, as do tables of one's own.

mod llama_cpp;
mod queue_time;
mod sglang;
mod table;
mod tensorrt_llm;
mod tgi;
mod triton;
mod vllm;

use std::hash::Hasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::prometheus;
use super::rates::{Growth, Window};
use crate::snapshot::Quantity;
pub use queue_time::{QueueTime, TimeUnit};
pub use table::{Combine, Input, Row};
use table::{Engine, Table};

/// The most series one counter may have on a page. vLLM has one per engine and finish reason; past this the page is
/// not what we take it for, and matching each series with its predecessor would cost too much.
const SERIES_MAX: usize = 1024;

/// Shipped tables. The first [`DETECTED`] are recognised by their pages.
const SHIPPED: [&Table; 6] =
    [&vllm::TABLE, &sglang::TABLE, &tensorrt_llm::TABLE, &triton::TABLE, &tgi::TABLE, &llama_cpp::TABLE];

const DETECTED: usize = 2;

/// What stands for no name: the engine is recognised by its page.
pub const AUTO: &str = "auto";

/// The names of the shipped engines, and whether each was compared with real pages.
pub fn shipped() -> impl Iterator<Item = (&'static str, bool)> {
    SHIPPED.iter().map(|table| (table.name, table.tried))
}

/// Which quantities are to be expected of a target whose engine is not known yet: those that both known ones have.
pub(super) const EXPECTED: [bool; Quantity::COUNT] = [true, true, true, true, false, false, true, true];

/// An engine of one's own.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineSettings {
    /// By which targets name it.
    pub name: String,
    /// What is where on its page.
    pub rows: Vec<Row>,
    /// In which header of its answers it says how long a request waited in its queue, if it does.
    pub queue_time: Option<QueueTime>,
}

/// All engines there are.
#[derive(Debug)]
pub struct Engines {
    all: Vec<Arc<Engine>>,
}

/// Those that a target may be.
#[derive(Debug)]
pub struct Possible {
    engines: Vec<Arc<Engine>>,
}

impl Engines {
    /// The shipped ones, and these.
    pub fn new(own: &[EngineSettings]) -> Self {
        let shipped = SHIPPED.iter().map(|table| table.engine());
        let own = own.iter().map(|own| Engine::new(&own.name, own.rows.clone(), own.queue_time.clone()));
        Self { all: shipped.chain(own).map(Arc::new).collect() }
    }

    /// Of a name only that one; of [`AUTO`], those that can be recognised. A name that there is not is nobody's.
    pub fn possible(&self, name: &str) -> Possible {
        let engines = match name {
            AUTO => self.all[..DETECTED].to_vec(),
            name => self.all.iter().filter(|engine| &*engine.name == name).cloned().collect(),
        };
        Possible { engines }
    }
}

impl Possible {
    /// Which quantities are to be expected before a page has come.
    pub(super) fn expected(&self) -> [bool; Quantity::COUNT] {
        if let [engine] = &self.engines[..] { engine.gives } else { EXPECTED }
    }
}

/// What one page says of one row.
#[derive(Clone, Debug)]
struct Found {
    /// Which of the row's names it was.
    rank: usize,
    /// Sum or maximum so far; `None` until a series was found. Counters have theirs in `series`.
    value: Option<f64>,
    /// Each series of a counter: a hash of its labels, and its value.
    series: Vec<(u64, f64)>,
}

impl Found {
    const NOTHING: Self = Self { rank: usize::MAX, value: None, series: Vec::new() };

    fn is_something(&self) -> bool {
        self.value.is_some() || !self.series.is_empty()
    }

    fn add(&mut self, combine: Combine, rank: usize, labels: &[u8], value: f64) {
        if rank < self.rank {
            *self = Self { rank, ..Self::NOTHING };
        }
        match combine {
            Combine::Sum => self.value = Some(self.value.unwrap_or(0.0) + value),
            Combine::Max => self.value = Some(self.value.unwrap_or(0.0).max(value)),
            Combine::Growth => self.series.push((hash(labels), value)),
        }
    }
}

/// What one page says.
#[derive(Debug)]
struct Page {
    /// In the order of the engine's rows.
    found: Vec<Found>,
    garbage: u32,
}

impl Page {
    fn read(text: &[u8], engine: &Engine) -> Self {
        let mut found = vec![Found::NOTHING; engine.rows.len()];
        let mut refused = 0;
        let garbage = prometheus::read(
            text,
            |name| engine.places(name),
            |line| {
                let mut believed = true;
                for place in line.key.iter().filter(|place| place.takes(line.labels)) {
                    let (row, found) = (&engine.rows[place.row], &mut found[place.row]);
                    let value = line.value * row.scale;
                    if !(0.0..=row.input.most()).contains(&value) || found.series.len() >= SERIES_MAX {
                        believed = false;
                    } else if place.rank <= found.rank {
                        found.add(row.combine, place.rank, line.labels, value);
                    }
                }
                refused += u32::from(!believed);
            },
        );
        Self { found, garbage: garbage + refused }
    }

    /// How many of the engine's rows are on it.
    fn rows(&self) -> usize {
        self.found.iter().filter(|found| found.is_something()).count()
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
    /// The newest name of each row that was not on the page.
    pub absent: Vec<String>,
    /// Whose page it is.
    pub engine: Arc<str>,
    /// Which quantities such a page can give.
    pub gives: [bool; Quantity::COUNT],
}

/// The pages of one target in their order: remembers what rates and ratios need of the earlier ones.
#[derive(Debug)]
pub struct Pages {
    possible: Possible,
    window: Duration,
    known: Option<Known>,
}

/// What is remembered of an engine's pages.
#[derive(Debug)]
struct Known {
    engine: Arc<Engine>,
    /// In the order of its rows.
    growth: Vec<Growth>,
    /// A page has told of queries: what was not found until then is known.
    queried: bool,
    prefix: Window<2>,
    requests: Window<1>,
    tokens: Window<1>,
}

impl Pages {
    /// Pages of one of these engines. Rates and ratios will be over `window`.
    pub fn new(possible: Possible, window: Duration) -> Self {
        Self { possible, window, known: None }
    }

    /// The names of the engines that the target may be, for messages.
    pub(super) fn engines(&self) -> String {
        let names: Vec<_> = self.possible.engines.iter().map(|engine| &*engine.name).collect();
        names.join(" or ")
    }

    /// Reads the page that was asked for at `at`; `None` if nothing of it is an engine's.
    ///
    /// The engine that it was last time is tried first; if nothing is there, the one of which most is. A rate needs two pages.
    /// The prefix hit ratio needs queries within the window, too: without them it says nothing new, so the last ratio stays,
    /// with its growing age, until somebody asks again.
    pub fn read(&mut self, text: &[u8], at: Instant) -> Option<Observation> {
        if let Some(known) = &mut self.known {
            let page = Page::read(text, &known.engine);
            if page.rows() > 0 {
                return Some(known.observe(&page, at));
            }
        }
        let pages = self.possible.engines.iter().map(|engine| (engine, Page::read(text, engine)));
        // Of equals the last would win, so it is asked from the end.
        let (engine, page) = pages.rev().max_by_key(|(_, page)| page.rows()).filter(|(_, page)| page.rows() > 0)?;
        let known = self.known.insert(Known::new(Arc::clone(engine), self.window));
        Some(known.observe(&page, at))
    }
}

impl Known {
    fn new(engine: Arc<Engine>, window: Duration) -> Self {
        let growth = engine.rows.iter().map(|_| Growth::default()).collect();
        let (prefix, requests, tokens) = (Window::new(window), Window::new(window), Window::new(window));
        Self { engine, growth, queried: false, prefix, requests, tokens }
    }

    fn observe(&mut self, page: &Page, at: Instant) -> Observation {
        let engine = Arc::clone(&self.engine);
        let place = |input| engine.rows.iter().position(|row| row.input == input);
        let found = |input| place(input).map(|place| (place, &page.found[place])).filter(|(_, it)| it.is_something());
        let gauge = |input| found(input).and_then(|(_, found)| found.value);
        let restarted =
            found(Input::PrefixQueries).is_some_and(|(place, found)| self.growth[place].falls(&found.series));
        let mut total = |input| found(input).map(|(place, found)| self.growth[place].after(&found.series));

        let (queries, misses) = (total(Input::PrefixQueries), total(Input::PrefixMisses));
        let (requests, tokens) = (total(Input::Requests), total(Input::Tokens));
        let hits = match (place(Input::PrefixHits), queries) {
            (Some(hits), Some(_)) if engine.from_zero.contains(&Input::PrefixHits) => {
                let is_first = !std::mem::replace(&mut self.queried, true);
                from_zero(&mut self.growth[hits], &page.found[hits].series, is_first, restarted)
            }
            _ => total(Input::PrefixHits),
        };
        let queries = queries.or_else(|| Some(hits? + misses?));
        let ratio = queries.zip(hits).and_then(|(queries, hits)| {
            let [queries, hits] = self.prefix.after(at, [queries, hits])?.growth;
            // The engine counts one after the other, and the page may fall in between.
            (queries > 0.0).then(|| (hits / queries).min(1.0))
        });
        let rate = |window: &mut Window<1>, total: Option<f64>| {
            total.and_then(|total| window.after(at, [total]).map(|span| span.per_second()[0]))
        };
        let values = Quantity::ALL.map(|quantity| match quantity {
            Quantity::Waiting => gauge(Input::Waiting),
            Quantity::Running => gauge(Input::Running),
            Quantity::KvCacheUsage => gauge(Input::KvCacheUsage),
            Quantity::PrefixCacheHitRatio => ratio.or_else(|| gauge(Input::PrefixHitRatio)),
            Quantity::GpuUtilization => gauge(Input::GpuUtilization),
            Quantity::GpuMemoryUtilization => gauge(Input::GpuMemoryUtilization),
            Quantity::EngineRequestsPerSecond => rate(&mut self.requests, requests),
            Quantity::EngineTokensPerSecond => rate(&mut self.tokens, tokens),
        });
        let absent = engine.rows.iter().zip(&page.found).filter(|(_, found)| !found.is_something());
        let absent = absent.map(|(row, _)| row.names[0].clone()).collect();
        Observation { values, garbage: page.garbage, absent, engine: Arc::clone(&engine.name), gives: engine.gives }
    }
}

/// The total of a counter that has no series before it has counted something. What it counted before the first page is nobody
/// knows how old. A page without it, after one with it, was cut short, unless the engine has started again.
fn from_zero(growth: &mut Growth, series: &[(u64, f64)], is_first: bool, restarted: bool) -> Option<f64> {
    if restarted {
        growth.forget();
    }
    if series.is_empty() && growth.has_series() {
        return None;
    }
    Some(if is_first { growth.after(series) } else { growth.after_from_zero(series) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE: &[u8] = include_bytes!("../../../tests/fixtures/vllm-0.32.0/metrics.txt");
    const BUSY: &[u8] = include_bytes!("../../../tests/fixtures/vllm-0.32.0/metrics-busy.txt");

    const WINDOW: Duration = Duration::from_secs(10);

    /// What the last of the pages gives, when one is read each second.
    fn last_of(pages: &[&[u8]]) -> Option<Observation> {
        let (mut target, start) = (Pages::new(Engines::new(&[]).possible(AUTO), WINDOW), Instant::now());
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
    fn every_table_has_an_input_once_and_names_that_can_be_on_a_page() {
        for table in SHIPPED {
            for (place, (input, names)) in table.rows.iter().enumerate() {
                assert!(table.rows[..place].iter().all(|(other, _)| other != input), "{} {input:?}", table.name);
                assert!(!names.is_empty());
                for name in *names {
                    assert!(!name.ends_with("_total"), "{name}: counters stand without it");
                    let page =
                        format!("{} 1\n", if name.contains('{') { name.to_string() } else { format!("{name}{{}}") });
                    let engines = Engines::new(&[]);
                    let read = Pages::new(engines.possible(table.name), WINDOW).read(page.as_bytes(), Instant::now());
                    let read = read.unwrap_or_else(|| panic!("{page} is not read"));
                    assert!(!read.absent.contains(&names[0].to_string()), "{page}: {read:?}");
                }
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

    const SGLANG: &str = include_str!("../../../tests/corpus/prometheus/sglang");

    #[test]
    fn sglang_is_recognised_and_gives_all_that_vllm_does() {
        let later =
            SGLANG.replace(" 4000.0\n", " 5000.0\n").replace(" 900.0\n", " 1150.0\n").replace(" 70.0\n", " 73.0\n");
        let read = last_of(&[SGLANG.as_bytes(), later.as_bytes()]).unwrap();
        assert_eq!((&*read.engine, read.garbage, read.absent.len()), ("sglang", 0, 0), "{read:?}");
        let expected = [Some(7.0), Some(21.0), Some(0.62), Some(0.25), None, None, Some(3.0), Some(0.0)];
        assert_eq!(read.values, expected);
        assert_eq!(&*last_of(&[IDLE]).unwrap().engine, "vllm");
    }

    /// SGLang adds to this counter only when a prompt has cached tokens: its series come with the first of them.
    #[test]
    fn sglang_without_a_hit_has_a_ratio_of_0_and_the_first_hit_counts_whole() {
        let page = |prompt: u32, cached: &str| {
            format!("sglang:num_queue_reqs{{m=\"m\"}} 0\nsglang:prompt_tokens_total{{m=\"m\"}} {prompt}\n{cached}")
        };
        let cached = |source: &str, tokens: u32| {
            format!("sglang:cached_tokens_total{{cache_source=\"{source}\",m=\"m\"}} {tokens}\n")
        };
        let ratio = |pages: &[String]| {
            let pages: Vec<_> = pages.iter().map(String::as_str).collect();
            value(&pages, Quantity::PrefixCacheHitRatio)
        };
        assert_eq!(ratio(&[page(1000, "")]), None, "one page is no growth");
        assert_eq!(ratio(&[page(1000, ""), page(1000, "")]), None, "nothing was looked up");
        assert_eq!(ratio(&[page(1000, ""), page(1400, "")]), Some(0.0));
        assert_eq!(ratio(&[page(1000, ""), page(1400, &cached("device", 100))]), Some(0.25));
        // Another source of the cache begins to hit.
        let both = cached("device", 100) + &cached("host", 100);
        assert_eq!(ratio(&[page(1000, &cached("device", 100)), page(1400, &both)]), Some(0.25));
        // What was counted before the first page is nobody knows how old, and a restart begins at 0.
        assert_eq!(ratio(&[page(1000, &cached("device", 900)), page(1400, &cached("device", 1000))]), Some(0.25));
        assert_eq!(ratio(&[page(1000, &cached("device", 900)), page(400, "")]), Some(0.0));
        let restarted = [page(1000, &cached("device", 900)), page(400, ""), page(800, &cached("device", 200))];
        assert_eq!(ratio(&restarted), Some(0.25), "of 400 and 400");
        // A page that was cut short has counted nothing back.
        let (one, other) = (cached("device", 100), cached("host", 300));
        let whole = |prompt, device| page(prompt, &(cached("device", device) + &other));
        assert_eq!(ratio(&[whole(1000, 100), page(1100, "")]), None, "not all of it came");
        assert_eq!(ratio(&[whole(1000, 100), page(1100, ""), whole(1400, 200)]), Some(0.25));
        assert_eq!(ratio(&[whole(1000, 100), page(1100, &one), whole(1400, 200)]), Some(0.25));
        // Whether it is a row that is 0 or one that is called otherwise now is not known: it is still told of.
        let read = last_of(&[page(1000, "").as_bytes()]).unwrap();
        assert!(read.absent.iter().any(|name| name == "sglang:cached_tokens"), "{read:?}");
        // A page on which nobody tells of queries says nothing of hits.
        assert_eq!(ratio(&["sglang:num_queue_reqs 0\n".to_owned(), "sglang:num_queue_reqs 0\n".to_owned()]), None);
        // vLLM sends both from the start: there, a counter that is not on the page is missing.
        let vllm = |queries: u32| format!("vllm:prefix_cache_queries_total {queries}\n");
        assert_eq!(ratio(&[vllm(100), vllm(200)]), None);
    }

    #[test]
    fn an_engine_that_was_replaced_by_another_is_recognised_again() {
        let read = last_of(&[BUSY, SGLANG.as_bytes()]).unwrap();
        assert_eq!((&*read.engine, read.values[Quantity::Waiting as usize]), ("sglang", Some(7.0)));
        assert_eq!(read.values[Quantity::EngineTokensPerSecond as usize], None, "a rate needs two pages of one engine");
    }

    #[test]
    fn what_was_never_tried_counts_only_where_it_is_named() {
        let page = "tgi_queue_size 3\ntgi_batch_current_size 2\n";
        assert_eq!(last_of(&[page.as_bytes()]), None);
        let read = Pages::new(Engines::new(&[]).possible("tgi"), WINDOW).read(page.as_bytes(), Instant::now()).unwrap();
        assert_eq!(read.values[..2], [Some(3.0), Some(2.0)]);
        assert!(!read.gives[Quantity::KvCacheUsage as usize] && read.gives[Quantity::EngineTokensPerSecond as usize]);
    }

    #[test]
    fn one_name_can_mean_several_things_by_a_label() {
        let page = "nv_trt_llm_request_metrics{model=\"m\",request_type=\"waiting\",version=\"1\"} 3\n\
                    nv_trt_llm_request_metrics{request_type=\"active\"} 5\n\
                    nv_trt_llm_request_metrics{not_request_type=\"active\"} 9\n";
        let read = Pages::new(Engines::new(&[]).possible("triton"), WINDOW).read(page.as_bytes(), Instant::now());
        assert_eq!(read.unwrap().values[..2], [Some(3.0), Some(5.0)]);
    }

    #[test]
    fn a_table_of_ones_own_scales_combines_and_makes_a_ratio_of_hits_and_misses() {
        let row = |input: Input, combine, scale, name: &str| Row { input, combine, scale, names: vec![name.into()] };
        let own = EngineSettings {
            name: "mine".into(),
            rows: vec![
                row(Input::KvCacheUsage, Combine::Max, 0.01, "kv_percent"),
                row(Input::Running, Combine::Max, 1.0, "busy"),
                row(Input::PrefixHits, Combine::Growth, 1.0, "hits"),
                row(Input::PrefixMisses, Combine::Growth, 1.0, "misses"),
            ],
            queue_time: None,
        };
        let mut pages = Pages::new(Engines::new(&[own]).possible("mine"), WINDOW);
        let (start, page) = (Instant::now(), "kv_percent{e=\"0\"} 20\nkv_percent{e=\"1\"} 25\nbusy 1\nbusy 3\n");
        pages.read(format!("{page}hits 10\nmisses_total 5\n").as_bytes(), start);
        let read =
            pages.read(format!("{page}hits 40\nmisses_total 15\n").as_bytes(), start + Duration::from_secs(1)).unwrap();
        assert_eq!(read.values[..4], [None, Some(3.0), Some(0.25), Some(0.75)]);
        assert_eq!((read.garbage, read.absent.len()), (0, 0));
        assert_eq!(read.gives, [false, true, true, true, false, false, false, false]);
    }

    #[test]
    fn another_engines_page_gives_nothing() {
        assert_eq!(last_of(&[b"tgi_queue_size 3\nprocess_open_fds 9\n".as_slice()]), None);
        assert_eq!(last_of(&[b"".as_slice()]), None);
    }

    proptest! {
        /// A page that is cut anywhere: what is left of it counts, nothing is made up, and at most the cut line is garbage.
        #[test]
        fn a_page_cut_anywhere_says_no_more_than_the_whole(cut in 0..BUSY.len()) {
            let (whole, part) = (last_of(&[BUSY]).unwrap(), last_of(&[&BUSY[..cut]]));
            if let Some(part) = part {
                prop_assert!(part.garbage <= 1, "{part:?}");
                for (whole, part) in whole.values.iter().zip(part.values) {
                    prop_assert!(part.is_none() || part == *whole, "{part:?} is not {whole:?}");
                }
                prop_assert!(whole.absent.iter().all(|name| part.absent.contains(name)));
            }
        }

        /// Any bytes in place of any others: whatever is read can be true.
        #[test]
        fn a_page_with_garbage_anywhere_gives_only_what_can_be_true(at in 0..BUSY.len(), garbage: Vec<u8>) {
            let page = [&BUSY[..at], &garbage, &BUSY[(at + garbage.len()).min(BUSY.len())..]].concat();
            for read in [last_of(&[&page]), last_of(&[BUSY, &page]), last_of(&[&page, BUSY])].into_iter().flatten() {
                for value in read.values.into_iter().flatten() {
                    prop_assert!(value.is_finite() && value >= 0.0, "{read:?}");
                }
            }
        }
    }
}
