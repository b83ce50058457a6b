//! A client that hides nothing: what it was sent, byte for byte, and whether that ended as the framing says it must.

use std::net::{SocketAddr, TcpStream};

use super::wire::{Filled, Head, Wire};

/// What to ask.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self { method: "DELETE", path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn post(path: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { method: "POST", path: path.into(), headers: Vec::new(), body: body.into() }
            .with("content-type", "application/json")
    }

    /// A chat that is answered as a stream of so many tokens.
    pub(crate) fn stream(tokens: u32) -> Self {
        let body = r#"{"model":"llama-3.1-8b","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
        Self::post("/v1/chat/completions", body).with("x-sim-tokens", tokens)
    }

    /// A chat that is answered in one piece.
    pub(crate) fn chat() -> Self {
        let body = r#"{"model":"llama-3.1-8b","messages":[{"role":"user","content":"hello"}]}"#;
        Self::post("/v1/chat/completions", body).with("x-sim-tokens", 3)
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// As it is sent.
    pub(crate) fn bytes(&self, host: SocketAddr) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if self.method != "GET" {
            text += &format!("content-length: {}\r\n", self.body.len());
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As its framing says.
    Clean,
    /// Before that.
    BrokenOff,
}

/// The whole of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Answer {
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Its snapshot ID, which every answer has.
    #[track_caller]
    pub(crate) fn id(&self) -> String {
        id_of(&self.head)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("this body is text")
    }

    /// The SSE events with data, `[DONE]` left out.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.text().lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]").collect()
    }
}

/// The snapshot ID in an answer's head.
#[track_caller]
pub(crate) fn id_of(head: &Head) -> String {
    head.header("x-snapshot-id").expect("every answer has a snapshot ID").to_owned()
}

/// The status in an answer's head.
pub(crate) fn status_of(head: &Head) -> u16 {
    let status = head.first_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("`{}` is no status line", head.first_line))
}

/// How the body under way is framed, and how much of it is left.
#[derive(Clone, Copy, Debug)]
enum Framing {
    /// So many bytes.
    Length(usize),
    /// In chunks; so many bytes of the present one.
    Chunked(usize),
    /// Until the connection is closed.
    Close,
}

/// A connection to a gateway.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    wire: Wire,
    framing: Framing,
}

impl Client {
    pub(crate) fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the gateway accepts connections");
        Self::over(address, Wire::of(stream))
    }

    /// On a connection that stands.
    pub(crate) fn over(address: SocketAddr, wire: Wire) -> Self {
        Self { address, wire, framing: Framing::Length(0) }
    }

    /// Sends a request and reads the whole answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &Request) -> Answer {
        self.send(request);
        let head = self.head();
        self.rest_of(head)
    }

    #[track_caller]
    pub(crate) fn send(&mut self, request: &Request) {
        self.send_bytes(&request.bytes(self.address));
    }

    /// Sends a request and what follows it in one piece, so that nothing can come between them.
    #[track_caller]
    pub(crate) fn send_together(&mut self, request: &Request, beyond: &[u8]) {
        self.send_bytes(&[&request.bytes(self.address), beyond].concat());
    }

    /// Sends what is not or not yet a request.
    #[track_caller]
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        assert!(self.wire.send(bytes), "the gateway takes what is sent");
    }

    /// The head of the answer. A client that reads no further can look at the ID, or leave.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Head {
        let head = self.wire.head().unwrap_or_else(|end| panic!("no answer: {end:?}"));
        self.framing = match (head.header("content-length"), head.header("transfer-encoding")) {
            (Some(length), None) => Framing::Length(length.parse().expect("a length is a number")),
            (None, Some("chunked")) => Framing::Chunked(0),
            (None, None) => Framing::Close,
            both => panic!("an answer cannot be framed like this: {both:?}"),
        };
        head
    }

    /// What a connection becomes that leaves HTTP.
    pub(crate) fn into_wire(self) -> Wire {
        self.wire
    }

    /// Everything after the head.
    #[track_caller]
    pub(crate) fn rest_of(&mut self, head: Head) -> Answer {
        let mut body = Vec::new();
        let end = loop {
            match self.piece() {
                Ok(piece) => body.extend(piece),
                Err(end) => break end,
            }
        };
        Answer { status: status_of(&head), head, body, end }
    }

    /// The next piece of the body, or how it ended.
    #[track_caller]
    pub(crate) fn piece(&mut self) -> Result<Vec<u8>, End> {
        let piece = match self.framing {
            Framing::Length(0) => return Err(End::Clean),
            Framing::Length(left) => self.wire.some(left),
            Framing::Chunked(0) => {
                match self.next_chunk() {
                    Ok(0) => return Err(End::Clean),
                    Ok(size) => self.framing = Framing::Chunked(size),
                    Err(end) => return Err(Self::broken(end)),
                }
                return self.piece();
            }
            Framing::Chunked(left) => self.wire.some(left),
            Framing::Close => match self.wire.some(usize::MAX) {
                Err(Filled::Closed) => return Err(End::Clean),
                piece => piece,
            },
        };
        let piece = piece.map_err(Self::broken)?;
        match &mut self.framing {
            Framing::Length(left) => *left -= piece.len(),
            Framing::Chunked(left) => {
                *left -= piece.len();
                if *left == 0 && self.wire.exactly(2).map_err(Self::broken)? != b"\r\n" {
                    panic!("a chunk is longer than it says");
                }
            }
            Framing::Close => {}
        }
        Ok(piece)
    }

    /// The size of the next chunk; after the last one, which is 0, the end of the message is read too.
    fn next_chunk(&mut self) -> Result<usize, Filled> {
        let line = self.wire.line()?;
        let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("`{line}` is no chunk's size"));
        if size == 0 {
            self.framing = Framing::Length(0);
            assert_eq!(self.wire.line()?, "", "no trailers are expected");
        }
        Ok(size)
    }

    #[track_caller]
    fn broken(end: Filled) -> End {
        assert_ne!(end, Filled::Silent, "the gateway fell silent in the middle of an answer");
        End::BrokenOff
    }
}
