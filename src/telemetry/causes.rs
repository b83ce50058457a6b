//! An error as it is told to people.

use std::error::Error;

/// An error with what caused it, in one line: libraries keep the telling part in the source. Some say their source's words
/// themselves, which are not said twice.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Told(&'static str, Option<Box<Told>>);

    impl fmt::Display for Told {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn each_cause_is_said_once() {
        let caused = |words, by| Told(words, Some(Box::new(by)));
        let root = || Told("connection reset", None);
        assert_eq!(with_causes(&root()), "connection reset");
        assert_eq!(with_causes(&caused("no answer", caused("broken", root()))), "no answer: broken: connection reset");
        assert_eq!(with_causes(&caused("broken: connection reset", root())), "broken: connection reset");
    }
}
