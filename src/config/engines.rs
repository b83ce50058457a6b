//! `[[engines]]`: what an engine of one's own calls its numbers.

use std::fmt;
use std::str::FromStr as _;

use http::HeaderName;
use toml::Spanned;
use toml::de::DeValue;

use super::build::Values;
use super::discovery::sources;
use super::layers::Effective;
use super::mistake::{Mistakes, Origin, Place, did_you_mean};
use super::tables::{Entry, Fields, Tables};
use super::texts::check_name;
use super::value::{Value, quoted, quoted_list};
use crate::fleet::{AUTO, Combine, EngineSettings, Input, QueueTime, Row, TimeUnit, shipped};

/// Engines of one's own at most.
const ENGINES_MAX: usize = 64;

/// Names of one number at most: each is looked for on every page.
const NAMES_MAX: usize = 16;

/// The longest name of a series.
const NAME_BYTES_MAX: usize = 256;

/// What names the header in which an engine says how long a request waited.
const QUEUE_TIME: &str = "queue_time";

/// One entry of `[[engines]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Engine(pub(super) EngineSettings);

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ name = ")?;
        quoted(f, &self.0.name)?;
        for Row { input, combine, scale, names } in &self.0.rows {
            write!(f, ", {} = {{ names = ", input.name())?;
            quoted_list(f, names)?;
            if *combine != Combine::Growth {
                write!(f, ", combine = \"{}\"", if *combine == Combine::Sum { "sum" } else { "max" })?;
            }
            write!(f, ", scale = {scale:?} }}")?;
        }
        if let Some(QueueTime { header, unit }) = &self.0.queue_time {
            write!(f, ", {QUEUE_TIME} = {{ header = \"{header}\", unit = \"{}\" }}", unit.name())?;
        }
        f.write_str(" }")
    }
}

/// The name of an engine, as a key takes it; whether there is such an engine is seen when all are known.
pub(super) fn engine_name(text: &str) -> Result<String, String> {
    check_name(text)
}

/// Notes every name that no engine has.
pub(super) fn check(effective: &Effective, mistakes: &mut Mistakes) {
    let ((Value::Engines(own), _), (Value::Targets(targets), targets_origin), (Value::Text(of_fleet), origin)) =
        (effective.get("engines"), effective.get("targets"), effective.get("fleet.engine"))
    else {
        unreachable!("two lists of tables and a text")
    };
    let known: Vec<&str> = names(own).collect();
    let mut named = |name: &str, key: &'static str, origin: &Origin| {
        if !known.contains(&name) {
            let text = match did_you_mean(name, known.iter().copied()) {
                none if none.is_empty() => format!("there is no engine {name}: use one of {}", known.join(", ")),
                proposal => format!("there is no engine {name}{proposal} There are {}", known.join(", ")),
            };
            mistakes.add(origin.clone(), Some(key), text);
        }
    };
    named(of_fleet, "fleet.engine", origin);
    for target in targets {
        target.engine.iter().for_each(|engine| named(engine, "targets", targets_origin));
    }
    for source in sources(effective) {
        source.defaults.engine.iter().for_each(|engine| named(engine, "discovery", effective.get("discovery").1));
    }
}

/// The names of all that there are, with these of one's own.
pub(super) fn names(own: &[Engine]) -> impl Iterator<Item = &str> {
    let shipped = std::iter::once(AUTO).chain(shipped().map(|(name, _)| name));
    shipped.chain(own.iter().map(|engine| engine.0.name.as_str()))
}

pub(super) fn settings(values: &Values<'_>) -> Vec<EngineSettings> {
    values.engines().iter().map(|engine| engine.0.clone()).collect()
}

impl Tables<'_> {
    pub(super) fn engines_from_toml(&mut self, value: &Spanned<DeValue<'_>>, place: &Place<'_>) -> Vec<Engine> {
        let fields: Vec<_> = ["name", QUEUE_TIME].into_iter().chain(Input::ALL.map(Input::name)).collect();
        let mut engines: Vec<Engine> = Vec::new();
        for entry in self.entries(value, place, &fields) {
            let (engine, origin) = match entry {
                Entry::Short(_, origin) => {
                    self.wrong(&origin, "an engine is a table: write [[engines]]");
                    continue;
                }
                Entry::Fields(fields, origin) => (self.engine(&fields, &origin), origin),
            };
            let Some(engine) = engine else { continue };
            let name = &engine.0.name;
            if name == AUTO || shipped().any(|(shipped, _)| shipped == name) {
                self.wrong(&origin, format!("{name} is a name of snapgate's own: take another one"));
            } else if engines.iter().any(|other| other.0.name == *name) {
                self.wrong(&origin, format!("the name {name} is already taken: names are unique"));
            } else {
                engines.push(engine);
            }
        }
        if engines.len() > ENGINES_MAX {
            self.wrong(&place.at(value.span()), format!("{} engines are more than {ENGINES_MAX}", engines.len()));
        }
        engines
    }

    fn engine(&mut self, fields: &Fields<'_>, origin: &Origin) -> Option<Engine> {
        let name = self.needed_name(fields, origin, "an engine needs a `name`: targets name it as their `engine`");
        let mut rows = Vec::new();
        for input in Input::ALL {
            if let Some((value, origin)) = fields.get(input.name()) {
                rows.extend(self.row(input, value, origin));
            }
        }
        let has = |input: Input| fields.contains_key(input.name());
        let queue_time = fields.get(QUEUE_TIME).and_then(|(value, origin)| self.queue_time(value, origin));
        if !Input::ALL.into_iter().any(has) {
            let inputs = Input::ALL.map(Input::name).join(", ");
            self.wrong(origin, format!("an engine needs at least one of {inputs}"));
        }
        if has(Input::PrefixHits) != (has(Input::PrefixQueries) || has(Input::PrefixMisses)) {
            let text = "`prefix_cache_hits` and one of `prefix_cache_queries` and `prefix_cache_misses` go together: a ratio \
                        needs both";
            self.wrong(origin, text);
        }
        Some(Engine(EngineSettings { name: name?, rows, queue_time }))
    }

    /// `{ header = "x-queue-time", unit = "ms" }`.
    fn queue_time(&mut self, value: &DeValue<'_>, origin: &Origin) -> Option<QueueTime> {
        let text = |key: &str| value.as_table()?.get(key)?.get_ref().as_str();
        let header = text("header").and_then(|name| HeaderName::from_str(name).ok());
        let unit = text("unit").and_then(|name| TimeUnit::ALL.into_iter().find(|unit| unit.name() == name));
        match (header, unit, value.as_table().map(|table| table.len())) {
            (Some(header), Some(unit), Some(2)) => Some(QueueTime { header, unit }),
            _ => {
                let units = TimeUnit::ALL.map(TimeUnit::name).join(", ");
                let example = "{ header = \"x-queue-time\", unit = \"ms\" }";
                self.wrong(origin, format!("`{QUEUE_TIME}` has to be like {example}; units are {units}"));
                None
            }
        }
    }

    /// A name, a list of names, or `{ names = […], combine = "max", scale = 0.01 }`.
    fn row(&mut self, input: Input, value: &DeValue<'_>, origin: &Origin) -> Option<Row> {
        let field = input.name();
        let mut row = Row { input, combine: input.combine(), scale: 1.0, names: Vec::new() };
        let names = match value {
            DeValue::Table(table) => {
                for (name, value) in table {
                    match (name.get_ref().as_ref(), value.get_ref()) {
                        ("names", _) => {}
                        ("combine", DeValue::String(word)) if input.combine() != Combine::Growth => match word.as_ref()
                        {
                            "sum" => row.combine = Combine::Sum,
                            "max" => row.combine = Combine::Max,
                            word => self.wrong(origin, format!("`{field}`: \"{word}\" is neither \"sum\" nor \"max\"")),
                        },
                        ("combine", _) if input.combine() == Combine::Growth => {
                            self.wrong(
                                origin,
                                format!("`{field}` is a counter, whose growth adds up: leave out `combine`"),
                            );
                        }
                        ("scale", value) => match number(value).filter(|scale| scale.is_finite() && *scale > 0.0) {
                            Some(scale) => row.scale = scale,
                            None => self.wrong(origin, format!("`{field}`: `scale` has to be a number above 0")),
                        },
                        (name, _) => {
                            let proposal = did_you_mean(name, ["names", "combine", "scale"].into_iter());
                            self.wrong(origin, format!("`{field}`: unknown or wrong `{name}`{proposal}"));
                        }
                    }
                }
                table.get("names").map(Spanned::get_ref)
            }
            value => Some(value),
        };
        let texts = match names {
            Some(DeValue::String(name)) => Some(vec![name.as_ref()]),
            Some(DeValue::Array(items)) => items.iter().map(|item| item.get_ref().as_str()).collect(),
            _ => None,
        };
        let Some(texts) = texts.filter(|texts| (1..=NAMES_MAX).contains(&texts.len())) else {
            let text = format!(
                "`{field}` has to be the name of a series, a list of 1 to {NAMES_MAX} of them, newest first, or {{ names = \
                 [\"…\"], combine = \"max\", scale = 0.01 }}"
            );
            self.wrong(origin, text);
            return None;
        };
        for text in texts {
            match series(text) {
                // With or without: exporters differ.
                Ok(name) if row.combine == Combine::Growth => {
                    row.names.push(name.strip_suffix("_total").unwrap_or(&name).to_owned());
                }
                Ok(name) => row.names.push(name),
                Err(text) => self.wrong(origin, format!("`{field}`: {text}")),
            }
        }
        (!row.names.is_empty()).then_some(row)
    }
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Integer(number) => number.as_str().parse().ok(),
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => None,
    }
}

/// `NAME` or `NAME{label="value"}`.
fn series(text: &str) -> Result<String, String> {
    let is_name = |name: &str, also: &str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || also.contains(c);
        name.starts_with(|c: char| !c.is_ascii_digit()) && name.chars().all(is_part)
    };
    let (name, label) = text.split_once('{').map_or((text, None), |(name, label)| (name, Some(label)));
    let label_fits = label.is_none_or(|label| {
        let parts = label.strip_suffix("\"}").and_then(|label| label.split_once("=\""));
        parts.is_some_and(|(name, value)| is_name(name, "") && !value.contains(['"', '\\', '\n', '{', '}']))
    });
    if text.len() <= NAME_BYTES_MAX && is_name(name, ":") && label_fits {
        return Ok(text.to_owned());
    }
    Err(format!("\"{}\" is no series: write NAME or NAME{{label=\"value\"}}", text.escape_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Machine, Sources, Targets};

    fn load(text: &str) -> Result<Config, Mistakes> {
        let machine = Machine { hostname: "host".into(), cores: 2 };
        Config::load(&Sources::of_text("snapgate.toml", text, machine), Targets::Required)
    }

    const TARGET: &str = "[[targets]]\nurl = \"http://127.0.0.1:1\"\n";

    #[test]
    fn an_engine_of_ones_own_is_read_and_shown_so_that_it_can_be_read_again() {
        let text = format!(
            "{TARGET}engine = \"mine\"\n[fleet]\nengine = \"tgi\"\n[[engines]]\nname = \"mine\"\nwaiting = \"queue\"\n\
             kv_cache_usage = {{ names = [\"kv{{pool=\\\"full\\\"}}\", \"kv_percent\"], combine = \"max\", scale = 0.01 }}\n\
             tokens = [\"made_total\"]\nqueue_time = {{ header = \"X-Wait\", unit = \"s\" }}\n"
        );
        let config = load(&text).unwrap();
        assert_eq!((config.fleet.engine.as_str(), config.fleet.targets[0].engine.as_deref()), ("tgi", Some("mine")));
        let rows = &config.fleet.engines[0].rows;
        assert_eq!(
            rows[0],
            Row { input: Input::Waiting, combine: Combine::Sum, scale: 1.0, names: vec!["queue".into()] }
        );
        assert_eq!((rows[1].scale, rows[1].names[0].as_str()), (0.01, "kv{pool=\"full\"}"));
        assert_eq!(rows[2].names, ["made"]);
        let queue_time = QueueTime { header: HeaderName::from_static("x-wait"), unit: TimeUnit::Seconds };
        assert_eq!(config.fleet.engines[0].queue_time, Some(queue_time));
        let again = load(&config.text()).unwrap();
        assert_eq!(again.fleet.engines, config.fleet.engines);
    }

    #[test]
    fn every_mistake_is_named() {
        for (entry, part) in [
            ("waiting = \"q\"", "needs a `name`"),
            ("name = \"e\"", "at least one of waiting, running"),
            ("name = \"vllm\"\nwaiting = \"q\"", "a name of snapgate's own"),
            ("name = \"e\"\nwaitin = \"q\"", "unknown field `waitin`: did you mean `waiting`?"),
            ("name = \"e\"\nwaiting = 3", "has to be the name of a series"),
            ("name = \"e\"\nwaiting = []", "has to be the name of a series"),
            ("name = \"e\"\nwaiting = \"a b\"", "is no series"),
            ("name = \"e\"\nwaiting = \"a{b=c}\"", "is no series"),
            ("name = \"e\"\nwaiting = { names = \"a\", combine = \"mean\" }", "neither \"sum\" nor \"max\""),
            ("name = \"e\"\ntokens = { names = \"a\", combine = \"sum\" }", "leave out `combine`"),
            ("name = \"e\"\nwaiting = { names = \"a\", scale = -1 }", "a number above 0"),
            ("name = \"e\"\nwaiting = { names = \"a\", scales = 1 }", "did you mean `scale`?"),
            ("name = \"e\"\nprefix_cache_hits = \"a\"", "go together"),
            ("name = \"e\"\nqueue_time = { header = \"w\", unit = \"s\" }", "at least one of waiting, running"),
            ("name = \"e\"\nwaiting = \"a\"\nqueue_time = \"w\"", "`queue_time` has to be like"),
            ("name = \"e\"\nwaiting = \"a\"\nqueue_time = { header = \"w w\", unit = \"s\" }", "has to be like"),
            ("name = \"e\"\nwaiting = \"a\"\nqueue_time = { header = \"w\", unit = \"min\" }", "units are us, ms, s"),
            ("name = \"e\"\nwaiting = \"a\"\n[[engines]]\nname = \"e\"\nwaiting = \"a\"", "already taken"),
        ] {
            let text = load(&format!("{TARGET}[[engines]]\n{entry}\n")).unwrap_err().to_string();
            assert!(text.contains(part), "{entry}: {text}");
        }
        let text = load(&format!("{TARGET}engine = \"vlm\"\n[fleet]\nengine = \"none\"\n")).unwrap_err().to_string();
        assert!(text.contains("there is no engine vlm") && text.contains("there is no engine none"), "{text}");
        assert!(text.contains("there is no engine vlm: did you mean `vllm`? There are auto, "), "{text}");
        let source = "[[discovery]]\nkind = \"file\"\npath = \"t.json\"\nengine = \"vlm\"\n";
        let text = load(source).unwrap_err().to_string();
        assert!(text.contains("discovery: there is no engine vlm: did you mean `vllm`?"), "{text}");
        let broken = "[[engines]]\nname = \"e\"\nwaiting = 3\n";
        let text =
            load(&format!("{TARGET}engine = \"e\"\n[fleet]\nengine = \"none\"\n{broken}")).unwrap_err().to_string();
        assert!(text.contains("there is no engine none") && !text.contains("there is no engine e:"), "{text}");
    }
}
