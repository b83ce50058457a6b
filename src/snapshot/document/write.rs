//! The keys of the document in their order. `otel/snapshot.schema.json` has the same; a test compares them.

use super::Document;
use super::json::{Json, Object, key};
use super::parts::{
    AttemptPart, BackendReportPart, CandidatePart, ChoicePart, DecisionPart, ExcludedPart, GatewayPart, InputsPart,
    KubernetesPart, OutcomePart, RequestPart, TimingsPart, TracePart,
};

impl Json for Document<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("schema"), &self.schema);
        object.put(key!("id"), &self.id);
        object.put(key!("phase"), &self.phase);
        object.put(key!("issued_at"), &self.issued_at);
        object.put(key!("issued_at_unix_us"), &self.issued_at_unix_us);
        object.put(key!("gateway"), &self.gateway);
        object.put(key!("trace"), &self.trace);
        object.put(key!("request"), &self.request);
        object.put(key!("decision"), &self.decision);
        object.put(key!("attempts"), self.attempts.as_slice());
        object.put(key!("outcome"), &self.outcome);
        object.put(key!("timings"), &self.timings);
        object.put(key!("backend_report"), &self.backend_report);
        object.close();
    }
}

impl Json for GatewayPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("instance"), &self.instance);
        object.put(key!("instance_tag"), &self.instance_tag);
        object.put(key!("version"), &self.version);
        object.put(key!("config"), &self.config);
        object.close();
    }
}

impl Json for TracePart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("trace_id"), &self.trace_id);
        object.put(key!("span_id"), &self.span_id);
        object.put(key!("parent_span_id"), &self.parent_span_id);
        object.put(key!("sampled"), &self.sampled);
        object.put(key!("exported"), &self.exported);
        object.put(key!("linked_trace_id"), &self.linked_trace_id);
        object.put(key!("linked_span_id"), &self.linked_span_id);
        object.close();
    }
}

impl Json for RequestPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("method"), &self.method);
        object.put(key!("path"), &self.path);
        object.put(key!("operation"), &self.operation);
        object.put(key!("model"), &self.model);
        object.put(key!("stream"), &self.stream);
        object.put(key!("body_bytes"), &self.body_bytes);
        object.put(key!("body_unread"), &self.body_unread);
        object.put(key!("max_tokens"), &self.max_tokens);
        object.put(key!("client_request_id"), &self.client_request_id);
        object.put(key!("tenant"), &self.tenant);
        object.put(key!("user_agent"), &self.user_agent);
        object.put(key!("labels"), &self.labels);
        object.close();
    }
}

impl Json for DecisionPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("policy"), &self.policy);
        object.put(key!("reason"), &self.reason);
        object.put(key!("target"), &self.target);
        object.put(key!("kubernetes"), &self.kubernetes);
        object.put(key!("forced"), &self.forced);
        object.put(key!("fallback"), &self.fallback);
        object.put(key!("decided_offset_ns"), &self.decided_offset_ns);
        object.put(key!("state"), &self.state);
        object.put(key!("score_order"), &self.score_order);
        object.put(key!("view_age_ms"), &self.view_age_ms);
        object.put(key!("eligible"), &self.eligible);
        object.put(key!("excluded"), &self.excluded);
        object.put(key!("candidates"), self.candidates.as_slice());
        object.put(key!("inputs"), &self.inputs);
        object.close();
    }
}

impl Json for KubernetesPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("namespace"), &self.namespace);
        object.put(key!("pod"), &self.pod);
        object.put(key!("uid"), &self.uid);
        object.put(key!("node"), &self.node);
        object.put(key!("labels"), &self.labels);
        object.close();
    }
}

impl Json for ExcludedPart {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("unhealthy"), &self.unhealthy);
        object.put(key!("ejected"), &self.ejected);
        object.put(key!("model"), &self.model);
        object.put(key!("no_fresh_state"), &self.no_fresh_state);
        object.close();
    }
}

impl Json for CandidatePart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("target"), &self.target);
        object.put(key!("rank"), &self.rank);
        object.put(key!("chosen"), &self.chosen);
        object.put(key!("place"), &self.place);
        object.put(key!("score"), &self.score);
        object.put(key!("score_parts"), &self.score_parts);
        object.put(key!("excluded"), &self.excluded);
        object.put(key!("gateway_in_flight"), &self.gateway_in_flight);
        object.put(key!("gateway_requests_per_second"), &self.gateway_requests_per_second);
        object.put(key!("gateway_tokens_per_second"), &self.gateway_tokens_per_second);
        object.put(key!("sample_age_ms"), &self.sample_age_ms);
        object.put(key!("state"), &*self.state);
        object.close();
    }
}

impl Json for InputsPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("prefix_hash"), &self.prefix_hash);
        object.put(key!("session_hash"), &self.session_hash);
        object.put(key!("ticket"), &self.ticket);
        object.put(key!("draw"), &self.draw);
        object.close();
    }
}

impl Json for AttemptPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("target"), &self.target);
        object.put(key!("address"), &self.address);
        object.put(key!("started_offset_us"), &self.started_offset_us);
        object.put(key!("connect_us"), &self.connect_us);
        object.put(key!("first_byte_offset_us"), &self.first_byte_offset_us);
        object.put(key!("status"), &self.status);
        object.put(key!("error"), &self.error);
        object.put(key!("choice"), &self.choice);
        object.close();
    }
}

impl Json for ChoicePart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("reason"), &self.reason);
        object.put(key!("fallback"), &self.fallback);
        object.put(key!("view_age_ms"), &self.view_age_ms);
        object.put(key!("eligible"), &self.eligible);
        object.put(key!("excluded"), &self.excluded);
        object.put(key!("considered"), &self.considered);
        object.put(key!("score"), &self.score);
        object.put(key!("draw"), &self.draw);
        object.close();
    }
}

impl Json for OutcomePart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("target"), &self.target);
        object.put(key!("attempt_count"), &self.attempt_count);
        object.put(key!("status"), &self.status);
        object.put(key!("ending"), &self.ending);
        object.put(key!("fault"), &self.fault);
        object.put(key!("error"), &self.error);
        object.put(key!("finish_reason"), &self.finish_reason);
        object.put(key!("response_id"), &self.response_id);
        object.put(key!("response_model"), &self.response_model);
        object.put(key!("prompt_tokens"), &self.prompt_tokens);
        object.put(key!("completion_tokens"), &self.completion_tokens);
        object.put(key!("cached_tokens"), &self.cached_tokens);
        object.put(key!("tokens_estimated"), &self.tokens_estimated);
        object.put(key!("response_bytes"), &self.response_bytes);
        object.put(key!("events"), &self.events);
        object.close();
    }
}

impl Json for TimingsPart {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("choose_ns"), &self.choose_ns);
        object.put(key!("first_byte_offset_us"), &self.first_byte_offset_us);
        object.put(key!("first_event_offset_us"), &self.first_event_offset_us);
        object.put(key!("first_content_offset_us"), &self.first_content_offset_us);
        object.put(key!("end_offset_us"), &self.end_offset_us);
        object.put(key!("inter_token_p50_us"), &self.inter_token_p50_us);
        object.put(key!("inter_token_p99_us"), &self.inter_token_p99_us);
        object.put(key!("inter_token_max_us"), &self.inter_token_max_us);
        object.put(key!("engine_queue_us"), &self.engine_queue_us);
        object.close();
    }
}

impl Json for BackendReportPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put(key!("source"), &self.source);
        object.put(key!("format"), &self.format);
        object.put(key!("phase"), &self.phase);
        object.put(key!("received_offset_us"), &self.received_offset_us);
        object.put(key!("named_metrics"), &self.named_metrics);
        object.put(key!("other_metrics"), &self.other_metrics);
        object.close();
    }
}
