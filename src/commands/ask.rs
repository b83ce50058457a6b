//! The commands that ask a gateway, or its store, for what was recorded.

use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{complain, failed, misused, print, until_stopped};
use crate::cli::{AdminArgs, DeleteArgs, Exit, ExportArgs, LookupArgs, TailArgs};
use crate::clock::Clock;
use crate::lookup::client::{self, Admin, Fetched, Subject};
use crate::lookup::export::{ExportError, Output, Pages, Selection};
use crate::lookup::resolve::{self, Matches};
use crate::lookup::shape::{self, Layout, NoColumns, Shape};
use crate::lookup::tail::{self, TailError};
use crate::lookup::terminal::shown;
use crate::lookup::{Key, Links, Problem, Width, look_in, render};
use crate::snapshot::Moment;
use crate::store::{DataDir, Reader};

/// Columns of an explanation when the terminal does not say how many it has.
const COLUMNS: usize = 100;

/// How often a long export says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

pub(super) fn lookup(args: &LookupArgs) -> Result<Exit, Exit> {
    let width = args.around.as_deref().map(str::parse).transpose();
    let width = width.map_err(|error| misused(&format_args!("--around {error}")))?;
    match &args.data_dir {
        Some(dir) => lookup_in_store(dir, args, width),
        None => lookup_at_gateway(args),
    }
}

fn lookup_at_gateway(args: &LookupArgs) -> Result<Exit, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    let admin = admin(&args.gateway)?;
    let fetched = client::fetch(&admin, &args.key, args.around.as_deref());
    match runtime.block_on(fetched).map_err(|error| failed(&error))? {
        Fetched::One(found) if args.json => print(&format!("{}\n", found.json())),
        Fetched::One(found) => {
            let extras = render::extras(&found.links, found.around.as_ref(), COLUMNS);
            print(&(render::render_seen(&found.document(), found.sight, COLUMNS) + &extras))
        }
        Fetched::Several { documents, .. } if args.json => {
            print(&documents.iter().map(|document| format!("{}\n", document.json())).collect::<String>())
        }
        Fetched::Several { documents, complete } => {
            let documents: Vec<_> = documents.iter().map(client::FetchedDocument::document).collect();
            print(&render::render_matches(&documents, complete, COLUMNS))
        }
        Fetched::Problem(problem) => nothing(&problem, args.json),
    }
}

fn lookup_in_store(dir: &Path, args: &LookupArgs, width: Option<Width>) -> Result<Exit, Exit> {
    let reader = Reader::open(dir).map_err(|error| failed(&error))?;
    let tag = DataDir::open_read_only(dir).map_err(|error| failed(&error))?.tag();
    let key = match Key::parse(&args.key) {
        Ok(key) => key,
        Err(error) => return nothing(&Problem::malformed_key(error), args.json),
    };
    let answer = resolve::search(None, Some(&reader), &key, Clock::start().now()).map_err(|error| failed(&error))?;
    let (found, complete) = match answer {
        Ok(Matches::One(found)) => (vec![found], true),
        Ok(Matches::Several { found, complete }) => (found, complete),
        Err(absence) => return nothing(&Problem::absent(&absence, &key, tag), args.json),
    };
    let around = match (&found[..], width) {
        (_, None) => None,
        ([found], Some(width)) if complete => {
            Some(look_in(&reader, &found.record, width).map_err(|error| failed(&error))?)
        }
        _ => return Err(misused(&"--around goes with one request, and several bear this key: give one of their IDs")),
    };
    let documents: Vec<_> = found.iter().map(resolve::Found::document).collect();
    match &documents[..] {
        documents if args.json => {
            let mut lines = Vec::new();
            for document in documents {
                document.write(&mut lines);
                if let Some(around) = &around {
                    // Beside the document's own keys, as a gateway answers.
                    lines.pop();
                    lines.extend(format!(",\"around\":{}}}", serde_json::json!(around)).bytes());
                }
                lines.push(b'\n');
            }
            print(&String::from_utf8_lossy(&lines))
        }
        [document] => {
            let extras = render::extras(&Links::default().of(document), around.as_ref(), COLUMNS);
            print(&(render::render(document, COLUMNS) + &extras))
        }
        documents => print(&render::render_matches(documents, complete, COLUMNS)),
    }
}

fn admin(args: &AdminArgs) -> Result<Admin, Exit> {
    let token = args.token();
    Admin::new(&args.admin, token.as_ref().map(|token| token.expose()), &args.tls()).map_err(|error| failed(&error))
}

/// Filters that make no sense are a wrong command line.
fn selection(filters: &[(String, String)], now: Moment) -> Result<Selection, Exit> {
    Selection::new(filters, now).map_err(|error| misused(&error))
}

pub(super) fn tail(args: &TailArgs) -> Result<Exit, Exit> {
    let selection = selection(&args.filters.parameters(), Clock::start().now())?;
    let admin = admin(&args.gateway)?;
    let (runtime, stopped) = until_stopped().map_err(|error| failed(&error))?;
    let show = |found: &client::FetchedDocument| {
        let line = if args.json { found.json().to_owned() } else { render::line(&found.document()) };
        let mut out = io::stdout().lock();
        let line = if out.is_terminal() { shown(&line) } else { line.as_str().into() };
        writeln!(out, "{line}").and_then(|()| out.flush())
    };
    let following = tail::tail(&admin, &selection, show, |note| complain(note));
    let ended = runtime.block_on(async {
        tokio::select! {
            error = following => Err(error),
            () = stopped => Ok(Exit::Success),
        }
    });
    ended.or_else(|error| match error {
        // Who reads has gone, and so may we.
        TailError::Write(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Success),
        error => Err(failed(&error)),
    })
}

pub(super) fn export(args: &ExportArgs) -> Result<Exit, Exit> {
    if args.columns {
        return match args.shape.unwrap_or(Shape::Flat) {
            Shape::Document => Err(misused(&NoColumns)),
            shape => print(&shape::columns_page(shape)),
        };
    }
    let layout = Layout::new(args.shape, args.format()).map_err(|error| misused(&error))?;
    let now = Clock::start().now();
    let selection = selection(&args.parameters(), now)?;
    let mut pages = match &args.data_dir {
        None => Pages::of_gateway(admin(&args.gateway)?, &selection, layout),
        Some(dir) => {
            let reader = Reader::open(dir).map_err(|error| failed(&error))?;
            let tag = DataDir::open_read_only(dir).map_err(|error| failed(&error))?.tag();
            Pages::of_store(reader, tag, &selection, layout, now).map_err(|error| misused(&error))?
        }
    };
    let (runtime, stopped) = until_stopped().map_err(|error| failed(&error))?;
    let mut output = Output::open(args.output.as_deref()).map_err(|error| failed(&error))?;
    let exported = runtime.block_on(async {
        tokio::select! {
            rows = write_all(&mut pages, &mut output) => rows,
            () = stopped => Err(ExportError::Stopped),
        }
    });
    match exported.and_then(|rows| output.finish().map(|()| rows).map_err(ExportError::Write)) {
        Ok(rows) => {
            if let Some(file) = &args.output {
                complain(&format_args!("{rows} rows are in {}", file.display()));
            }
            Ok(Exit::Success)
        }
        // Who reads has gone, as `head` does, with all it wants.
        Err(ExportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Success),
        Err(error) => Err(failed(&error)),
    }
}

/// Writes page after page, and says now and then how far it is.
async fn write_all(pages: &mut Pages, out: &mut Output) -> Result<u64, ExportError> {
    let (mut rows, mut said) = (0, Instant::now());
    while let Some(more) = pages.write_next(out).await? {
        rows += more;
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            complain(&format_args!("{rows} rows so far"));
        }
    }
    Ok(rows)
}

/// Nothing was found: the reason goes where the answer would have gone, and the exit code says so.
fn nothing(problem: &Problem, json: bool) -> Result<Exit, Exit> {
    if json {
        print(&format!("{}\n", serde_json::json!(problem)))?;
    } else {
        let advised = Problem { detail: problem.advice().to_owned(), ..problem.clone() };
        print(&render::problem(&advised, COLUMNS))?;
    }
    Ok(Exit::Failure)
}

pub(super) fn delete(args: &DeleteArgs) -> Result<Exit, Exit> {
    let subjects = subjects(args)?;
    let admin = admin(&args.gateway)?;
    if !args.yes {
        confirm(&subjects, &args.gateway.admin)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    let mut exit = Exit::Success;
    for subject in &subjects {
        match runtime.block_on(client::delete(&admin, subject)).map_err(|error| failed(&error))? {
            Ok(deleted) if args.json => print(&format!("{}\n", serde_json::json!(deleted)))?,
            Ok(deleted) => print(&deleted.render())?,
            // Nothing is there of this one: the others are wanted gone all the same.
            Err(problem) if problem.status == 404 => {
                complain(&format_args!("{subject}: {}: {}", problem.title, problem.detail));
                exit = Exit::Failure;
                exit
            }
            Err(problem) => return Err(failed(&format_args!("{}: {}", problem.title, problem.advice()))),
        };
    }
    Ok(exit)
}

/// All that is to be deleted; a single one that makes no sense, and nothing is.
fn subjects(args: &DeleteArgs) -> Result<Vec<Subject>, Exit> {
    if let Some(tenant) = &args.tenant {
        return Ok(vec![Subject::Tenant(tenant.clone())]);
    }
    let id = |text: &String| Key::parse(text).ok().and_then(|key| key.id()).map(Subject::Id);
    let subject =
        |text| id(text).ok_or_else(|| misused(&format_args!("{text:?} is no snapshot ID: nothing was deleted")));
    args.ids.iter().map(subject).collect()
}

/// Asks on the terminal whether it is meant.
fn confirm(subjects: &[Subject], admin: &str) -> Result<(), Exit> {
    if !io::stdin().is_terminal() {
        return Err(misused(&"nobody can be asked here whether that is meant: say so with --yes"));
    }
    let what = match subjects {
        [subject] => subject.to_string(),
        subjects => format!("{} snapshots", subjects.len()),
    };
    // A question that cannot be written is answered by whoever knows what was typed.
    write!(io::stderr(), "delete {what} at {admin}? There is no way back. Type yes: ").ok();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| failed(&error))?;
    if answer.trim() == "yes" { Ok(()) } else { Err(failed(&"nothing was deleted")) }
}
