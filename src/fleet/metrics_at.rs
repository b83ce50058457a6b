//! Where a target's metrics page is, if not where all others have it.

use std::fmt;

use crate::snapshot::Target;

/// A port, a path, or both, in place of the target's own port and of [`Settings::metrics_path`](super::Settings). Some engines
/// serve their metrics on a port of their own, and in a fleet of several engines each may have another path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsAt {
    port: Option<u16>,
    path: Option<Box<str>>,
}

impl MetricsAt {
    /// From `:PORT`, `/PATH` or `:PORT/PATH`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{}\" is not where metrics are: write \":PORT\", \"/PATH\" or \":PORT/PATH\", such as \":8002/metrics\"",
                text.escape_default()
            )
        };
        let (port, path) = match text.find('/') {
            Some(slash) => (&text[..slash], Some(&text[slash..])),
            None => (text, None),
        };
        let port = match port {
            "" => None,
            port => {
                let digits = port.strip_prefix(':').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
                let number = digits.and_then(|digits| digits.parse().ok()).filter(|port| *port > 0);
                Some(number.ok_or_else(wrong)?)
            }
        };
        let is_path = |path: &str| path.bytes().all(|byte| byte.is_ascii_graphic()) && !path.contains(['?', '#']);
        if port.is_none() && path.is_none() || !path.is_none_or(is_path) {
            return Err(wrong());
        }
        Ok(Self { port, path: path.map(Into::into) })
    }

    /// Nothing is said: it is where all others have it.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// What is not said here is as it is there.
    #[must_use]
    pub fn or(self, usual: &Self) -> Self {
        if self.is_usual() { usual.clone() } else { self }
    }

    /// The page's URL, where `path` is that of all others.
    pub(super) fn url(&self, target: &Target, path: &str) -> String {
        let path = self.path.as_deref().unwrap_or(path);
        let url = target.url();
        match (self.port, url.rsplit_once(':')) {
            // An address always has a port.
            (Some(port), Some((host, _))) => format!("{host}:{port}{path}"),
            _ => format!("{url}{path}"),
        }
    }
}

/// As it is read.
impl fmt::Display for MetricsAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))?;
        f.write_str(self.path.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_a_path_or_both_take_the_place_of_the_usual_ones() {
        for (text, plain, tls) in [
            (":8002", "http://h:8002/metrics", "https://[::1]:8002/metrics"),
            ("/prometheus/metrics", "http://h:8000/prometheus/metrics", "https://[::1]:443/prometheus/metrics"),
            (":1/", "http://h:1/", "https://[::1]:1/"),
        ] {
            let at = MetricsAt::parse(text).unwrap();
            let url = |address| at.url(&Target::new(0, "t", address), "/metrics");
            assert_eq!((&*url("h:8000"), &*url("https://[::1]:443")), (plain, tls), "{text}");
            assert_eq!((at.to_string().as_str(), at.is_usual()), (text, false));
        }
        let usual = MetricsAt::default();
        assert_eq!(usual.url(&Target::new(0, "t", "h:8000"), "/m"), "http://h:8000/m");
        let other = MetricsAt::parse(":1").unwrap();
        assert_eq!((usual.clone().or(&other), other.clone().or(&usual)), (other.clone(), other));
    }

    #[test]
    fn what_is_neither_is_refused_in_words() {
        for text in
            ["", ":", ":0", ":65536", ":+1", ":8002x", "8002", "metrics", ":1/a b", "/a?b", "/a#b", "/ä", "h:1/m"]
        {
            let wrong = MetricsAt::parse(text).unwrap_err();
            assert!(wrong.contains("is not where metrics are: write \":PORT\""), "{text}: {wrong}");
        }
    }
}
