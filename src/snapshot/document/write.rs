//! The keys of the document in their order. `otel/snapshot.schema.json` has the same; a test compares them.

use super::Document;
use super::json::{Json, Object};
use super::parts::{
    AttemptPart, BackendReportPart, CandidatePart, DecisionPart, ExcludedPart, GatewayPart, InputsPart, OutcomePart,
    RequestPart, TimingsPart, TracePart,
};

impl Json for Document<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("schema", &self.schema);
        object.put("id", &self.id);
        object.put("phase", &self.phase);
        object.put("issued_at", &self.issued_at);
        object.put("issued_at_unix_us", &self.issued_at_unix_us);
        object.put("gateway", &self.gateway);
        object.put("trace", &self.trace);
        object.put("request", &self.request);
        object.put("decision", &self.decision);
        object.put("attempts", self.attempts.as_slice());
        object.put("outcome", &self.outcome);
        object.put("timings", &self.timings);
        object.put("backend_report", &self.backend_report);
        object.close();
    }
}

impl Json for GatewayPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("instance", &self.instance);
        object.put("instance_tag", &self.instance_tag);
        object.put("version", &self.version);
        object.put("config", &self.config);
        object.close();
    }
}

impl Json for TracePart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("trace_id", &self.trace_id);
        object.put("span_id", &self.span_id);
        object.put("parent_span_id", &self.parent_span_id);
        object.put("sampled", &self.sampled);
        object.close();
    }
}

impl Json for RequestPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("method", &self.method);
        object.put("path", &self.path);
        object.put("operation", &self.operation);
        object.put("model", &self.model);
        object.put("stream", &self.stream);
        object.put("body_bytes", &self.body_bytes);
        object.put("body_unread", &self.body_unread);
        object.put("max_tokens", &self.max_tokens);
        object.put("client_request_id", &self.client_request_id);
        object.put("tenant", &self.tenant);
        object.put("user_agent", &self.user_agent);
        object.put("labels", &self.labels);
        object.close();
    }
}

impl Json for DecisionPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("policy", &self.policy);
        object.put("reason", &self.reason);
        object.put("target", &self.target);
        object.put("forced", &self.forced);
        object.put("fallback", &self.fallback);
        object.put("decided_offset_ns", &self.decided_offset_ns);
        object.put("state", &self.state);
        object.put("score_order", &self.score_order);
        object.put("view_age_ms", &self.view_age_ms);
        object.put("eligible", &self.eligible);
        object.put("excluded", &self.excluded);
        object.put("candidates", self.candidates.as_slice());
        object.put("inputs", &self.inputs);
        object.close();
    }
}

impl Json for ExcludedPart {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("unhealthy", &self.unhealthy);
        object.put("ejected", &self.ejected);
        object.put("model", &self.model);
        object.put("no_fresh_state", &self.no_fresh_state);
        object.close();
    }
}

impl Json for CandidatePart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("target", &self.target);
        object.put("rank", &self.rank);
        object.put("chosen", &self.chosen);
        object.put("place", &self.place);
        object.put("score", &self.score);
        object.put("score_parts", &self.score_parts);
        object.put("excluded", &self.excluded);
        object.put("gateway_in_flight", &self.gateway_in_flight);
        object.put("gateway_requests_per_second", &self.gateway_requests_per_second);
        object.put("gateway_tokens_per_second", &self.gateway_tokens_per_second);
        object.put("sample_age_ms", &self.sample_age_ms);
        object.put("state", &*self.state);
        object.close();
    }
}

impl Json for InputsPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("prefix_hash", &self.prefix_hash);
        object.put("session_hash", &self.session_hash);
        object.put("ticket", &self.ticket);
        object.put("draw", &self.draw);
        object.close();
    }
}

impl Json for AttemptPart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("target", &self.target);
        object.put("address", &self.address);
        object.put("started_offset_us", &self.started_offset_us);
        object.put("connect_us", &self.connect_us);
        object.put("first_byte_offset_us", &self.first_byte_offset_us);
        object.put("status", &self.status);
        object.put("error", &self.error);
        object.close();
    }
}

impl Json for OutcomePart<'_> {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("target", &self.target);
        object.put("attempt_count", &self.attempt_count);
        object.put("status", &self.status);
        object.put("ending", &self.ending);
        object.put("fault", &self.fault);
        object.put("error", &self.error);
        object.put("finish_reason", &self.finish_reason);
        object.put("response_id", &self.response_id);
        object.put("response_model", &self.response_model);
        object.put("prompt_tokens", &self.prompt_tokens);
        object.put("completion_tokens", &self.completion_tokens);
        object.put("cached_tokens", &self.cached_tokens);
        object.put("tokens_estimated", &self.tokens_estimated);
        object.put("response_bytes", &self.response_bytes);
        object.put("events", &self.events);
        object.close();
    }
}

impl Json for TimingsPart {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("choose_ns", &self.choose_ns);
        object.put("first_byte_offset_us", &self.first_byte_offset_us);
        object.put("first_event_offset_us", &self.first_event_offset_us);
        object.put("first_content_offset_us", &self.first_content_offset_us);
        object.put("end_offset_us", &self.end_offset_us);
        object.put("inter_token_p50_us", &self.inter_token_p50_us);
        object.put("inter_token_p99_us", &self.inter_token_p99_us);
        object.put("inter_token_max_us", &self.inter_token_max_us);
        object.put("engine_queue_us", &self.engine_queue_us);
        object.close();
    }
}

impl Json for BackendReportPart {
    fn json(&self, out: &mut Vec<u8>) {
        let mut object = Object::open(out);
        object.put("source", &self.source);
        object.put("phase", &self.phase);
        object.put("received_offset_us", &self.received_offset_us);
        object.put("named_metrics", &self.named_metrics);
        object.close();
    }
}
