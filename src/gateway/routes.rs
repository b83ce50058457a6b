//! Which paths are forwarded; everything else an engine serves stays private.

use std::collections::BTreeSet;

use super::framing;
use super::respond::Refusal;

/// What `routes.allow` says.
#[derive(Clone, Debug)]
pub enum Routes {
    /// Every path.
    Any,
    /// These alone.
    Only {
        /// Each compared whole.
        paths: BTreeSet<String>,
        /// Beginnings, which end in a slash: whatever lies below them.
        below: Vec<String>,
    },
}

impl Routes {
    /// From the setting: a path, a path with `/*` at its end for whatever lies below it, or `*` alone.
    pub fn of(allow: &[String]) -> Self {
        if allow == ["*"] {
            return Self::Any;
        }
        let below = |route: &String| route.strip_suffix('*').map(str::to_owned);
        Self::Only {
            paths: allow.iter().filter(|route| below(route).is_none()).cloned().collect(),
            below: allow.iter().filter_map(below).collect(),
        }
    }

    /// Whether the path is forwarded: one that is not compared whole must have one reading.
    ///
    /// # Errors
    /// `None` if it is not allowed, else what is wrong with it.
    pub(super) fn admit(&self, path: &str) -> Result<(), Option<Refusal>> {
        let lies_below = |beginning: &String| {
            path.strip_prefix(&**beginning).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        };
        match self {
            Self::Only { paths, .. } if paths.contains(path) => Ok(()),
            Self::Only { below, .. } if !below.iter().any(lies_below) => Err(None),
            Self::Any | Self::Only { .. } => framing::path(path).map_err(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_at_the_end_is_whatever_lies_below() {
        let routes = Routes::of(&["/v1/models".to_owned(), "/v1/responses/*".to_owned()]);
        let admitted = |path: &str| routes.admit(path).map_err(|wrong| wrong.is_some());
        for path in
            ["/v1/models", "/v1/responses/r1", "/v1/responses/r1/cancel", "/v1/responses/a%2Fb", "/v1/responses/*"]
        {
            assert_eq!(admitted(path), Ok(()), "{path}");
        }
        for path in ["/v1/models/m", "/v1/responses", "/v1/responses/", "/v1/responses//", "/v1/responsesx", "/v1/*"] {
            assert_eq!(admitted(path), Err(false), "{path} is not allowed");
        }
        for path in ["/v1/responses/../load", "/v1/responses/..%2f..%2fmetrics", "/v1/responses/%2e%2e/load"] {
            assert_eq!(admitted(path), Err(true), "{path} can be read in two ways");
        }
    }
}
