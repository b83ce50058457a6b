//! Server-sent events out of a body that is cut anywhere: the parsing of the WHATWG HTML standard, section 9.2.6.
//!
//! Only `data` matters here; comments, `event`, `id`, `retry` and unknown fields are passed over. As in the standard,
//! an event whose blank line never came is none.

use memchr::memchr2;

use super::bounded::Bounded;

/// The longest line, and the longest event, in bytes. OpenAI's `response.completed` repeats a whole answer in one line,
/// which can be hundreds of kilobytes; a line or an event beyond the bound is passed over, and the stream goes on.
pub(super) const EVENT_BYTES_MAX: usize = 1024 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Finds the events in a stream. Borrows an event's data from the frame it came in wherever that is possible.
#[derive(Debug, Default)]
pub(super) struct EventStream {
    /// The first line has begun to be read: a byte order mark can come no more.
    begun: bool,
    /// The last byte was a CR that ended a line; an LF that follows belongs to it.
    after_cr: bool,
    line: Bounded<EVENT_BYTES_MAX>,
    /// The carried line is longer than what is kept of it.
    line_cut: bool,
    /// The data of the open event, as far as earlier frames or several lines brought it.
    data: Bounded<EVENT_BYTES_MAX>,
    open: Option<Open>,
}

/// An event that has data and waits for its blank line.
#[derive(Clone, Copy, Debug)]
struct Open {
    arrived_us: u64,
    too_long: bool,
}

/// An event as it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// `None` if it was too long to be read.
    pub(super) data: Option<&'a [u8]>,
    /// When the end of its last data line came, as an offset from accept.
    pub(super) arrived_us: u64,
}

enum Line<'a> {
    /// Ends an event.
    Blank,
    Data(&'a [u8]),
    Other,
}

impl EventStream {
    /// Reads the next bytes of the body and hands out each event with data that they complete.
    pub(super) fn feed(&mut self, frame: &[u8], at_us: u64, mut on_event: impl FnMut(Event<'_>)) {
        let mut rest = frame;
        // The only data line so far of the open event, while it need not be copied.
        let mut here: Option<&[u8]> = None;
        loop {
            if self.after_cr && !rest.is_empty() {
                self.after_cr = false;
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
            let Some(end) = memchr2(b'\n', b'\r', rest) else { break };
            let line = &rest[..end];
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if !self.line.is_empty() || line.len() > EVENT_BYTES_MAX {
                self.carry(line);
                self.end_carried_line(&mut here, at_us, &mut on_event);
                continue;
            }
            match self.classify(line) {
                Line::Data(data) if self.open.is_none() && here.is_none() => here = Some(data),
                Line::Data(data) => {
                    self.keep(here.take(), at_us);
                    self.keep(Some(data), at_us);
                }
                Line::Blank => self.dispatch(here.take(), at_us, &mut on_event),
                Line::Other => {}
            }
        }
        self.keep(here, at_us);
        self.carry(rest);
    }

    fn carry(&mut self, bytes: &[u8]) {
        self.line_cut |= !self.line.append(bytes);
    }

    fn end_carried_line(&mut self, here: &mut Option<&[u8]>, at_us: u64, on_event: &mut impl FnMut(Event<'_>)) {
        let mut line = std::mem::take(&mut self.line);
        let cut = std::mem::take(&mut self.line_cut);
        match self.classify(line.as_slice()) {
            Line::Data(data) => {
                self.keep(here.take(), at_us);
                self.keep(Some(data), at_us);
                if cut {
                    self.data.clear();
                    self.open = Some(Open { arrived_us: at_us, too_long: true });
                }
            }
            Line::Blank => self.dispatch(here.take(), at_us, on_event),
            Line::Other => {}
        }
        line.clear();
        self.line = line;
    }

    fn classify<'a>(&mut self, mut line: &'a [u8]) -> Line<'a> {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        match line.strip_prefix(b"data") {
            Some([]) => Line::Data(b""),
            Some([b':', b' ', data @ ..] | [b':', data @ ..]) => Line::Data(data),
            _ if line.is_empty() => Line::Blank,
            _ => Line::Other,
        }
    }

    /// Copies a data line into the open event, which it opens if there is none.
    fn keep(&mut self, data: Option<&[u8]>, at_us: u64) {
        let Some(data) = data else { return };
        let too_long = match self.open {
            None => !self.data.append(data),
            Some(Open { too_long: true, .. }) => true,
            Some(_) => !(self.data.append(b"\n") && self.data.append(data)),
        };
        if too_long {
            self.data.clear();
        }
        self.open = Some(Open { arrived_us: at_us, too_long });
    }

    fn dispatch(&mut self, here: Option<&[u8]>, at_us: u64, on_event: &mut impl FnMut(Event<'_>)) {
        let event = match (here, self.open) {
            (Some(data), _) => Event { data: Some(data), arrived_us: at_us },
            (None, Some(Open { arrived_us, too_long: true })) => Event { data: None, arrived_us },
            (None, Some(Open { arrived_us, .. })) => Event { data: Some(self.data.as_slice()), arrived_us },
            (None, None) => return,
        };
        // Bare `data` lines are somebody's keep-alive: they carry nothing to count.
        if event.data.is_none_or(|data| !data.trim_ascii().is_empty()) {
            on_event(event);
        }
        if self.open.take().is_some() {
            self.data.clear();
        }
    }

    #[cfg(test)]
    pub(super) fn allocated(&self) -> (usize, usize) {
        (self.line.capacity(), self.data.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds each piece as a frame, the n-th at n µs.
    fn events(frames: &[&[u8]]) -> Vec<(Option<String>, u64)> {
        let mut stream = EventStream::default();
        let mut seen = Vec::new();
        for (at_us, frame) in frames.iter().enumerate() {
            stream.feed(frame, at_us as u64, |event| {
                let data = event.data.map(|data| String::from_utf8_lossy(data).into_owned());
                seen.push((data, event.arrived_us));
            });
        }
        seen
    }

    #[test]
    fn streams_and_their_events() {
        let cases: &[(&str, &[&str])] = &[
            ("data: a\n\ndata:b\n\n", &["a", "b"]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
            ("data: a\r\rdata: b\r\r", &["a", "b"]),
            ("data: a\r\n\ndata: b\n\r\n", &["a", "b"]),
            ("data:  two spaces\n\n", &[" two spaces"]),
            ("data: a\ndata: b\n\n", &["a\nb"]),
            ("data: a\r\ndata: b\r\n\r\n", &["a\nb"]),
            ("data: a\rdata: b\r\r", &["a\nb"]),
            ("data: a\ndata\ndata: b\n\n", &["a\n\nb"]),
            (": comment\nevent: x\nid: 1\nretry: 5\ndata: a\nid: 2\n\n", &["a"]),
            ("database: no\ndat: no\n\n", &[]),
            ("data\n\ndata:\n\ndata: \n\ndata:\ndata:\n\n", &[]),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", &["a"]),
            ("\n\n\ndata: a\n\n\n\n", &["a"]),
            ("data: a\n\ndata: not ended\n", &["a"]),
            ("data: é\u{2028}x\n\n", &["é\u{2028}x"]),
            ("", &[]),
        ];
        for (body, expected) in cases {
            let found: Vec<_> = events(&[body.as_bytes()]).into_iter().map(|(data, _)| data.unwrap()).collect();
            assert_eq!(found, *expected, "{body:?}");
            let bytewise: Vec<_> = body.as_bytes().chunks(1).collect();
            let found: Vec<_> = events(&bytewise).into_iter().map(|(data, _)| data.unwrap()).collect();
            assert_eq!(found, *expected, "byte by byte: {body:?}");
        }
    }

    #[test]
    fn an_event_has_the_time_of_its_data_line() {
        assert_eq!(events(&[b"da", b"ta: a\n", b"\n"]), [(Some("a".into()), 1)]);
        assert_eq!(events(&[b"data: a\n", b"data: b\n", b": x\n\n"]), [(Some("a\nb".into()), 1)]);
        assert_eq!(events(&[b"data: a\r", b"\n\r\n"]), [(Some("a".into()), 0)]);
    }

    #[test]
    fn a_line_beyond_the_bound_is_passed_over_and_the_stream_goes_on() {
        for (longest, readable) in
            [(EVENT_BYTES_MAX - "data: ".len(), true), (EVENT_BYTES_MAX - "data: ".len() + 1, false)]
        {
            let body = format!("data: {}\n\n: {}\ndata: b\n\n", "x".repeat(longest), "y".repeat(EVENT_BYTES_MAX));
            for frames in [vec![body.as_bytes()], body.as_bytes().chunks(16_384).collect()] {
                let found = events(&frames);
                assert_eq!(found.len(), 2, "the comment is passed over, however long");
                assert_eq!(found[0].0.is_some(), readable);
                assert_eq!(found[1].0.as_deref(), Some("b"));
            }
        }
    }

    #[test]
    fn an_event_of_many_lines_is_bounded_too() {
        let mut body = "data: 0123456789\n".repeat(EVENT_BYTES_MAX / 10).into_bytes();
        body.extend_from_slice(b"\ndata: b\n\n");
        let mut stream = EventStream::default();
        let mut found = Vec::new();
        for frame in body.chunks(1000) {
            stream.feed(frame, 0, |event| found.push(event.data.map(<[u8]>::to_vec)));
            let (line, data) = stream.allocated();
            assert!(line <= EVENT_BYTES_MAX && data <= EVENT_BYTES_MAX);
        }
        assert_eq!(found, [None, Some(b"b".to_vec())]);
    }
}
