//! What a text may be, by the key it is for: each check answers the text in its one form, or what is wrong with it.

use http::HeaderName;

use super::keys::CREDENTIALS;
pub(super) use crate::discovery::{check_name, check_name_within};
use crate::lookup::LinkTemplate;
use crate::tenant::Network;

/// The longest name of a model, in bytes: from a request no longer one is read.
const MODEL_BYTES_MAX: usize = 256;

pub(super) fn path(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("a path cannot be empty or hold a zero byte".to_owned());
    }
    Ok(text.to_owned())
}

/// A file that may be left out.
pub(super) fn file(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { path(text) }
}

pub(super) fn instance(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { check_name(text) }
}

pub(super) fn request_path(text: &str) -> Result<String, String> {
    let valid = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains(['?', '#']);
    if valid {
        return Ok(text.to_owned());
    }
    Err(format!("\"{text}\" is not a request's path: it starts with / and has no spaces, query or fragment"))
}

pub(super) fn route(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let path = text.strip_suffix("/*").unwrap_or(text);
    if text == "/*" || path.contains('*') {
        let where_to = "such as /v1/models/* for every path below it, or alone for every path";
        return Err(format!("\"{text}\": a * stands at the end, {where_to}"));
    }
    request_path(path).map(|_| text.to_owned())
}

/// As browsers write it in the header `origin`: a scheme, a host in lower case and perhaps a port.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]".contains(&byte);
        matches!(scheme, "http" | "https") && !host.is_empty() && host.bytes().all(plain)
    });
    if text == "*" || is_origin {
        return Ok(text.to_owned());
    }
    Err(format!("\"{text}\" is not an origin: write https://HOST or https://HOST:PORT in lower case, and no path"))
}

pub(super) fn optional_header(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { header(text) }
}

pub(super) fn network(text: &str) -> Result<String, String> {
    text.parse::<Network>().map(|_| text.to_owned()).map_err(|error| format!("\"{text}\" is {error}"))
}

pub(super) fn link(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        text.parse::<LinkTemplate>().map_err(|error| format!("\"{text}\" {error}"))?;
    }
    Ok(text.to_owned())
}

pub(super) fn header_name(text: &str) -> Result<String, String> {
    let name = HeaderName::try_from(text).map_err(|_| format!("\"{text}\" is not a header's name"))?;
    Ok(name.as_str().to_owned())
}

pub(super) fn header(text: &str) -> Result<String, String> {
    let name = header_name(text)?;
    if CREDENTIALS.contains(&name.as_str()) {
        return Err(format!("{name} holds credentials, which are never recorded"));
    }
    Ok(name)
}

/// A model as requests name it.
pub(super) fn check_model(name: &str) -> Result<String, String> {
    if (1..=MODEL_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(format!("\"{}\" is not a model's name: use 1 to {MODEL_BYTES_MAX} bytes of text", name.escape_default()))
}
