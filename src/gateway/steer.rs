//! What of a request steers its choice: its model's policy, the beginning of its prompt or its session as keyed hashes, and
//! the target it names.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::identify::TARGET_POD;
use super::request_peek::Prompt;
use super::respond::Refusal;
use crate::choose::{self, Choice};
use crate::snapshot::{Attempt, Ending, Excluded, FleetView, Inputs, Policy};
use crate::tenant::Key;

/// How targets are chosen.
#[derive(Clone, Debug)]
pub struct ChoiceSettings {
    /// For every model without its own.
    pub policy: Policy,
    /// By model.
    pub policy_of_model: HashMap<Box<str>, Policy>,
    /// Targets looked at most for one choice.
    pub width: usize,
    /// How much of a prompt's beginning counts, in bytes.
    pub prefix_bytes: usize,
    /// Names the session.
    pub session_header: HeaderName,
    /// Whether a request may name its target.
    pub allow_forced: bool,
}

/// The settings, and the keys of the hashes: equal inputs can be found in the records of gateways with the same secret, and
/// without it no guess at an input can be tried out.
#[derive(Debug)]
pub(super) struct Steering {
    settings: ChoiceSettings,
    prefix_key: [u8; 32],
    session_key: [u8; 32],
}

/// One request's part.
#[derive(Clone, Copy, Debug)]
pub struct Steer<'r> {
    pub(super) policy: Policy,
    prefix_hash: Option<u64>,
    session_hash: Option<u64>,
    forced: Option<&'r HeaderValue>,
    /// Another choice for the same request.
    repeated: bool,
}

impl Steer<'_> {
    /// For a choice after the first; `None` if the request named its target, which is the only one it wants.
    pub(super) fn again(&self) -> Option<Steer<'static>> {
        let Self { policy, prefix_hash, session_hash, forced, .. } = *self;
        forced.is_none().then_some(Steer { policy, prefix_hash, session_hash, forced: None, repeated: true })
    }
}

/// Why nothing was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// No target that serves the model is up: so many there are that could not be chosen.
    NoTarget(Excluded),
    /// No target of the fleet serves the model.
    ModelNotServed,
    /// The fleet has no target of the name that was asked for.
    UnknownTarget,
}

impl Undecided {
    pub(super) fn refusal(self, model: Option<&str>) -> Refusal {
        match self {
            Self::NoTarget(excluded) => {
                let message = "no target is able to serve requests at the moment: try again soon";
                Refusal::failed(Ending::NoTarget, message, Some(nobody_is_left(excluded).into()))
            }
            Self::ModelNotServed => {
                let message = format!("the model `{}` does not exist: no target serves it", model.unwrap_or_default());
                Refusal::rejected(StatusCode::NOT_FOUND, message).about("model", "model_not_found")
            }
            Self::UnknownTarget => {
                let message = "no target has the name in the header target-pod: leave it out, or name one of the fleet";
                Refusal::rejected(StatusCode::BAD_REQUEST, message).about("target-pod", "target_not_found")
            }
        }
    }
}

/// A target that fails is passed over only where another is left, so nobody is left only where all are unhealthy.
fn nobody_is_left(Excluded { unhealthy, model, .. }: Excluded) -> String {
    match (unhealthy, model) {
        (0, _) => "the fleet has no target: none is configured or found".to_owned(),
        (_, 0) => format!("every target is unhealthy: {unhealthy} of {unhealthy}"),
        _ => format!("every target that serves the model is unhealthy: {unhealthy}; {model} more do not serve it"),
    }
}

impl Steering {
    pub(super) fn new(settings: ChoiceSettings, secret: &Key) -> Self {
        Self {
            settings,
            prefix_key: secret.derive("snapgate 2026-11 prefix of a prompt"),
            session_key: secret.derive("snapgate 2026-11 name of a session"),
        }
    }

    /// Reads from a request what its policy wants, and nothing else.
    pub(super) fn of<'r>(&self, headers: &'r HeaderMap, model: Option<&str>, prompt: Prompt<'_>) -> Steer<'r> {
        let own = model.and_then(|model| self.settings.policy_of_model.get(model));
        let policy = own.copied().unwrap_or(self.settings.policy);
        let session = || headers.get(&self.settings.session_header).filter(|value| !value.is_empty());
        Steer {
            policy,
            prefix_hash: if policy == Policy::PrefixAffinity { self.prefix_hash(prompt) } else { None },
            session_hash: match policy {
                Policy::SessionAffinity => session().map(|session| self.session_hash(session.as_bytes())),
                _ => None,
            },
            forced: headers.get(TARGET_POD).filter(|_| self.settings.allow_forced),
            repeated: false,
        }
    }

    /// Of the first bytes of the prompt; `None` without a prompt.
    fn prefix_hash(&self, prompt: Prompt<'_>) -> Option<u64> {
        let mut left = self.settings.prefix_bytes;
        let mut hasher = blake3::Hasher::new_keyed(&self.prefix_key);
        for part in [prompt.system.unwrap_or_default(), prompt.turns?] {
            let part = &part.as_bytes()[..part.len().min(left)];
            hasher.update(part);
            left -= part.len();
        }
        Some(first_bits(&hasher.finalize()))
    }

    fn session_hash(&self, session: &[u8]) -> u64 {
        first_bits(&blake3::keyed_hash(&self.session_key, session))
    }

    /// Chooses from the view, among targets that have not been tried; answers what the choice depended on, too.
    pub(super) fn choose(
        &self,
        view: &FleetView,
        model: Option<&str>,
        steer: &Steer<'_>,
        tried: &[Attempt],
    ) -> Result<(Choice, Inputs, u32), Undecided> {
        let pool = view.pools.of_model(model);
        let Steer { policy, prefix_hash, session_hash, forced, repeated } = *steer;
        let mut inputs = Inputs { prefix_hash, session_hash, ticket: None, draw: rand::random() };
        let eligible = pool.eligible.len() as u32;
        if let Some(forced) = forced {
            let named = |name: &str| name.as_bytes() == forced.as_bytes();
            let member = view.members.iter().position(|member| named(&member.sample.target.name));
            let member = member.ok_or(Undecided::UnknownTarget)?;
            return Ok((choose::forced(view, pool, member), inputs, eligible));
        }
        // Of a fleet that has nobody it is not known what it serves.
        if pool.serving == 0 && model.is_some() && !view.members.is_empty() {
            return Err(Undecided::ModelNotServed);
        }
        if policy == Policy::RoundRobin {
            // It has had its turn: with two targets, of which one fails, that one would always be next.
            inputs.ticket = Some(if repeated { inputs.draw } else { pool.next_turn() });
        }
        let choice = choose::target(view, pool, policy, self.settings.width, &inputs, tried);
        choice.map(|choice| (choice, inputs, eligible)).ok_or(Undecided::NoTarget(pool.excluded))
    }
}

fn first_bits(hash: &blake3::Hash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steering(policy: Policy, change: impl FnOnce(&mut ChoiceSettings)) -> Steering {
        let mut settings = ChoiceSettings {
            policy,
            policy_of_model: HashMap::new(),
            width: 16,
            prefix_bytes: 64,
            session_header: HeaderName::from_static("x-session-id"),
            allow_forced: false,
        };
        change(&mut settings);
        Steering::new(settings, &Key::new([7; 32]))
    }

    fn prompt(turns: &str) -> Prompt<'_> {
        Prompt { system: None, turns: Some(turns) }
    }

    #[test]
    fn prompts_that_begin_alike_have_one_hash() {
        let steering = steering(Policy::PrefixAffinity, |_| {});
        let hash = |prompt| steering.of(&HeaderMap::new(), None, prompt).prefix_hash;
        let system = "s".repeat(64);
        let (one, other) = (format!("{system} and then one"), format!("{system} or the other"));
        assert_eq!(hash(prompt(&one)), hash(prompt(&other)));
        assert_eq!(hash(prompt(&one)), hash(Prompt { system: Some(&system), turns: Some("[]") }));
        assert_ne!(hash(prompt(&one)), hash(prompt(&one[1..])));
        assert_eq!((hash(Prompt::default()), hash(prompt(&one)).is_some()), (None, true));
    }

    #[test]
    fn a_record_says_why_nobody_was_left() {
        let said = |unhealthy, model| nobody_is_left(Excluded { unhealthy, model, ..Excluded::default() });
        assert_eq!(said(0, 0), "the fleet has no target: none is configured or found");
        assert_eq!(said(3, 0), "every target is unhealthy: 3 of 3");
        assert_eq!(said(3, 2), "every target that serves the model is unhealthy: 3; 2 more do not serve it");
    }

    #[test]
    fn a_hash_needs_the_secret() {
        let steering = steering(Policy::PrefixAffinity, |_| {});
        let other = Steering::new(steering.settings.clone(), &Key::new([8; 32]));
        let hash = |steering: &Steering| steering.of(&HeaderMap::new(), None, prompt("hello")).prefix_hash;
        assert_ne!(hash(&steering), hash(&other));
    }

    #[test]
    fn only_what_the_policy_wants_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert("x-session-id", HeaderValue::from_static("s1"));
        headers.insert(TARGET_POD, HeaderValue::from_static("t0"));
        for policy in Policy::ALL {
            let steer = steering(policy, |_| {}).of(&headers, None, prompt("hello"));
            assert_eq!(steer.prefix_hash.is_some(), policy == Policy::PrefixAffinity);
            assert_eq!(steer.session_hash.is_some(), policy == Policy::SessionAffinity);
            assert_eq!(steer.forced, None, "choice.allow_forced is off");
        }
        let allowed = steering(Policy::Random, |settings| settings.allow_forced = true);
        assert!(allowed.of(&headers, None, Prompt::default()).forced.is_some());
    }

    #[test]
    fn a_model_has_its_own_policy() {
        let steering = steering(Policy::Random, |settings| {
            settings.policy_of_model.insert("m".into(), Policy::LeastQueue);
        });
        let policy = |model| steering.of(&HeaderMap::new(), model, Prompt::default()).policy;
        assert_eq!(
            [policy(Some("m")), policy(Some("n")), policy(None)],
            [Policy::LeastQueue, Policy::Random, Policy::Random]
        );
    }
}
