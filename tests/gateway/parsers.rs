//! Two parsers of HTTP/1.1 that share no code: one reads only what nobody could read differently, the other is `httparse`
//! and as lenient about framing as the worst servers. What both read alike is not ambiguous.

/// A message as a parser reads it: its first line's words, its headers with names in lower case, its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) first: Vec<String>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn values(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_slice()).collect()
    }
}

/// Whose messages they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Requests,
    Answers,
}

/// What one parser makes of the beginning of some bytes.
type Parsed = Result<Option<(Message, usize)>, String>;

/// All messages in the bytes, on which both parsers agree.
pub(crate) fn agreed(bytes: &[u8], side: Side) -> Result<Vec<Message>, String> {
    let (mut messages, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let (strict, lenient) = (strict(&bytes[at..], side)?, lenient(&bytes[at..], side)?);
        if strict != lenient {
            return Err(format!("read differently: {strict:?} and {lenient:?}"));
        }
        let Some((message, length)) = strict else { return Err("the last message is incomplete".into()) };
        messages.push(message);
        at += length;
    }
    Ok(messages)
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Reads what is beyond doubt and calls everything else an error. `None`: it is not complete.
pub(crate) fn strict(bytes: &[u8], side: Side) -> Parsed {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let mut lines = Vec::new();
    for line in bytes[..end].split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(format!("a control character in {:?}", String::from_utf8_lossy(line)));
        }
        lines.push(line);
    }
    if bytes[..end].windows(2).filter(|pair| pair == b"\r\n").count() + 1 != lines.len() {
        return Err("a line that ends in LF alone".into());
    }
    let first = std::str::from_utf8(lines[0]).map_err(|_| "a first line that is no text")?;
    let words: Vec<_> = first.splitn(3, ' ').map(str::to_owned).collect();
    let well_formed = match (side, words.as_slice()) {
        (Side::Requests, [method, target, version]) => {
            is_token(method)
                && *method == method.to_ascii_uppercase()
                && target.starts_with('/')
                && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
                && version == "HTTP/1.1"
        }
        (Side::Answers, [version, status, _]) => {
            matches!(&**version, "HTTP/1.0" | "HTTP/1.1") && status.len() == 3 && status.parse::<u16>().is_ok()
        }
        _ => false,
    };
    if !well_formed {
        return Err(format!("the first line is `{first}`"));
    }
    let mut headers = Vec::new();
    for line in &lines[1..] {
        let colon = line.iter().position(|byte| *byte == b':').ok_or("a header without a colon")?;
        let name = std::str::from_utf8(&line[..colon]).map_err(|_| "a name that is no text")?;
        if !is_token(name) || name.contains('_') && name.replace('_', "-").contains("transfer-encoding") {
            return Err(format!("`{name}` is no header's name"));
        }
        headers.push((name.to_ascii_lowercase(), line[colon + 1..].trim_ascii().to_vec()));
    }
    let message = Message { first: words, headers, body: Vec::new() };
    let (lengths, codings) = (message.values("content-length"), message.values("transfer-encoding"));
    if side == Side::Requests && message.values("host").len() != 1 {
        return Err("not exactly one host".into());
    }
    let rest = &bytes[end + 4..];
    let bodiless = side == Side::Answers && matches!(&*message.first[1], "204" | "304");
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) if side == Side::Requests || bodiless => Ok(Some((message, end + 4))),
        ([length], []) if !bodiless => {
            let digits = length.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(length).ok()).flatten();
            let length: usize = digits.and_then(|digits| digits.parse().ok()).ok_or("a length that is no number")?;
            if rest.len() < length {
                return Ok(None);
            }
            let body = rest[..length].to_vec();
            Ok(Some((Message { body, ..message }, end + 4 + length)))
        }
        ([], [b"chunked"]) if !bodiless => {
            let Some((body, length)) = chunks(rest)? else { return Ok(None) };
            Ok(Some((Message { body, ..message }, end + 4 + length)))
        }
        both => Err(format!("framed as {both:?}")),
    }
}

/// Chunks without extensions, to the end of their trailers.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = bytes[at..].windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
        let line = std::str::from_utf8(&bytes[at..at + end]).map_err(|_| "a chunk's size that is no text")?;
        if !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("`{line}` is no chunk's size"));
        }
        let size = usize::from_str_radix(line, 16).map_err(|error| error.to_string())?;
        at += end + 2;
        if size == 0 {
            let trailers = bytes[at..].windows(2).position(|pair| pair == b"\r\n");
            let Some(length) = trailers else { return Ok(None) };
            if length > 0 {
                let Some(end) = bytes[at..].windows(4).position(|window| window == b"\r\n\r\n") else {
                    return Ok(None);
                };
                return Ok(Some((body, at + end + 4)));
            }
            return Ok(Some((body, at + 2)));
        }
        if bytes.len() < at + size + 2 {
            return Ok(None);
        }
        body.extend_from_slice(&bytes[at..at + size]);
        if &bytes[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk that is longer than it says".into());
        }
        at += size + 2;
    }
}

/// Reads with `httparse`, takes any transfer coding that has `chunked` in it, in any spelling, for chunks, and else the
/// last length: what a careless server would do.
fn lenient(bytes: &[u8], side: Side) -> Parsed {
    let mut space = [httparse::EMPTY_HEADER; 256];
    let (first, head) = match side {
        Side::Requests => {
            let mut request = httparse::Request::new(&mut space);
            let httparse::Status::Complete(head) = request.parse(bytes).map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            let version = format!("HTTP/1.{}", request.version.unwrap_or_default());
            (vec![request.method.unwrap_or_default().into(), request.path.unwrap_or_default().into(), version], head)
        }
        Side::Answers => {
            let mut answer = httparse::Response::new(&mut space);
            let httparse::Status::Complete(head) = answer.parse(bytes).map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            let version = format!("HTTP/1.{}", answer.version.unwrap_or_default());
            let status = answer.code.unwrap_or_default().to_string();
            (vec![version, status, answer.reason.unwrap_or_default().into()], head)
        }
    };
    let set = space.iter().take_while(|header| !header.name.is_empty());
    let headers = set.map(|header| (header.name.to_ascii_lowercase(), header.value.trim_ascii().to_vec())).collect();
    let message = Message { first, headers, body: Vec::new() };
    let chunked = message.headers.iter().any(|(name, value)| {
        let value = String::from_utf8_lossy(value).to_ascii_lowercase();
        name.replace('_', "-") == "transfer-encoding" && value.contains("chunked")
    });
    let rest = &bytes[head..];
    if chunked {
        let Some((body, length)) = chunks(rest)? else { return Ok(None) };
        return Ok(Some((Message { body, ..message }, head + length)));
    }
    let length =
        message.values("content-length").last().and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
    let length: usize = length.unwrap_or(0);
    if rest.len() < length {
        return Ok(None);
    }
    let body = rest[..length].to_vec();
    Ok(Some((Message { body, ..message }, head + length)))
}
