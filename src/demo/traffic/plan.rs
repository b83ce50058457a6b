//! Which requests are sent: a mix of kinds, people who go on talking, and headers as clients set them.

use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::demo::draws::Draws;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Conversations that go on at the same time.
const CONVERSATIONS: usize = 6;

/// After so many questions a conversation is over and another one begins.
const QUESTIONS_MAX: usize = 6;

/// A request that is to be sent.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests ask what a plan was meant to be"))]
    pub(super) kind: Kind,
    pub(super) path: &'static str,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: String,
    /// The client leaves after so many events.
    pub(super) leave_after: Option<u32>,
}

/// What a request is an example of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// The next question of a conversation, streamed; it shares its beginning with the one before.
    Conversation,
    /// A question by itself, streamed.
    Question,
    /// A question answered in one piece.
    Whole,
    CompletionStream,
    CompletionWhole,
    /// The client leaves in the middle of a long stream.
    Leaver,
    UnknownModel,
    MalformedJson,
}

/// Each kind and how many of a hundred requests are of it.
const MIX: [(Kind, u32); 8] = [
    (Kind::Conversation, 34),
    (Kind::Question, 26),
    (Kind::Whole, 14),
    (Kind::CompletionStream, 6),
    (Kind::CompletionWhole, 6),
    (Kind::Leaver, 8),
    (Kind::UnknownModel, 3),
    (Kind::MalformedJson, 3),
];

const SYSTEM_PROMPTS: [&str; 3] = [
    "You are the assistant of a small online shop for bicycles. Answer politely and briefly. If a customer asks for an \
     order, ask for its number first. Never promise a delivery date that the warehouse has not confirmed. Prices are in \
     euros and include tax. When a part does not fit a frame, say so plainly and name one that does.",
    "You review code for a team of five. Say first what the change does, then what could break, then what you would do \
     differently, each in at most three sentences. Do not comment on formatting, a tool does that. If a test is missing \
     for a new branch, name the branch. If you are not sure, say what you would have to read to be sure.",
    "You help a hospital's night staff to find the right page of the handbook. Quote the heading and the number of the \
     page, never a dose from memory. If a question is about an emergency, the first line of the answer is the number of \
     the team to call. Keep to the handbook's own words, and say when it has none.",
];

const QUESTIONS: [&str; 12] = [
    "Which of these fits a frame from 2019?",
    "Why does the second test only fail at night?",
    "Can you say that in one sentence?",
    "What would you do differently?",
    "Where is the page about allergies?",
    "Is the order on its way?",
    "And if the queue is full?",
    "Please compare the two and say which one is lighter.",
    "What does the third line do?",
    "Who has to be told?",
    "How long does it take from the warehouse to Leipzig, and does the weekend count?",
    "Is there a shorter way to write it that is still easy to read for somebody new to the team?",
];

/// What a conversation remembers of the answers; their length is what matters.
const ANSWERS: [&str; 3] = [
    "The blue one does. It is a little heavier, but it comes with the bolts.",
    "Because the clock of the test is the wall clock, which on that machine is set back an hour in winter. Pass the \
     time in, and it will not matter any more.",
    "Page 112, under the heading `Before anything else`. It is short.",
];

const BEGINNINGS: [&str; 3] = [
    "Once upon a time there was a gateway that forgot why it had sent a request where it had sent it, and so",
    "def median(values):\n    \"\"\"The middle one of the sorted values.\"\"\"\n",
    "Dear customer,\n\nthank you for your letter of the 3rd. We are sorry to hear that the bell",
];

/// Each tenant's credential, and one client that has none. They open nothing: a simulated pod does not ask for any.
const CREDENTIALS: [Option<&str>; 5] = [
    Some("Bearer sk-demo-shop"),
    Some("Bearer sk-demo-shop"),
    Some("Bearer sk-demo-review"),
    Some("Bearer sk-demo-ward"),
    None,
];

const USER_AGENTS: [&str; 3] = ["OpenAI/Python 2.3.0", "openai-node/6.1.0", "curl/8.14.1"];

/// Makes plans. The same seed makes the same ones.
pub(super) struct Planner {
    draws: Draws,
    models: Vec<String>,
    /// What was said so far in each conversation, as messages.
    conversations: Vec<Vec<Value>>,
}

impl Planner {
    pub(super) fn new(seed: u64, models: Vec<String>) -> Self {
        let mut planner = Self { draws: Draws::of(seed, 0), models, conversations: Vec::new() };
        planner.conversations = (0..CONVERSATIONS).map(|_| planner.conversation()).collect();
        planner
    }

    pub(super) fn next(&mut self) -> Plan {
        let kind = self.kind();
        let (path, body, leave_after) = match kind {
            Kind::Conversation => (CHAT, self.continued(), None),
            Kind::Question => (CHAT, self.question(true), None),
            Kind::Whole => (CHAT, self.question(false), None),
            Kind::CompletionStream => (COMPLETIONS, self.completion(true), None),
            Kind::CompletionWhole => (COMPLETIONS, self.completion(false), None),
            Kind::Leaver => (CHAT, self.question(true), Some(2 + self.below(20))),
            Kind::UnknownModel => (CHAT, self.unknown_model(), None),
            Kind::MalformedJson => (CHAT, json!("cut off in the middle, says the client"), None),
        };
        let mut body = body.to_string();
        if kind == Kind::MalformedJson {
            body.truncate(body.len() / 2);
        }
        Plan { kind, path, headers: self.headers(), body, leave_after }
    }

    fn kind(&mut self) -> Kind {
        let mut left = self.below(MIX.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in MIX {
            if left < weight {
                return kind;
            }
            left -= weight;
        }
        unreachable!("the draw is below the sum of the weights")
    }

    fn headers(&mut self) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = vec![
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (USER_AGENT, HeaderValue::from_static(self.one_of(&USER_AGENTS))),
        ];
        if let Some(credential) = self.one_of(&CREDENTIALS) {
            headers.push((AUTHORIZATION, HeaderValue::from_static(credential)));
        }
        if self.below(4) == 0 {
            let id = format!("order-{:05}", self.below(100_000));
            headers.push((REQUEST_ID, id.parse().expect("letters and digits are visible ASCII")));
        }
        if self.below(10) < 3 {
            let [high, low, span] = [(); 3].map(|()| self.draws.next() | 1);
            let parent = format!("00-{high:016x}{low:016x}-{span:016x}-01");
            headers.push((TRACEPARENT, parent.parse().expect("digits and dashes are visible ASCII")));
        }
        headers
    }

    fn conversation(&mut self) -> Vec<Value> {
        vec![json!({"role": "system", "content": self.one_of(&SYSTEM_PROMPTS)})]
    }

    /// The next question of some conversation, with all that was said before.
    fn continued(&mut self) -> Value {
        let which = self.below(CONVERSATIONS as u32) as usize;
        // A system message, then a question and an answer each.
        if self.conversations[which].len() > 2 * QUESTIONS_MAX {
            self.conversations[which] = self.conversation();
        }
        let (question, answer) = (self.one_of(&QUESTIONS), self.one_of(&ANSWERS));
        self.conversations[which].push(json!({"role": "user", "content": question}));
        let messages = self.conversations[which].clone();
        self.conversations[which].push(json!({"role": "assistant", "content": answer}));
        let max_tokens = self.max_tokens();
        json!({"model": self.model(), "stream": true, "stream_options": {"include_usage": true},
               "max_tokens": max_tokens, "messages": messages})
    }

    fn question(&mut self, stream: bool) -> Value {
        let question = self.one_of(&QUESTIONS);
        let max_tokens = self.max_tokens();
        let mut body = json!({"model": self.model(), "stream": stream, "max_completion_tokens": max_tokens,
                              "messages": [{"role": "user", "content": question}]});
        // Many clients never ask for usage.
        if stream && self.below(2) == 0 {
            body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": self.below(4) == 0});
        }
        body
    }

    fn completion(&mut self, stream: bool) -> Value {
        let (prompt, max_tokens) = (self.one_of(&BEGINNINGS), self.max_tokens());
        json!({"model": self.model(), "stream": stream, "max_tokens": max_tokens, "prompt": prompt})
    }

    fn unknown_model(&mut self) -> Value {
        json!({"model": "llama-9-900b", "messages": [{"role": "user", "content": self.one_of(&QUESTIONS)}]})
    }

    fn model(&mut self) -> String {
        let which = self.below(self.models.len() as u32);
        self.models[which as usize].clone()
    }

    fn max_tokens(&mut self) -> u32 {
        self.one_of(&[24, 64, 96, 128, 256])
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u32) as usize]
    }

    fn below(&mut self, end: u32) -> u32 {
        (self.draws.next() % u64::from(end)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn plans(seed: u64) -> Vec<Plan> {
        let mut planner = Planner::new(seed, vec!["a".to_owned(), "b".to_owned()]);
        (0..2_000).map(|_| planner.next()).collect()
    }

    #[test]
    fn the_mix_is_as_written_and_a_seed_repeats_it() {
        let mut counts = HashMap::<Kind, u32>::new();
        for plan in plans(1) {
            *counts.entry(plan.kind).or_default() += 1;
        }
        for (kind, weight) in MIX {
            let count = counts[&kind];
            assert!((weight * 14..weight * 27).contains(&count), "{kind:?}: {count} of 2,000 at {weight} %");
        }
        let bodies = |seed| plans(seed).into_iter().map(|plan| (plan.headers, plan.body)).collect::<Vec<_>>();
        assert_eq!(bodies(1), bodies(1));
        assert_ne!(bodies(1), bodies(2));
    }

    #[test]
    fn only_the_malformed_are_malformed() {
        for plan in plans(2) {
            let parsed = serde_json::from_str::<Value>(&plan.body);
            assert_eq!(parsed.is_err(), plan.kind == Kind::MalformedJson, "{plan:?}");
            let Ok(body) = parsed else { continue };
            let known = ["a", "b"].iter().any(|model| body["model"] == *model);
            assert_eq!(known, plan.kind != Kind::UnknownModel, "{plan:?}");
            assert_eq!(plan.leave_after.is_some(), plan.kind == Kind::Leaver);
        }
    }

    #[test]
    fn a_conversation_goes_on_from_what_was_said_and_ends() {
        let mut seen = HashSet::new();
        let mut continued = 0;
        for plan in plans(3).into_iter().filter(|plan| plan.kind == Kind::Conversation) {
            let body: Value = serde_json::from_str(&plan.body).unwrap();
            let messages = body["messages"].as_array().unwrap().clone();
            assert!(messages.len() <= 2 * QUESTIONS_MAX, "{}", messages.len());
            if messages.len() > 2 {
                assert!(seen.contains(&messages[..messages.len() - 2]), "{messages:?}");
                continued += 1;
            }
            seen.insert(messages);
        }
        assert!(continued > 300, "{continued}");
    }

    #[test]
    fn headers_vary_as_clients_do() {
        let plans = plans(4);
        let share = |name: &HeaderName| {
            let with = plans.iter().filter(|plan| plan.headers.iter().any(|(other, _)| other == name)).count();
            with as f64 / plans.len() as f64
        };
        assert!((0.75..0.85).contains(&share(&AUTHORIZATION)), "{}", share(&AUTHORIZATION));
        assert!((0.2..0.3).contains(&share(&REQUEST_ID)), "{}", share(&REQUEST_ID));
        assert!((0.25..0.35).contains(&share(&TRACEPARENT)), "{}", share(&TRACEPARENT));
    }
}
