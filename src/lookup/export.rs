//! `snapgate export`: a list from its first page to its last, out of a store or from a gateway.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};
use std::path::{Path, PathBuf};

use axum::extract::Query;
use axum::http::{Method, StatusCode, Uri, header};

use super::client::{Admin, FETCH_TIMEOUT, FetchError};
use super::links::encode;
use super::list::{LIMIT_MAX, ListQuery, Listing};
use super::problem::{Problem, said_of_query};
use super::shape::{Format, Layout, Shape};
use super::terminal::shown;
use crate::snapshot::{InstanceTag, Moment};
use crate::store::{ReadError, Reader};

/// Why an export ended early. What was written until then is not all.
#[derive(Debug)]
pub enum ExportError {
    /// The filters make no sense.
    Query(String),
    /// The gateway could not be asked.
    Fetch(FetchError),
    /// The gateway refused.
    Refused(Box<Problem>),
    /// The store could not be read.
    Store(ReadError),
    /// What was read could not be written.
    Write(io::Error),
    /// Somebody stopped it.
    Stopped,
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(mistake) => f.write_str(mistake),
            Self::Fetch(error) => error.fmt(f),
            Self::Refused(problem) => write!(f, "{}: {}", problem.title, problem.advice()),
            Self::Store(error) => error.fmt(f),
            Self::Write(error) => write!(f, "what was read could not be written: {error}"),
            Self::Stopped => f.write_str("stopped before all was written"),
        }
    }
}

impl std::error::Error for ExportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Query(_) | Self::Refused(_) | Self::Stopped => None,
            Self::Fetch(error) => Some(error),
            Self::Store(error) => Some(error),
            Self::Write(error) => Some(error),
        }
    }
}

/// What is exported: finished snapshots that the filters accept.
#[derive(Clone, Debug)]
pub struct Selection {
    /// As `GET /v1/snapshots` takes them, without the `?`.
    parameters: String,
    query: ListQuery,
}

impl Selection {
    /// Filters by the names and with the values that `GET /v1/snapshots` takes. `now` is for times that are relative to it.
    ///
    /// # Errors
    /// A value makes no sense.
    pub fn new(filters: &[(String, String)], now: Moment) -> Result<Self, ExportError> {
        let fixed = [("phase".to_owned(), "complete".to_owned()), ("limit".to_owned(), LIMIT_MAX.to_string())];
        let mut parameters = String::new();
        for (name, value) in filters.iter().chain(&fixed) {
            if !parameters.is_empty() {
                parameters.push('&');
            }
            encode(name, &mut parameters);
            parameters.push('=');
            encode(value, &mut parameters);
        }
        let uri: Uri = format!("/?{parameters}").parse().map_err(|error| ExportError::Query(format!("{error}")))?;
        let query =
            Query::<ListQuery>::try_from_uri(&uri).map_err(|error| ExportError::Query(said_of_query(&error)))?.0;
        query.read("", now).map_err(|error| ExportError::Query(error.to_string()))?;
        Ok(Self { parameters, query })
    }

    /// The parameters of a request for it.
    pub(super) fn parameters(&self) -> &str {
        &self.parameters
    }
}

/// Where an export goes: standard output, or a file that is there only when it is whole. A terminal gets nothing that it would
/// obey; to everything else it goes as it was recorded.
#[derive(Debug)]
pub struct Output {
    out: BufWriter<Destination>,
    is_terminal: bool,
    /// What the file is called until then, and what afterwards.
    unfinished: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug)]
enum Destination {
    Stdout(Stdout),
    File(File),
}

impl Output {
    /// A file that is no file but a pipe or a device is written as it is.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn open(file: Option<&Path>) -> io::Result<Self> {
        let Some(file) = file else {
            let out = io::stdout();
            let is_terminal = out.is_terminal();
            return Ok(Self { out: BufWriter::new(Destination::Stdout(out)), is_terminal, unfinished: None });
        };
        let whole = file.metadata().is_ok_and(|data| !data.is_file());
        let mut partial = file.as_os_str().to_owned();
        partial.push(".partial");
        let opened = if whole { File::options().write(true).open(file) } else { File::create(&partial) };
        let opened = opened.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write {}: {error}: choose another --output", file.display()))
        })?;
        let unfinished = (!whole).then(|| (partial.into(), file.to_owned()));
        Ok(Self { out: BufWriter::new(Destination::File(opened)), is_terminal: false, unfinished })
    }

    /// All was written: the file gets its name.
    ///
    /// # Errors
    /// The last of it could not be written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.out.flush()?;
        if let Some((partial, file)) = &self.unfinished {
            if let Destination::File(written) = self.out.get_ref() {
                written.sync_all()?;
            }
            fs::rename(partial, file)?;
            self.unfinished = None;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((partial, _)) = &self.unfinished {
            // Nothing is left to be told that it stays.
            fs::remove_file(partial).ok();
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_terminal {
            return self.out.write(bytes);
        }
        // Pages are written whole, so no character is cut in two.
        self.out.write_all(shown(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File(out) => out.flush(),
        }
    }
}

/// The pages of an export.
#[derive(Debug)]
pub struct Pages {
    source: Source,
    layout: Layout,
    begun: bool,
}

#[derive(Debug)]
enum Source {
    Store { reader: Reader, next: Option<Box<Listing>> },
    Gateway { admin: Box<Admin>, next: Option<String> },
}

impl Pages {
    /// Of a store, running or not. `tag` is its instance's.
    ///
    /// # Errors
    /// A value of the selection makes no sense.
    pub fn of_store(
        reader: Reader,
        tag: InstanceTag,
        selection: &Selection,
        layout: Layout,
        now: Moment,
    ) -> Result<Self, ExportError> {
        let listing =
            selection.query.read(&tag.to_string(), now).map_err(|error| ExportError::Query(error.to_string()))?;
        Ok(Self { source: Source::Store { reader, next: Some(Box::new(listing)) }, layout, begun: false })
    }

    /// Of a gateway that runs.
    pub fn of_gateway(admin: Admin, selection: &Selection, layout: Layout) -> Self {
        let shape = match layout.shape {
            Shape::Document => "document",
            Shape::Flat => "flat",
            Shape::Candidates => "candidates",
        };
        let format = match layout.format {
            Format::Json => "json",
            Format::Ndjson => "ndjson",
            Format::Csv => "csv",
        };
        let next = Some(format!("/v1/snapshots?{}&shape={shape}&format={format}", selection.parameters));
        Self { source: Source::Gateway { admin: Box::new(admin), next }, layout, begun: false }
    }

    /// Writes the next page, and says how many rows it had; `None` after the last.
    ///
    /// # Errors
    /// It could not be read or written.
    pub async fn write_next(&mut self, out: &mut dyn Write) -> Result<Option<u64>, ExportError> {
        let Some(page) = self.read_next().await? else { return Ok(None) };
        // Each page is a table of its own, but the file is to have one head.
        let head = if self.layout.format == Format::Csv { page.iter().position(|byte| *byte == b'\n') } else { None };
        let rows_from = head.map_or(0, |end| end + 1);
        let written = if self.begun { &page[rows_from..] } else { &page[..] };
        self.begun = true;
        out.write_all(written).map_err(ExportError::Write)?;
        Ok(Some(page[rows_from..].iter().filter(|byte| **byte == b'\n').count() as u64))
    }

    async fn read_next(&mut self) -> Result<Option<Vec<u8>>, ExportError> {
        match &mut self.source {
            Source::Store { reader, next } => {
                let Some(listing) = next.take() else { return Ok(None) };
                let written = listing.write(None, Some(reader), self.layout).map_err(ExportError::Store)?;
                *next = written.next.and_then(|next| listing.at(&next)).map(Box::new);
                // This thread also listens for the signal to stop.
                tokio::task::yield_now().await;
                Ok(Some(written.body))
            }
            Source::Gateway { admin, next } => {
                let Some(path) = next.take() else { return Ok(None) };
                let answer = admin.patiently(Method::GET, &path, "*/*", FETCH_TIMEOUT).await;
                let answer = answer.map_err(ExportError::Fetch)?;
                if answer.status != StatusCode::OK {
                    return Err(match admin.problem(&answer) {
                        Ok(problem) => ExportError::Refused(Box::new(problem)),
                        Err(error) => ExportError::Fetch(error),
                    });
                }
                let link = answer.headers.get(header::LINK).and_then(|link| link.to_str().ok());
                let target = link.and_then(|link| link.strip_prefix('<')?.strip_suffix(">; rel=\"next\""));
                *next = target.map(str::to_owned);
                Ok(Some(answer.body.into()))
            }
        }
    }
}
