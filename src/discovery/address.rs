//! What a target may be called, and where it may be.

use std::fmt::Display;

use http::uri::Authority;

use crate::snapshot::TLS_SCHEME;

/// The longest name of a target, token or instance.
const NAME_CHARS_MAX: usize = 64;

/// Whether a name may have this letter, digit or sign.
pub const fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Names of targets, sources, tokens and instances: they stand in headers, metrics and file names.
pub fn check_name(name: &str) -> Result<String, String> {
    check_name_within(NAME_CHARS_MAX, name)
}

/// The same for names that may have another length.
pub fn check_name_within(chars_max: usize, name: &str) -> Result<String, String> {
    if (1..=chars_max).contains(&name.len()) && name.chars().all(is_name_char) {
        return Ok(name.to_owned());
    }
    Err(format!("\"{name}\" is not a name: use 1 to {chars_max} letters, digits, dots, underscores and hyphens"))
}

/// `10.0.3.2:8000` is called `10.0.3.2-8000`: whatever a name cannot hold becomes one hyphen, none in front.
pub fn default_name(address: &str) -> Result<String, String> {
    let address = address.strip_prefix(TLS_SCHEME).unwrap_or(address);
    let name = address.split(|c: char| !is_name_char(c)).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    check_name(&name).map_err(|_| format!("{address} is too long to be a name as well: write NAME=URL"))
}

/// The address at `HOST:PORT`, spoken to in TLS or not.
pub(super) fn at(authority: impl Display, tls: bool) -> Result<String, String> {
    let scheme = if tls { TLS_SCHEME } else { "http://" };
    parse_url(&format!("{scheme}{authority}"))
}

/// `http://HOST:PORT` or `https://HOST:PORT` and nothing more. Answers `host:port`, or `https://host:port`.
pub fn parse_url(url: &str) -> Result<String, String> {
    let form = "write http://HOST:PORT or https://HOST:PORT";
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => ("", rest),
        Some(("https", rest)) => (TLS_SCHEME, rest),
        Some((scheme, _)) => return Err(format!("\"{url}\": {scheme} is not a protocol for targets: {form}")),
        None => return Err(format!("\"{url}\" is not a URL: {form}, such as http://127.0.0.1:8000")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('@') {
        return Err(format!("a target's URL cannot hold a user name or password: {form}"));
    }
    if authority.contains(['/', '?', '#']) {
        return Err(format!("\"{url}\": a target has no path, because requests keep theirs: {form}"));
    }
    let authority: Authority = authority.parse().map_err(|_| format!("\"{url}\" is not a URL: {form}"))?;
    match authority.port_u16() {
        None | Some(0) => Err(format!("\"{url}\" has no port: {form}")),
        Some(_) if authority.host().is_empty() => Err(format!("\"{url}\" has no host: {form}")),
        Some(port) => Ok(format!("{scheme}{}:{port}", authority.host().to_ascii_lowercase())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_host_and_port() {
        let cases = [
            ("http://127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://vLLM-0.Pods:80/", "vllm-0.pods:80"),
            ("http://[::1]:8000", "[::1]:8000"),
            ("https://vLLM-0:443/", "https://vllm-0:443"),
        ];
        for (url, address) in cases {
            assert_eq!(parse_url(url).as_deref(), Ok(address), "{url}");
        }
    }

    #[test]
    fn what_is_no_target_url_says_why() {
        let cases = [
            ("ftp://a:1", "ftp is not a protocol"),
            ("127.0.0.1:8000", "is not a URL: write http://HOST:PORT"),
            ("http://a:1/v1", "has no path"),
            ("http://a:1?x=1", "has no path"),
            ("http://u:p@a:1", "user name or password"),
            ("http://a", "has no port"),
            ("http://a:0", "has no port"),
            ("http://a:99999", "has no port"),
            ("http://:80", "has no host"),
            ("http://", "is not a URL"),
            ("http://a b:1", "is not a URL"),
            ("", "is not a URL"),
        ];
        for (url, part) in cases {
            let text = parse_url(url).unwrap_err();
            assert!(text.contains(part), "{url}: {text}");
        }
    }

    #[test]
    fn default_names_come_from_the_address() {
        assert_eq!(default_name("10.0.3.2:8000").as_deref(), Ok("10.0.3.2-8000"));
        assert_eq!(default_name("[fe80::1]:80").as_deref(), Ok("fe80-1-80"));
        assert!(default_name(&format!("{}:80", "a".repeat(62))).unwrap_err().contains("write NAME=URL"));
    }

    proptest! {
        #[test]
        fn no_url_panics_and_an_accepted_one_can_be_dialled(url in "(https?://)?[a-z\\[\\]:0-9./@]{0,24}") {
            if let Ok(address) = parse_url(&url) {
                prop_assert!(default_name(&address).is_ok_and(|name| check_name(&name).is_ok()));
                let (host, port) = address.rsplit_once(':').unwrap();
                prop_assert!(!host.is_empty() && port.parse::<u16>().is_ok());
            }
        }
    }
}
