//! The tour: one request as a person would make it, and what its snapshot ID tells afterwards.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

/// How long each of the tour's requests may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest answer the tour reads.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Columns of the narrowest terminal the tour is meant for.
const COLUMNS: usize = 80;

/// The response headers worth showing, in this order.
const SHOWN_HEADERS: [&str; 3] = [SNAPSHOT_ID, "x-request-id", "target-pod"];

const SNAPSHOT_ID: &str = "x-snapshot-id";

const QUESTION: &str = "Why did my request go where it went?";

/// Where the tour goes.
#[derive(Clone, Debug)]
pub struct TourSettings {
    /// The gateway's data listener.
    pub data: SocketAddr,
    /// The gateway's admin listener.
    pub admin: SocketAddr,
    /// The model to ask.
    pub model: String,
    /// How this program is called from a shell.
    pub program: String,
    /// Where the gateway's records are.
    pub data_dir: PathBuf,
    /// The gateway ends with the tour, so that nothing can be tried at it afterwards.
    pub once: bool,
    /// Whether headings are in bold: set it when the output is a terminal.
    pub colour: bool,
}

/// Why the tour ended early.
#[derive(Debug)]
pub enum TourError {
    /// A request got no answer.
    Unanswered {
        /// What was asked for.
        url: String,
        /// Why there was none.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A request got another answer than a success.
    Refused {
        /// What was asked for.
        url: String,
        /// The answer's status.
        status: StatusCode,
        /// The answer's text.
        text: String,
    },
    /// The gateway's answer has no snapshot ID.
    NoSnapshotId,
    /// The output could not be written.
    Output(io::Error),
}

impl fmt::Display for TourError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered { url, .. } => write!(f, "{url} gave no answer; is the gateway running?"),
            Self::Refused { url, status, text } => write!(f, "{url} answered {status}: {text}"),
            Self::NoSnapshotId => write!(f, "the answer has no {SNAPSHOT_ID} header; is it a snapgate that answered?"),
            Self::Output(_) => f.write_str("the tour could not be written to its output"),
        }
    }
}

impl Error for TourError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unanswered { source, .. } => Some(source.as_ref()),
            Self::Output(error) => Some(error),
            Self::Refused { .. } | Self::NoSnapshotId => None,
        }
    }
}

impl From<io::Error> for TourError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Makes one request, shows it and what came back, resolves its snapshot and shows that, and says what to try next.
/// Answers the snapshot's ID.
pub async fn run(settings: &TourSettings, out: &mut (dyn Write + Send)) -> Result<String, TourError> {
    let guide = Guide {
        data: format!("http://{}", reachable(settings.data)),
        admin: format!("http://{}", reachable(settings.admin)),
        program: settings.program.clone(),
        data_dir: quoted(&settings.data_dir),
        colour: settings.colour,
        client: Client::builder(TokioExecutor::new()).build_http(),
    };
    let id = guide.ask(&settings.model, out).await?;
    guide.show_snapshot(&id, out).await?;
    guide.show_next_steps(settings.once, &id, out)?;
    Ok(id)
}

/// How to call this program again, from wherever: by its name if it was found by that, else by its whole path.
pub fn program() -> String {
    let typed = std::env::args_os().next().map(PathBuf::from).unwrap_or_else(|| "snapgate".into());
    let found = typed.components().count() == 1;
    let path = if found { Ok(typed.clone()) } else { std::env::current_exe() };
    quoted(&path.unwrap_or(typed))
}

/// As a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// An address that listens everywhere is reached on the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

struct Guide {
    /// The data listener's URL, without a path.
    data: String,
    /// The admin listener's URL, without a path.
    admin: String,
    program: String,
    data_dir: String,
    colour: bool,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Guide {
    async fn ask(&self, model: &str, out: &mut (dyn Write + Send)) -> Result<String, TourError> {
        let url = format!("{}/v1/chat/completions", self.data);
        let model = Value::from(model);
        let head = format!(r#"{{"model":{model},"stream":true,"max_tokens":48,"#);
        let messages = format!(r#""messages":[{{"role":"user","content":"{QUESTION}"}}]}}"#);
        self.heading("One request, as a person would make it", out)?;
        writeln!(out, "  curl -iN {url} \\")?;
        writeln!(out, "    -H 'content-type: application/json' \\")?;
        writeln!(out, "    -d '{head}\n         {messages}'\n")?;
        out.flush()?;
        let request = Request::post(&url).header(CONTENT_TYPE, "application/json");
        let answer = self.fetch(&url, request, (head + &messages).into()).await?;
        writeln!(out, "  {:?} {}", answer.version(), answer.status())?;
        for name in SHOWN_HEADERS {
            if let Some(value) = text_of(answer.headers(), name) {
                writeln!(out, "  {}: {value}", self.bold(name))?;
            }
        }
        writeln!(out)?;
        for line in wrapped(&said(answer.body()), COLUMNS - 4) {
            writeln!(out, "  {line}")?;
        }
        text_of(answer.headers(), SNAPSHOT_ID).map(str::to_owned).ok_or(TourError::NoSnapshotId)
    }

    async fn show_snapshot(&self, id: &str, out: &mut (dyn Write + Send)) -> Result<(), TourError> {
        // The record is stored moments after the answer's end; the lookup waits for it.
        let url = format!("{}/v1/snapshots/{id}?wait=5s", self.admin);
        let request = |accept| Request::builder().method(Method::GET).uri(&url).header(ACCEPT, accept);
        let text = self.fetch(&url, request("text/plain"), Bytes::new()).await?;
        self.heading("What the gateway saw, resolved from that ID", out)?;
        writeln!(out, "{}", String::from_utf8_lossy(text.body()).trim_end())?;
        let json = self.fetch(&url, request("application/json"), Bytes::new()).await?;
        writeln!(out, "\n  The whole snapshot is a JSON document of {} bytes.", json.body().len())?;
        Ok(())
    }

    fn show_next_steps(&self, once: bool, id: &str, out: &mut (dyn Write + Send)) -> Result<(), TourError> {
        let (admin, program, data_dir) = (&self.admin, &self.program, &self.data_dir);
        self.heading("What to try next", out)?;
        if once {
            writeln!(out, "  run `{program} demo` and resolve an ID yourself")?;
            return Ok(());
        }
        for (why, command) in [
            ("this snapshot again, as a person reads it", format!("{program} lookup --admin {admin} {id}")),
            ("from the files alone, gateway or not", format!("{program} lookup --data-dir {data_dir} {id}")),
            ("and as a program does", format!("curl {admin}/v1/snapshots/{id}")),
            ("the others as they end", format!("{program} tail --admin {admin}")),
            ("what the gateway knows of each target now", format!("curl -H 'accept: text/plain' {admin}/v1/fleet")),
            ("what the gateway counts about itself", format!("curl {admin}/metrics")),
        ] {
            writeln!(out, "  # {why}\n  {command}")?;
        }
        writeln!(out)?;
        out.flush()?;
        Ok(())
    }

    /// A successful answer, whole.
    async fn fetch(
        &self,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Bytes>, TourError> {
        let unanswered = |source| TourError::Unanswered { url: url.to_owned(), source };
        let request = request.body(Full::new(body)).map_err(|error| unanswered(error.into()))?;
        let exchange = async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        let answer =
            timeout(STEP_TIMEOUT, exchange).await.map_err(|error| unanswered(error.into()))?.map_err(unanswered)?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            status => {
                let text = String::from_utf8_lossy(answer.body()).trim().to_owned();
                Err(TourError::Refused { url: url.to_owned(), status, text })
            }
        }
    }

    fn heading(&self, words: &str, out: &mut (dyn Write + Send)) -> io::Result<()> {
        let line = "─".repeat(COLUMNS - 5 - words.chars().count());
        writeln!(out, "\n── {} {line}\n", self.bold(words))
    }

    fn bold(&self, words: &str) -> String {
        if self.colour { format!("\x1b[1m{words}\x1b[0m") } else { words.to_owned() }
    }
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The text of a streamed chat answer.
fn said(stream: &[u8]) -> String {
    let stream = String::from_utf8_lossy(stream);
    let mut said = String::new();
    for data in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
        // The last event is no JSON.
        let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
        said.push_str(event.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or_default());
    }
    said
}

/// Lines of at most so many letters, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::Path;
    use axum::routing::{get, post};

    const ID: &str = "019ab3c2d1e0a7f1c0ffee0123456789";

    /// A gateway as the tour sees it, whose answers come from where the test says.
    fn gateway(headers: &'static [(&'static str, &'static str)], snapshot: StatusCode) -> Router {
        let chat = move |body: String| async move {
            let asked: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(asked["messages"][0]["content"], QUESTION);
            assert_eq!(asked["model"], "a \"model\"");
            let headers: HeaderMap =
                headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            let event =
                |text: &str| format!("data: {}\n\n", serde_json::json!({"choices": [{"delta": {"content": text}}]}));
            (headers, [event("It had"), event(" room."), "data: [DONE]\n\n".to_owned()].concat())
        };
        let lookup = move |Path(id): Path<String>, headers: HeaderMap| async move {
            assert_eq!(id, ID);
            match text_of(&headers, "accept") {
                Some("text/plain") => (snapshot, "completed at vllm-2".to_owned()),
                _ => (snapshot, "{}".repeat(617)),
            }
        };
        Router::new().route("/v1/chat/completions", post(chat)).route("/v1/snapshots/{id}", get(lookup))
    }

    fn anywhere() -> TourSettings {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        TourSettings {
            data: nobody,
            admin: nobody,
            model: "m".to_owned(),
            program: "snapgate".to_owned(),
            data_dir: "a b".into(),
            once: false,
            colour: false,
        }
    }

    /// What the tour wrote and how it ended, with the gateway's address in the text made plain.
    async fn tour(gateway: Router, once: bool) -> (String, Result<String, TourError>) {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings =
            TourSettings { data: address, admin: address, model: "a \"model\"".to_owned(), once, ..anywhere() };
        let mut out = Vec::new();
        let result = tokio::select! {
            result = run(&settings, &mut out) => result,
            served = async { axum::serve(listener, gateway).await } => panic!("the gateway ended: {served:?}"),
        };
        (String::from_utf8(out).unwrap().replace(&address.to_string(), "ADDRESS"), result)
    }

    #[tokio::test]
    async fn it_shows_the_request_its_headers_its_snapshot_and_what_to_try() {
        let headers =
            &[("x-snapshot-id", ID), ("x-request-id", "mine"), ("target-pod", "vllm-2"), ("server", "hidden")];
        let (shown, result) = tour(gateway(headers, StatusCode::OK), false).await;
        assert_eq!(result.unwrap(), ID);
        for part in [
            "  curl -iN http://ADDRESS/v1/chat/completions \\\n",
            "  HTTP/1.1 200 OK\n  x-snapshot-id: 019ab3c2d1e0a7f1c0ffee0123456789\n  x-request-id: mine\n  target-pod: vllm-2\n\n",
            "\n  It had room.\n",
            "\ncompleted at vllm-2\n",
            "JSON document of 1234 bytes",
            "  snapgate lookup --admin http://ADDRESS 019ab3c2d1e0a7f1c0ffee0123456789\n",
            "  curl http://ADDRESS/v1/snapshots/019ab3c2d1e0a7f1c0ffee0123456789\n",
            "  snapgate lookup --data-dir 'a b' 019ab3c2d1e0a7f1c0ffee0123456789\n",
            "  snapgate tail --admin http://ADDRESS\n",
            "  curl -H 'accept: text/plain' http://ADDRESS/v1/fleet\n",
            "  curl http://ADDRESS/metrics\n",
        ] {
            assert!(shown.contains(part), "{part:?} is missing in:\n{shown}");
        }
        assert!(!shown.contains("hidden") && !shown.contains('\x1b'), "{shown}");
        let widest = shown.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{widest:?} columns:\n{shown}");
    }

    #[tokio::test]
    async fn nothing_is_proposed_that_is_gone_when_it_is_read() {
        let (shown, result) = tour(gateway(&[("x-snapshot-id", ID)], StatusCode::OK), true).await;
        assert_eq!(result.unwrap(), ID);
        let (_, next) = shown.split_once("What to try next").unwrap();
        assert!(next.ends_with("\n  run `snapgate demo` and resolve an ID yourself\n"), "{next}");
        assert!(!next.contains("http"), "{next}");
    }

    #[tokio::test]
    async fn without_an_id_or_a_snapshot_it_fails_and_says_why() {
        let (_, result) = tour(gateway(&[], StatusCode::OK), false).await;
        assert!(matches!(&result, Err(TourError::NoSnapshotId)), "{result:?}");
        let (_, result) = tour(gateway(&[("x-snapshot-id", ID)], StatusCode::NOT_FOUND), false).await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains(ID) && error.contains("404") && error.contains("completed at"), "{error}");
    }

    #[tokio::test]
    async fn a_gateway_that_is_not_there_is_named() {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let settings = TourSettings { data: nobody, admin: nobody, colour: true, ..anywhere() };
        let error = run(&settings, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("http://127.0.0.1:1/v1/chat/completions"), "{error}");
        assert!(error.source().is_some());
    }

    #[test]
    fn a_path_is_typed_as_a_shell_takes_it() {
        for (path, typed) in [("/usr/bin/snapgate", "/usr/bin/snapgate"), ("/a b/c", "'/a b/c'"), ("a'b", r"'a'\''b'")]
        {
            assert_eq!(quoted(std::path::Path::new(path)), typed);
        }
    }

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrapped("one two  three naïve", 9), ["one two", "three", "naïve"]);
        assert_eq!(wrapped("longerthanthat x", 5), ["longerthanthat", "x"]);
        assert_eq!(wrapped("", 5), [""]);
    }

    #[test]
    fn an_address_that_listens_everywhere_is_reached_on_the_loopback() {
        for (listens, reached) in
            [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:81", "[::1]:81"), ("10.0.0.1:82", "10.0.0.1:82")]
        {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), reached);
        }
    }
}
