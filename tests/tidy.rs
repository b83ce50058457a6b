//! The rules of the house that no compiler checks: who may use whom, how long a file may be, what names stand where.
//!
//! Needs nothing but the source tree, so it runs in a blink and says `file:line: what is wrong and what to do`.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Lines of a source file at most, its inline tests not counted.
const FILE_LINES_MAX: usize = 500;

/// Modules that anybody may use, because they use nobody but each other.
const LEAVES: [&str; 6] = ["snapshot", "clock", "telemetry", "tenant", "tls", "orca"];

/// Which module may use what, besides itself and the leaves: a module, or one name of it. `*` is everything.
///
/// Data flows one way; what is not here was left out on purpose. The reasons are in the design's layout section.
const EDGES: &[(&str, &[&str])] = &[
    // It knows the fleet as a list of settings.
    ("discovery", &["fleet::TargetSettings", "fleet::MetricsAt", "fleet::GpusOf", "fleet::PodGpus", "fleet::Change"]),
    ("fleet", &[]),
    ("choose", &[]),
    ("gateway", &["choose", "fleet", "ledger", "pipeline::Intake"]),
    ("ledger", &[]),
    ("pipeline", &["ledger", "store", "sink::Sink", "sink::Refusal", "sink::Taken"]),
    ("store", &["ledger::DropReason", "ledger::DropCount"]),
    ("sink", &[]),
    // What may be asked of the store: reading, and the words for having something deleted by whoever writes.
    (
        "lookup",
        &[
            "ledger",
            "store::Near",
            "store::Surroundings",
            "store::Reader",
            "store::Resolution",
            "store::ReadError",
            "store::Filter",
            "store::Erasure",
            "store::Erased",
            "store::Subject",
            "store::NotErased",
            "fleet::view",
        ],
    ),
    ("replay", &["choose", "store::Reader", "store::ReadError"]),
    ("config", &["discovery", "fleet", "gateway", "pipeline", "store", "sink", "lookup"]),
    ("demo", &["config", "app"]),
    ("app", &["*"]),
    ("cli", &["config", "demo::sim", "lookup::shape"]),
    ("commands", &["*"]),
    ("main", &["*"]),
    ("lib", &[]),
];

/// What the leaves may use of each other.
const LEAF_EDGES: &[(&str, &[&str])] = &[
    ("snapshot", &[]),
    ("clock", &["snapshot"]),
    ("telemetry", &["snapshot"]),
    ("tenant", &["snapshot"]),
    ("tls", &["telemetry"]),
    ("orca", &["snapshot"]),
];

/// Names that say nothing about what is in a file, so that everything ends up there.
const BANNED_NAMES: [&str; 5] = ["utils", "helpers", "common", "misc", "types"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a folder, sorted; hidden ones and build output are left out. None if there is no such folder.
fn files(below: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(below) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("the tree can be read").path()) {
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        let output = name.starts_with('.') || matches!(name.as_str(), "target" | "snapgate-data" | "node_modules");
        match path.is_dir() {
            true if !output => found.extend(files(&path)),
            false if !name.starts_with('.') => found.push(path),
            _ => {}
        }
    }
    found.sort();
    found
}

fn with_extension(below: &str, extension: &str) -> Vec<(String, String)> {
    let wanted =
        files(&root().join(below)).into_iter().filter(|path| path.extension().is_some_and(|it| it == extension));
    wanted.map(|path| (shown(&path), fs::read_to_string(&path).expect("it is UTF-8"))).collect()
}

/// A path as seen from the root of the project.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).expect("it is below the root").to_string_lossy().replace('\\', "/")
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text[..offset].matches('\n').count()
}

#[track_caller]
fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// The source with comments, and the contents of strings and characters, blanked: same offsets, same lines.
fn code_of(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = token_end(bytes, at);
        if let Some((from, to)) = end.blank {
            code[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        }
        at = end.next;
    }
    String::from_utf8(code).expect("whole characters were blanked")
}

/// Where the piece that begins at an offset ends, and what of it is no code.
struct Piece {
    next: usize,
    blank: Option<(usize, usize)>,
}

fn token_end(bytes: &[u8], at: usize) -> Piece {
    let rest = &bytes[at..];
    let find = |needle: &[u8], from: usize| {
        let place = rest[from.min(rest.len())..].windows(needle.len()).position(|window| window == needle);
        place.map_or(bytes.len(), |place| at + from + place + needle.len())
    };
    let all_blank = |next: usize| Piece { next, blank: Some((at, next)) };
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return all_blank(find(b"\n", 0));
    }
    if rest.starts_with(b"/*") {
        return all_blank(block_comment_end(bytes, at));
    }
    let raw = rest.iter().skip(1).take_while(|byte| **byte == b'#').count();
    if rest[0] == b'r' && !after_word && rest.get(1 + raw) == Some(&b'"') {
        let close = [b"\"".as_slice(), "#".repeat(raw).as_bytes()].concat();
        return all_blank(find(&close, 2 + raw));
    }
    if rest[0] == b'"' {
        return all_blank(quote_end(bytes, at, b'"'));
    }
    // A lifetime has no closing quote; a character is one character, or begins with a backslash.
    let character = std::str::from_utf8(&rest[1..rest.len().min(5)])
        .unwrap_or_else(|error| std::str::from_utf8(&rest[1..1 + error.valid_up_to()]).expect("valid up to there"));
    let width = character.chars().next().map_or(1, char::len_utf8);
    if rest[0] == b'\'' && (rest.get(1) == Some(&b'\\') || rest.get(1 + width) == Some(&b'\'')) {
        return all_blank(quote_end(bytes, at, b'\''));
    }
    Piece { next: at + 1, blank: None }
}

fn quote_end(bytes: &[u8], open: usize, quote: u8) -> usize {
    let mut at = open + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Block comments nest.
fn block_comment_end(bytes: &[u8], open: usize) -> usize {
    let (mut at, mut depth) = (open, 0);
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (at, depth) = (at + 2, depth + 1),
            Some(b"*/") => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Where the items under `#[cfg(test)]` stand in the code: most often the inline tests.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let mut items: Vec<Range<usize>> = Vec::new();
    for (start, _) in code.match_indices("#[cfg(test)]") {
        let item = &code[start..];
        let semicolon = item.find(';').unwrap_or(item.len());
        let is_block = item.find('{').is_some_and(|open| open < semicolon);
        let length = if is_block { block_end(item) } else { (semicolon + 1).min(item.len()) };
        if items.last().is_none_or(|last| last.end <= start) {
            items.push(start..start + length);
        }
    }
    items
}

/// The code with those items blanked.
fn without_tests(code: &str) -> String {
    let mut kept = code.to_owned();
    for item in test_items(code) {
        let blank: String = code[item.clone()].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
        kept.replace_range(item, &blank);
    }
    kept
}

/// One past the brace that closes the first one.
fn block_end(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// What a source file uses of the crate's modules, with offsets: `store::Reader`, `clock`.
///
/// Paths begin with `crate::`, with as many `super::` as the file is deep, or in the program with the crate's name.
fn uses(code: &str, depth: usize) -> Vec<(usize, String)> {
    let up = "super::".repeat(depth);
    let mut found = Vec::new();
    for prefix in ["crate::", "snapgate::", up.as_str()] {
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].chars().next_back();
            let inside_a_path = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
            let is_visibility = code[..at].ends_with("pub(in ");
            if !inside_a_path && !is_visibility {
                found.extend(leaves_of(&code[at + prefix.len()..]).into_iter().map(|path| (at, path)));
            }
        }
    }
    found
}

/// The paths that a path or a group of paths names, each cut after its second part: of `{a::{B, C}, d}` it is
/// `a::B`, `a::C`, `d`.
fn leaves_of(code: &str) -> Vec<String> {
    let code = code.trim_start();
    if let Some(group) = code.strip_prefix('{') {
        let group = &group[..block_end(code).saturating_sub(2).min(group.len())];
        return members(group).into_iter().flat_map(leaves_of).collect();
    }
    let length = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let (name, rest) = code.split_at(length);
    match rest.strip_prefix("::") {
        _ if name.is_empty() => Vec::new(),
        None => vec![name.to_owned()],
        Some(rest) => {
            let below = leaves_of(rest);
            let first = |path: &str| path.split("::").next().map(str::to_owned).unwrap_or_default();
            let below: BTreeSet<String> = below.iter().map(|path| first(path)).collect();
            match below.is_empty() {
                true => vec![name.to_owned()],
                false => below
                    .into_iter()
                    .map(|inner| if inner == "self" { name.to_owned() } else { format!("{name}::{inner}") })
                    .collect(),
            }
        }
    }
}

/// The parts of a group between commas that stand in no deeper group.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[from..]);
    parts
}

/// The module of a source file, and how many `super` lead from it to the crate's root.
fn module_of(file: &str) -> (String, usize) {
    let parts: Vec<&str> = file.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let depth = if parts.last() == Some(&"mod") { parts.len() - 1 } else { parts.len() };
    (parts[0].to_owned(), depth)
}

/// Whether a module may use this path; `None` if nobody has said what the module may use.
fn may_use(module: &str, path: &str) -> Option<bool> {
    let named = |list: &[&str]| {
        list.iter().any(|entry| *entry == "*" || path == *entry || path.starts_with(&format!("{entry}::")))
    };
    if let Some((_, allowed)) = LEAF_EDGES.iter().find(|(leaf, _)| *leaf == module) {
        return Some(named(allowed));
    }
    EDGES.iter().find(|(name, _)| *name == module).map(|(_, allowed)| named(&LEAVES) || named(allowed))
}

/// Whatever is wrong with what one file uses.
fn wrong_edges(file: &str, source: &str) -> Vec<String> {
    let (module, depth) = module_of(file);
    let code = without_tests(&code_of(source));
    let mut wrong = Vec::new();
    for (at, path) in uses(&code, depth) {
        let own = path == module || path.starts_with(&format!("{module}::"));
        let place = format!("{file}:{}", line_of(source, at));
        match may_use(&module, &path) {
            None => {
                return vec![format!(
                    "{file}: nobody has said what `{module}` may use: add it to EDGES in tests/tidy.rs"
                )];
            }
            // An exit is one file and knows no other exit.
            Some(_) if own && module == "sink" && other_exit(file, &path) => {
                wrong.push(format!("{place}: an exit must not use `{path}`"))
            }
            Some(allowed) if !own && !allowed => {
                wrong.push(format!("{place}: `{module}` must not use `{path}`; see EDGES in tests/tidy.rs"))
            }
            Some(_) => {}
        }
    }
    wrong
}

/// Whether a path leads from one exit's file to another exit's module; what `sink/mod.rs` itself defines is a type.
fn other_exit(file: &str, path: &str) -> bool {
    let own = file.trim_start_matches("src/sink/").trim_end_matches(".rs").split('/').next().unwrap_or_default();
    let target = path.trim_start_matches("sink::");
    own != "mod" && target != own && target.starts_with(|c: char| c.is_ascii_lowercase()) && target != "sink"
}

#[test]
fn modules_use_only_what_they_may() {
    let sources = with_extension("src", "rs");
    assert!(sources.len() > 10, "the sources were not found");
    // A test may build whatever its module is to be held against.
    let shipped = sources.iter().filter(|(file, _)| !file.contains("/tests/") && !file.ends_with("/tests.rs"));
    assert_none(shipped.flat_map(|(file, source)| wrong_edges(file, source)).collect());
}

#[test]
fn the_edges_say_no_to_what_is_forbidden() {
    let cases = [
        (
            "src/gateway/mod.rs",
            "use crate::store::Reader;",
            "src/gateway/mod.rs:1: `gateway` must not use `store::Reader`",
        ),
        ("src/gateway/mod.rs", "use crate::{clock, lookup};", "`gateway` must not use `lookup`"),
        (
            "src/gateway/mod.rs",
            "\nuse crate::pipeline::{Intake, worker};",
            "src/gateway/mod.rs:2: `gateway` must not use `pipeline::worker`",
        ),
        ("src/gateway/record.rs", "fn a() { super::super::store::open() }", "`gateway` must not use `store::open`"),
        ("src/ledger.rs", "use super::store;", "`ledger` must not use `store`"),
        ("src/snapshot/id.rs", "use crate::clock::Clock;", "`snapshot` must not use `clock::Clock`"),
        ("src/lookup/mod.rs", "use crate::store::{Reader, writer::Writer};", "`lookup` must not use `store::writer`"),
        ("src/sink/otlp.rs", "use crate::sink::json_log::Line;", "an exit must not use `sink::json_log`"),
        ("src/novel.rs", "use crate::clock;", "nobody has said what `novel` may use"),
        (
            "src/fleet/poll.rs",
            "#[cfg(test)]\nmod tests { use crate::store; }\nuse crate::config::Config;",
            "src/fleet/poll.rs:3: `fleet` must not use `config::Config`",
        ),
    ];
    for (file, source, expected) in cases {
        let wrong = wrong_edges(file, source);
        assert!(wrong.len() == 1 && wrong[0].contains(expected), "{source}: {wrong:?}");
    }
}

#[test]
fn the_edges_say_yes_to_what_is_allowed() {
    let cases = [
        (
            "src/gateway/mod.rs",
            "use crate::pipeline::Intake; use crate::{fleet::Fleet, snapshot::{Policy, id::SnapshotId}};",
        ),
        ("src/gateway/mod.rs", "use super::gateway::scan; use self::scan::Scanner; use crate::gateway::scan;"),
        ("src/gateway/record.rs", "use super::store; // this is gateway::store"),
        (
            "src/ledger.rs",
            "// use crate::store;\n/* crate::store /* nested */ crate::store */\nconst A: &str = \"crate::store\";",
        ),
        (
            "src/ledger.rs",
            "const A: &str = r#\"\"crate::store\"#; const B: char = '\"'; const C: &str = \"\\\"crate::store\";",
        ),
        ("src/ledger.rs", "#[cfg(test)]\nmod tests {\n use crate::store;\n}"),
        ("src/ledger.rs", "fn a<'a>(b: &'a str) -> &'a str { b } pub(crate) fn c() {}"),
        ("src/sink/otlp.rs", "use super::Sink; use crate::sink::Sink;"),
        ("src/store/mod.rs", "use crate::ledger::DropReason;"),
        ("src/app.rs", "use crate::{gateway, store};"),
    ];
    for (file, source) in cases {
        assert_eq!(wrong_edges(file, source), Vec::<String>::new(), "{source}");
    }
}

#[test]
fn every_source_file_is_documented_short_and_well_named() {
    let mut wrong = Vec::new();
    for (file, source) in with_extension("src", "rs") {
        if !source.starts_with("//! ") {
            wrong.push(format!("{file}:1: begin with a `//!` line that says what the file is for"));
        }
        let tests_only = file.ends_with("/tests.rs");
        let code = code_of(&source);
        let in_tests: usize = test_items(&code).into_iter().map(|item| code[item].lines().count()).sum();
        let lines = source.lines().count() - in_tests;
        if lines > FILE_LINES_MAX && !tests_only {
            wrong.push(format!("{file}: {lines} lines without tests are more than {FILE_LINES_MAX}: split it"));
        }
        let names = file.trim_end_matches(".rs").split('/');
        wrong.extend(
            names
                .filter(|name| BANNED_NAMES.contains(name))
                .map(|name| format!("{file}: `{name}` names nothing: put the code where its noun lives")),
        );
    }
    assert_none(wrong);
}

#[test]
fn no_gap_is_left_silently() {
    let mut wrong = Vec::new();
    // Put together here, so that this file does not find itself.
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    for folder in ["src", "tests", "benches"] {
        for (file, source) in with_extension(folder, "rs") {
            for (number, line) in source.lines().enumerate() {
                let words = || line.split(|c: char| !c.is_ascii_alphanumeric());
                wrong.extend(
                    marks
                        .iter()
                        .filter(|mark| words().any(|word| word == **mark))
                        .map(|mark| format!("{file}:{}: {mark}: finish it, or open an issue and say so", number + 1)),
                );
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn nothing_names_a_machine() {
    let home = |folder: &str, name: &str| format!("/{folder}/{name}");
    let mut forbidden = vec![home("root", ""), home("home", "")];
    forbidden.push(format!("/{}/", "Users"));
    // A root as short as `/src` is a word of its own, not a machine's path.
    if root().components().count() > 2 {
        forbidden.push(root().to_string_lossy().into_owned());
    }
    let mut wrong = Vec::new();
    for path in files(root()).into_iter().filter(|path| path.file_name().is_some_and(|name| name != "Cargo.lock")) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            let names = |needle: &String| {
                line.match_indices(needle.as_str())
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._-".contains(c)))
            };
            wrong.extend(
                forbidden
                    .iter()
                    .filter(|needle| names(needle))
                    .map(|needle| format!("{}:{}: `{needle}` is a path of one machine", shown(&path), number + 1)),
            );
        }
    }
    assert_none(wrong);
}

#[test]
fn every_lint_and_every_ban_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut section = "";
    let mut wrong = Vec::new();
    let mut lints = 0;
    for (number, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        } else if section.starts_with("[lints") && line.contains('=') {
            lints += 1;
            if line.split_once('#').is_none_or(|(_, reason)| reason.trim().is_empty()) {
                wrong.push(format!("Cargo.toml:{}: say after a # why the lint is on", number + 1));
            }
        }
    }
    assert!(lints > 5, "the lints were not found");
    let bans = fs::read_to_string(root().join("clippy.toml")).unwrap();
    for (number, line) in bans.lines().enumerate().filter(|(_, line)| line.contains("path =")) {
        if !line.contains("reason = \"") {
            wrong.push(format!("clippy.toml:{}: say what to use instead", number + 1));
        }
    }
    assert_none(wrong);
}

/// The metrics of the published registry, which another test holds to the code.
fn registered() -> BTreeSet<String> {
    let registry = fs::read_to_string(root().join("otel/metrics.csv")).expect("it is published");
    registry.lines().skip(1).filter_map(|line| line.split(',').next()).map(str::to_owned).collect()
}

/// The metric of a series: a histogram has three.
fn family(series: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end)).unwrap_or(series)
}

/// Whatever looks like a name of one of our series.
fn series_in(text: &str) -> Vec<(usize, &str)> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let name = |at: usize| &text[at..at + text[at..].find(|c| !is_part(c)).unwrap_or(text.len() - at)];
    let begins = |at: usize| !text[..at].ends_with(is_part);
    text.match_indices("snapgate_").filter(|(at, _)| begins(*at)).map(|(at, _)| (at, name(at))).collect()
}

#[test]
fn dashboards_and_alerts_are_about_metrics_that_exist() {
    let registered = registered();
    assert!(registered.contains("snapgate_requests_total"), "{registered:?}");
    let mut wrong = Vec::new();
    for (folder, extension) in [("dashboards", "json"), ("dashboards", "yaml"), ("otel", "yaml")] {
        for (file, text) in with_extension(folder, extension) {
            let unknown = series_in(&text)
                .into_iter()
                .filter(|(_, series)| !registered.contains(*series) && !registered.contains(family(series)));
            wrong.extend(unknown.map(|(at, series)| {
                format!("{file}:{}: otel/metrics.csv has no metric `{series}`", line_of(&text, at))
            }));
        }
    }
    assert_none(wrong);
}

#[test]
fn series_are_found_in_a_dashboard() {
    let text =
        r#"{"expr":"rate(snapgate_requests_total{fault=\"none\"}[1m]) / snapgate_store_bytes + other_snapgate_x"}"#;
    let found: Vec<_> = series_in(text).into_iter().map(|(_, series)| family(series)).collect();
    assert_eq!(found, ["snapgate_requests_total", "snapgate_store_bytes"]);
}

#[test]
fn what_a_newcomer_looks_for_is_there() {
    let mut wrong = Vec::new();
    for (file, word) in [
        ("README.md", "cargo run"),
        ("CHANGELOG.md", "## [Unreleased]"),
        ("LICENSE", "Apache License"),
        ("deny.toml", "[licenses]"),
    ] {
        match fs::read_to_string(root().join(file)) {
            Ok(text) if text.contains(word) => {}
            Ok(_) => wrong.push(format!("{file}: has no `{word}`")),
            Err(error) => wrong.push(format!("{file}: {error}")),
        }
    }
    for script in ["tests/run", ".ci/run"] {
        match fs::read_to_string(root().join(script)) {
            Ok(text) if text.starts_with("#!/usr/bin/env bash\n") && text.contains("set -euo pipefail") => {}
            Ok(_) => wrong.push(format!("{script}: begin with #!/usr/bin/env bash and set -euo pipefail")),
            Err(error) => wrong.push(format!("{script}: {error}")),
        }
        #[cfg(unix)]
        if fs::metadata(root().join(script))
            .is_ok_and(|data| std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o111 == 0)
        {
            wrong.push(format!("{script}: is not executable"));
        }
    }
    assert_none(wrong);
}

/// Names of all tests: functions that follow an attribute which ends in `test]` or has arguments after `test(`.
fn tests_there_are() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, source) in ["src", "tests"].into_iter().flat_map(|folder| with_extension(folder, "rs")) {
        for (at, _) in source.match_indices("test") {
            let rest = &source[at + "test".len()..];
            let is_attribute = rest.starts_with("]\n") || rest.starts_with("(");
            let Some(function) = rest.find("fn ").filter(|_| is_attribute) else { continue };
            let name = &rest[function + "fn ".len()..];
            names.insert(name[..name.find('(').unwrap_or(0)].to_owned());
        }
    }
    names
}

#[test]
fn every_threat_has_a_test_that_exists() {
    let file = "docs/threat-model.md";
    let text = fs::read_to_string(root().join(file)).unwrap();
    let (tests, mut threats, mut wrong) = (tests_there_are(), 0, Vec::new());
    let (mut in_table, mut say) = (false, |number, what| wrong.push(format!("{file}:{number}: {what}")));
    for (number, line) in (1..).zip(text.lines()) {
        if line == "| threat | answer | test |" {
            in_table = true;
        } else if !line.starts_with('|') {
            in_table = false;
        } else if in_table && !line.starts_with("|---") {
            threats += 1;
            let held_by = line.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
            let mut named = held_by.split('`').skip(1).step_by(2).peekable();
            if named.peek().is_none() {
                say(number, "the threat has no test: write one, or move it to the end".to_owned());
            }
            named
                .filter(|name| !tests.contains(*name))
                .for_each(|name| say(number, format!("no test is called `{name}`")));
        }
    }
    assert!(threats > 30, "the threats were not found");
    assert_none(wrong);
}

#[test]
fn the_toolchain_is_the_one_the_manifest_promises() {
    let value = |file: &str, key: &str| {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let line =
            text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{file} has no {key}")).to_owned();
        line.split('"').nth(1).expect("a quoted value").to_owned()
    };
    let (channel, version) = (value("rust-toolchain.toml", "channel"), value("Cargo.toml", "rust-version"));
    assert!(channel == version || channel.starts_with(&format!("{version}.")), "{channel} is not {version}");
}
