//! HTTP/1.1 as it is on the wire: heads, lines and bytes from a blocking socket, each read with a deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::wait::PATIENCE;

/// What is spoken on a socket: bytes as they are, or TLS.
pub(crate) trait Channel: Read + Write + std::fmt::Debug + Send {}

impl<T: Read + Write + std::fmt::Debug + Send> Channel for T {}

/// One end of a connection, and what was read from it and not taken yet.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: TcpStream,
    channel: Box<dyn Channel>,
    unread: Vec<u8>,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// There is more to take.
    More,
    /// The peer has closed its end.
    Closed,
    /// The connection was reset.
    Reset,
    /// Nothing came within [`PATIENCE`].
    Silent,
}

/// The head of a request or of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) first_line: String,
    /// In their order, with their names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    /// The only value of a header; `None` if it is not there.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }

    /// The path of a request.
    pub(crate) fn path(&self) -> &str {
        self.first_line.split(' ').nth(1).expect("a request's first line has three words")
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.split("\r\n");
        let first_line = lines.next().expect("a split has a first part").to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("`{line}` is no header"));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self { first_line, headers: lines.map(header).collect() }
    }
}

impl Wire {
    pub(crate) fn of(socket: TcpStream) -> Self {
        Self::over(socket, |socket| socket)
    }

    /// With a protocol between the socket and the bytes.
    pub(crate) fn over<C: Channel + 'static>(socket: TcpStream, protocol: impl FnOnce(TcpStream) -> C) -> Self {
        socket.set_nodelay(true).expect("a TCP option can be set");
        socket.set_read_timeout(Some(PATIENCE)).expect("a TCP option can be set");
        let channel = Box::new(protocol(socket.try_clone().expect("a socket can have two handles")));
        Self { socket, channel, unread: Vec::new() }
    }

    /// Whether the peer could still be written to.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.channel.write_all(bytes).is_ok()
    }

    /// Waits for more to take.
    pub(crate) fn fill(&mut self) -> Filled {
        let mut buffer = [0; 64 * 1024];
        loop {
            return match self.channel.read(&mut buffer) {
                Ok(0) => Filled::Closed,
                Ok(count) => {
                    self.unread.extend_from_slice(&buffer[..count]);
                    Filled::More
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Filled::Silent,
                Err(_) => Filled::Reset,
            };
        }
    }

    /// The next head.
    pub(crate) fn head(&mut self) -> Result<Head, Filled> {
        let text = self.take_through(b"\r\n\r\n")?;
        Ok(Head::parse(&String::from_utf8(text).expect("a head is text here")))
    }

    /// The next line, without its end.
    pub(crate) fn line(&mut self) -> Result<String, Filled> {
        Ok(String::from_utf8(self.take_through(b"\r\n")?).expect("a line of chunked coding is text"))
    }

    /// What comes before `mark`; the mark is taken too.
    fn take_through(&mut self, mark: &[u8]) -> Result<Vec<u8>, Filled> {
        loop {
            if let Some(at) = self.unread.windows(mark.len()).position(|window| window == mark) {
                let mut taken: Vec<u8> = self.unread.drain(..at + mark.len()).collect();
                taken.truncate(at);
                return Ok(taken);
            }
            match self.fill() {
                Filled::More => {}
                end => return Err(end),
            }
        }
    }

    /// At least one byte and at most `most`, as soon as there are any.
    pub(crate) fn some(&mut self, most: usize) -> Result<Vec<u8>, Filled> {
        if self.unread.is_empty() {
            match self.fill() {
                Filled::More => {}
                end => return Err(end),
            }
        }
        let count = most.min(self.unread.len());
        Ok(self.unread.drain(..count).collect())
    }

    /// Exactly so many bytes.
    pub(crate) fn exactly(&mut self, count: usize) -> Result<Vec<u8>, Filled> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.extend(self.some(count - taken.len())?);
        }
        Ok(taken)
    }

    /// Says that nothing more is sent; the peer may still send.
    pub(crate) fn end(&mut self) {
        self.socket.shutdown(Shutdown::Write).expect("it was open");
    }

    /// Closes both ways at once; the peer has been told when this returns.
    pub(crate) fn hang_up(&mut self) {
        self.socket.shutdown(Shutdown::Both).expect("it was open");
    }

    /// Closes so that the peer sees a reset and no end.
    pub(crate) fn reset(self) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime can be built");
        let _context = runtime.enter();
        self.socket.set_nonblocking(true).expect("a TCP option can be set");
        // The reset is sent when the last handle is closed.
        drop(self.channel);
        let stream = tokio::net::TcpStream::from_std(self.socket).expect("the runtime can watch it");
        stream.set_zero_linger().expect("a TCP option can be set");
    }
}
