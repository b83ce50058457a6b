//! What exporters have said of one target's GPUs, and who of them is to be believed.

use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::Moment;

/// Who speaks of the target, and what is in the way.
#[derive(Clone, Debug, Default)]
pub(in crate::fleet) struct Heard {
    /// Exporters by their nodes, and when each last said that the target has GPUs there. More than one only while a pod moves,
    /// or by mistake.
    claims: Vec<(Arc<str>, Moment)>,
    problem: Option<Box<str>>,
}

impl Heard {
    /// An exporter's page of `at` speaks of the target. An error if another one's does, too, that is no older than
    /// `fresh_within`: a pod is on one node, so nobody can say which of them is right.
    pub(in crate::fleet) fn claim(
        &mut self,
        node: &Arc<str>,
        at: Moment,
        fresh_within: Duration,
    ) -> Result<(), Box<str>> {
        self.claims.retain(|(other, since)| other != node && at <= since.plus(fresh_within));
        let others = self.claims.iter().map(|(node, _)| &**node).collect::<Vec<_>>().join(" and ");
        self.claims.push((Arc::clone(node), at));
        if others.is_empty() {
            return Ok(());
        }
        Err(format!("the exporters of {others} and {node} both tell of its GPUs: name its `node`").into())
    }

    /// An exporter's page speaks of the target no more, if it ever did.
    pub(in crate::fleet) fn disclaim(&mut self, node: &Arc<str>) {
        let before = self.claims.len();
        self.claims.retain(|(other, _)| other != node);
        if self.claims.is_empty() && before > 0 {
            self.problem = Some(format!("the exporter of {node} tells of its GPUs no more").into());
        }
    }

    /// What is in the way from now on. Answers whether that is news.
    pub(in crate::fleet) fn find(&mut self, problem: Option<Box<str>>) -> bool {
        let news = self.problem != problem;
        self.problem = problem;
        news
    }

    /// Nobody has told of the target, and nobody has said what is in the way.
    pub(in crate::fleet) fn is_unexplained(&self) -> bool {
        self.claims.is_empty() && self.problem.is_none()
    }

    /// What is in the way of knowing the target's GPUs.
    pub(in crate::fleet) fn problem(&self) -> Option<&str> {
        match &self.problem {
            Some(problem) => Some(problem),
            None if self.claims.is_empty() => Some("no exporter has told of its GPUs yet"),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH_WITHIN: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Moment {
        Moment(1_795_435_995_000_000).plus(Duration::from_secs(seconds))
    }

    #[test]
    fn one_exporter_is_believed_and_two_are_not() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut heard = Heard::default();
        assert_eq!(heard.problem(), Some("no exporter has told of its GPUs yet"));
        for second in 0..3 {
            assert_eq!(heard.claim(&a, at(second), FRESH_WITHIN), Ok(()));
        }
        assert_eq!(heard.problem(), None);
        for (node, words) in [(&b, "the exporters of a and b both"), (&a, "the exporters of b and a both")] {
            assert!(heard.claim(node, at(4), FRESH_WITHIN).unwrap_err().starts_with(words));
        }
        heard.disclaim(&a);
        assert_eq!(heard.problem(), None);
        let mut other = Heard::default();
        other.disclaim(&a);
        assert!(other.is_unexplained() && !heard.is_unexplained(), "it has never told of that one");
        assert_eq!(heard.claim(&b, at(5), FRESH_WITHIN), Ok(()));
        heard.disclaim(&b);
        assert_eq!(heard.problem(), Some("the exporter of b tells of its GPUs no more"));
    }

    #[test]
    fn who_has_been_silent_for_long_claims_nothing_so_that_a_pod_can_move_off_a_dead_node() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut heard = Heard::default();
        heard.claim(&a, at(0), FRESH_WITHIN).unwrap();
        assert!(heard.claim(&b, at(5), FRESH_WITHIN).is_err());
        assert_eq!(heard.claim(&b, at(6), FRESH_WITHIN), Ok(()));
    }
}
