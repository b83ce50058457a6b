//! The candidates of a decision as a table, and what of a target's state fits into one row of it.

use super::table::Column;
use super::{Sight, table, words};
use crate::snapshot::document::{CandidatePart, DecisionPart, State};
use crate::snapshot::{Freshness, Quantity};

/// Rows that are shown: no gateway scores more, but a document may come from anywhere.
const ROWS_MAX: usize = 64;

/// The columns of a state, for the tables of candidates and of the fleet.
pub(in crate::lookup) const STATE_COLUMNS: [Column; 11] = [
    Column::number("in flight", 0),
    Column::number("rps", 7),
    Column::number("tps", 8),
    Column::number("waiting", 1),
    Column::number("running", 2),
    Column::number("kv %", 3),
    Column::number("hit %", 6),
    Column::number("gpu %", 10),
    Column::number("gpu mem %", 11),
    Column::number("age", 4),
    Column::text("freshness", 5),
];

/// Where the two columns about GPUs are among them.
const GPUS_AT: usize = 7;

/// After a value that is stale.
const STALE: &str = "?";

/// What that means, where a table has one; its rows' states begin at a place.
pub(in crate::lookup) fn legend_of_stale(state_at: usize, rows: &[Vec<String>]) -> Option<&'static str> {
    let marked = rows.iter().any(|row| row[state_at..].iter().any(|cell| cell.ends_with(STALE)));
    marked.then_some("? stale: the last that was heard, too old to choose by")
}

/// In the place of a value that is not known.
pub(in crate::lookup) const UNKNOWN: &str = "-";

const COLUMNS: [Column; 15] = {
    let [in_flight, rps, tps, waiting, running, kv, hit, gpu, memory, age, freshness] = STATE_COLUMNS;
    [
        Column::number("#", 0),
        Column::name("target"),
        Column::text("", 0),
        Column::number("score", 0),
        in_flight,
        rps,
        tps,
        waiting,
        running,
        kv,
        hit,
        gpu,
        memory,
        age,
        freshness,
    ]
};

/// The quantities by which a state is judged as a whole: every engine has them, and they move all the time.
const JUDGED: [Quantity; 3] = [Quantity::Waiting, Quantity::Running, Quantity::KvCacheUsage];

/// How far a state may be trusted as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lookup) struct Trust {
    /// That of the worst of [`JUDGED`]; `None` if there is no state.
    pub(in crate::lookup) freshness: Option<Freshness>,
    /// The age of the oldest of [`JUDGED`] that has a value, in milliseconds.
    pub(in crate::lookup) age_ms: Option<u64>,
}

impl Trust {
    /// The trust in a state whose ages were counted `later_ms` ago.
    pub(in crate::lookup) fn of(state: &State, later_ms: u64) -> Self {
        let judged = || JUDGED.into_iter().map(|quantity| state.reading(quantity));
        Self {
            freshness: judged().filter_map(|reading| reading.freshness).max_by_key(|freshness| badness(*freshness)),
            age_ms: judged().filter_map(|reading| reading.age_ms).max().map(|age| age.saturating_add(later_ms)),
        }
    }
}

/// A quantity that cannot be had says nothing against the others.
const fn badness(freshness: Freshness) -> u8 {
    match freshness {
        Freshness::Unsupported => 0,
        Freshness::Fresh => 1,
        Freshness::Stale => 2,
        Freshness::Missing => 3,
    }
}

/// The state of a candidate; empty if the document has something else in its place.
pub(super) fn state_of(candidate: &CandidatePart<'_>) -> State {
    serde_json::from_str(candidate.state.get()).unwrap_or_default()
}

/// The cell of one quantity. A value that is not known is a hyphen, never 0; one that is stale is marked.
pub(in crate::lookup) fn cell(state: &State, quantity: Quantity, show: fn(f64) -> String) -> String {
    let reading = state.reading(quantity);
    let shown = reading.value.map_or_else(|| UNKNOWN.to_owned(), show);
    if reading.value.is_some() && reading.freshness == Some(Freshness::Stale) { shown + STALE } else { shown }
}

/// The cells of [`STATE_COLUMNS`].
pub(in crate::lookup) fn state_cells(
    in_flight: u64,
    requests_per_second: f64,
    tokens_per_second: f64,
    state: &State,
    trust: Trust,
) -> [String; 11] {
    let value = |quantity, show| cell(state, quantity, show);
    [
        in_flight.to_string(),
        words::number(requests_per_second),
        words::number(tokens_per_second),
        value(Quantity::Waiting, words::number),
        value(Quantity::Running, words::number),
        value(Quantity::KvCacheUsage, words::percent),
        value(Quantity::PrefixCacheHitRatio, words::percent),
        value(Quantity::GpuUtilization, words::percent),
        value(Quantity::GpuMemoryUtilization, words::percent),
        trust.age_ms.map_or_else(|| "-".to_owned(), words::millis),
        trust.freshness.map_or("-", Freshness::name).to_owned(),
    ]
}

/// Lays a table out whose columns of [`STATE_COLUMNS`] begin at a place. Without any GPU that something is known of, it has
/// no columns for them.
pub(in crate::lookup) fn lay_out(columns: &[Column], state_at: usize, rows: &[Vec<String>], width: usize) -> String {
    let gpus = state_at + GPUS_AT..state_at + GPUS_AT + 2;
    if rows.iter().any(|row| row[gpus.clone()].iter().any(|cell| cell != UNKNOWN)) {
        return table::lay_out(columns, rows, width);
    }
    lay_out_without_gpus(columns, state_at, rows, width)
}

/// The same without the columns about GPUs, whatever is known.
pub(in crate::lookup) fn lay_out_without_gpus(
    columns: &[Column],
    state_at: usize,
    rows: &[Vec<String>],
    width: usize,
) -> String {
    let gpus = state_at + GPUS_AT..state_at + GPUS_AT + 2;
    let without = |row: &Vec<String>| [&row[..gpus.start], &row[gpus.end..]].concat();
    let columns = [&columns[..gpus.start], &columns[gpus.end..]].concat();
    table::lay_out(&columns, &rows.iter().map(without).collect::<Vec<_>>(), width)
}

/// How many of the candidates have a score: one that lacks a fresh value or was forced has none.
pub(super) fn scored(decision: &DecisionPart<'_>) -> usize {
    decision.candidates.iter().filter(|candidate| candidate.score.is_some()).count()
}

/// The table of a decision's candidates, best first; empty where nothing was decided.
pub(super) fn of(decision: &DecisionPart<'_>, sight: Sight, width: usize) -> String {
    if decision.candidates.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = decision
        .candidates
        .iter()
        .take(ROWS_MAX)
        .map(|candidate| {
            let mut row = vec![
                candidate.rank.to_string(),
                words::clean(&candidate.target),
                if candidate.chosen { "*".to_owned() } else { String::new() },
                candidate.score.map_or_else(|| "-".to_owned(), words::number),
            ];
            let state = state_of(candidate);
            let own = Trust::of(&state, candidate.sample_age_ms);
            // The chosen one's age at the decision is written, too, and was rounded but once: the verdict says that one.
            let written = Trust::of(&decision.state.state, 0);
            row.extend(state_cells(
                u64::from(candidate.gateway_in_flight),
                candidate.gateway_requests_per_second,
                candidate.gateway_tokens_per_second,
                &state,
                if candidate.chosen && written.age_ms.is_some() { written } else { own },
            ));
            row
        })
        .collect();
    let mut head = match (sight, decision.eligible) {
        (Sight::Own, _) => "candidates: the chosen one; others are for operators".to_owned(),
        (Sight::Whole, None) => format!("candidates: {} scored", scored(decision)),
        (Sight::Whole, Some(eligible)) => format!("candidates: {} scored of {eligible} eligible", scored(decision)),
    };
    let excluded = &decision.excluded;
    for (count, why) in [
        (excluded.unhealthy, "unhealthy"),
        (excluded.ejected, "failing"),
        (excluded.model, "without the model"),
        (excluded.no_fresh_state, "without fresh state"),
    ] {
        if let Some(count @ 1..) = count {
            head.push_str(&format!(", {count} {why}"));
        }
    }
    let window = decision.state.state.window_ms;
    let over = window.map_or_else(String::new, |ms| format!(", over {}", words::millis(u64::from(ms))));
    let legend = format!(
        "* chosen; in flight, rps and tps as this gateway counts them{over}; age and freshness of the worst of \
         waiting, running and kv"
    );
    let state_at = COLUMNS.len() - STATE_COLUMNS.len();
    let stale = legend_of_stale(state_at, &rows).map(|legend| words::hanging("", legend, 2, width));
    format!(
        "{}\n{}{}{}",
        words::line(&head, width),
        lay_out(&COLUMNS, state_at, &rows, width),
        words::hanging("", &legend, 2, width),
        stale.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::document::StateReading;

    #[test]
    fn a_state_is_as_good_as_its_worst_quantity() {
        let reading = |age_ms: Option<u64>, freshness| StateReading {
            value: age_ms.map(|_| 1.0),
            age_ms,
            source: None,
            freshness,
        };
        let state = |readings: [(Option<u64>, Option<Freshness>); 3]| {
            let mut state = State::default();
            for (quantity, (age, freshness)) in JUDGED.into_iter().zip(readings) {
                state.readings[quantity as usize] = reading(age, freshness);
            }
            state
        };
        use Freshness::{Fresh, Missing, Stale, Unsupported};
        for (readings, freshness, age_ms) in [
            ([(None, None), (None, None), (None, None)], None, None),
            ([(Some(40), Some(Fresh)), (Some(50), Some(Fresh)), (None, Some(Unsupported))], Some(Fresh), Some(57)),
            ([(Some(40), Some(Fresh)), (Some(5000), Some(Stale)), (Some(1), Some(Fresh))], Some(Stale), Some(5007)),
            ([(Some(40), Some(Fresh)), (None, Some(Missing)), (Some(1), Some(Stale))], Some(Missing), Some(47)),
            ([(None, Some(Unsupported)); 3], Some(Unsupported), None),
        ] {
            assert_eq!(Trust::of(&state(readings), 7), Trust { freshness, age_ms }, "{readings:?}");
        }
    }
}
