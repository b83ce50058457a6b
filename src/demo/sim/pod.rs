//! What a simulated pod answers to each request.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, SERVER, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::answer::Answer;
use super::ask::{Ask, Operation, Refusal};
use super::body::{SimBody, Stream};
use super::dcgm;
use super::engine::Engine;
use super::faults::{Fault, tokens_of_request};
use super::generation::{Generation, Pace};
use super::load_report::{self, Asked};
use super::page::Page;
use super::settings::{ANSWER_TOKENS, SimEngine, SimSettings};
use super::sglang_page;
use super::totals::FinishReason;
use super::wire::{OnPurpose, ResetSwitch};
use crate::clock::Clock;
use crate::demo::draws::{Draws, hash_of};
use crate::snapshot::Moment;

/// The largest body that is read.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
const PAGE: HeaderValue = HeaderValue::from_static("text/plain; version=1.0.0; charset=utf-8");

/// What all requests to one pod share.
#[derive(Debug)]
pub(super) struct Pod {
    settings: SimSettings,
    seed: u64,
    engine: Arc<Engine>,
    clock: Arc<Clock>,
    started: Moment,
    requests: AtomicU64,
    fingerprint: String,
    model_json: String,
    /// A recorded metrics page, in place of its own.
    page: Option<Bytes>,
}

impl Pod {
    pub(super) fn new(settings: SimSettings, page: Option<Bytes>) -> Self {
        let clock = Clock::start();
        Self {
            seed: settings.seed.unwrap_or_else(rand::random),
            engine: Engine::new(settings.capacity as usize, settings.kv_blocks),
            started: clock.now(),
            clock,
            requests: AtomicU64::new(0),
            fingerprint: format!("vllm-0.32.0-{:08x}", hash_of(&settings.model) as u32),
            model_json: json_text(&settings.model),
            page,
            settings,
        }
    }

    pub(super) fn settings(&self) -> &SimSettings {
        &self.settings
    }

    /// Answers one request, or ends its connection on purpose.
    pub(super) async fn serve(
        &self,
        request: Request<Incoming>,
        reset: ResetSwitch,
    ) -> Result<Response<SimBody>, OnPurpose> {
        let operation = match (request.method(), request.uri().path()) {
            (&Method::POST, "/v1/chat/completions") => Operation::Chat,
            (&Method::POST, "/v1/completions") => Operation::Completion,
            (&Method::GET, "/health") => return Ok(self.health()),
            (&Method::GET, "/metrics") => return Ok(self.metrics().await),
            (&Method::GET, "/v1/models") => return Ok(self.models()),
            (&Method::GET, dcgm::PATH) if self.settings.gpus > 0 => return Ok(self.gpus()),
            (_, "/v1/chat/completions" | "/v1/completions") => return Ok(not_allowed("POST")),
            (_, "/health" | "/metrics" | "/v1/models") => return Ok(not_allowed("GET")),
            _ => return Ok(refused(&Refusal::of_status(StatusCode::NOT_FOUND, "Not Found"))),
        };
        match self.generate(operation, request, reset).await {
            Ok(response) => Ok(response),
            Err(Ending::Refused(refusal)) => Ok(refused(&refusal)),
            Err(Ending::Reset(on_purpose)) => Err(on_purpose),
        }
    }

    async fn generate(
        &self,
        operation: Operation,
        request: Request<Incoming>,
        reset: ResetSwitch,
    ) -> Result<Response<SimBody>, Ending> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut draws = Draws::of(self.seed, number);
        let (head, body) = request.into_parts();
        let body = read(body).await?;
        let fault = Fault::of_request(&head.headers, &self.settings, &mut draws).map_err(bad_header)?;
        match fault {
            Some(Fault::Error(status)) => {
                self.engine.failed();
                return Err(Refusal::of_status(status, "simulated engine failure").into());
            }
            Some(Fault::Reset) => return Err(Ending::Reset(reset.reset())),
            Some(Fault::SlowHead(after)) => tokio::time::sleep(after).await,
            _ => {}
        }
        let ask = Ask::parse(operation, &body)?;
        let tokens = tokens_of_request(&head.headers).map_err(bad_header)?;
        let mut answer = self.answer(operation, &ask, &head.headers, &mut draws);
        (answer.tokens, answer.finish) = self.length(&ask, tokens, &mut draws);
        self.check(&ask, answer.tokens)?;
        let ticket = self.engine.enter(ask.prompt, answer.tokens).map_err(|_| {
            Refusal::of_status(StatusCode::SERVICE_UNAVAILABLE, "the queue of this engine is full; try another")
        })?;
        if fault == Some(Fault::Hang) {
            let _keeps_its_slot = ticket;
            return pending().await;
        }
        let pace =
            Pace { ttft: self.settings.ttft, token_time: self.settings.token_time, jitter: self.settings.jitter };
        let mut generation = Generation::new(ticket, pace, draws, answer.tokens, answer.finish);
        if ask.stream {
            let stream = Stream::new(generation, answer, fault, reset);
            let mut response = response(StatusCode::OK, EVENTS, SimBody::Stream(Box::new(stream)));
            self.report(&head.headers, true, number, response.headers_mut());
            return Ok(response);
        }
        while poll_fn(|cx| generation.poll_token(cx)).await.is_some() {}
        let body = SimBody::of_answer(answer.json(generation.known()), fault, &reset);
        let mut response = response(StatusCode::OK, JSON, body);
        self.report(&head.headers, false, number, response.headers_mut());
        Ok(response)
    }

    /// The answer but for its length.
    fn answer(&self, operation: Operation, ask: &Ask, headers: &HeaderMap, draws: &mut Draws) -> Answer {
        let prefix = match operation {
            Operation::Chat => "chatcmpl-",
            Operation::Completion => "cmpl-",
        };
        let drawn = draws.next();
        let id_json = match headers.get("x-request-id").and_then(|id| id.to_str().ok()) {
            Some(id) => json_text(&format!("{prefix}{id}")),
            None => format!("\"{prefix}{drawn:016x}\""),
        };
        Answer {
            operation,
            id_json,
            model_json: self.model_json.clone(),
            created: self.clock.now().unix_ms() / 1000,
            fingerprint: self.fingerprint.clone(),
            prompt_tokens: ask.prompt.tokens,
            tokens: 0,
            finish: FinishReason::Stop,
            include_usage: ask.include_usage,
            continuous_usage: ask.continuous_usage,
            prompt_tokens_details: self.settings.prompt_tokens_details,
            per_request_metrics: self.settings.per_request_metrics,
            text_seed: self.seed ^ ask.text_hash,
        }
    }

    /// How long the answer is, and whether it ends by itself or at the request's limit.
    fn length(&self, ask: &Ask, asked: Option<u32>, draws: &mut Draws) -> (u32, FinishReason) {
        let drawn = |tokens: u32| (f64::from(tokens) * draws.around_one(self.settings.jitter)).round().max(1.0) as u32;
        match (asked.or(self.settings.tokens.map(drawn)), ask.max_tokens) {
            (Some(own), Some(limit)) if own > limit => (limit, FinishReason::Length),
            (Some(own), _) => (own, FinishReason::Stop),
            (None, limit) => (limit.unwrap_or(ANSWER_TOKENS), FinishReason::Length),
        }
    }

    /// Refuses what this pod does not serve and what its cache can never hold.
    fn check(&self, ask: &Ask, tokens: u32) -> Result<(), Refusal> {
        match &ask.model {
            Some(model) if *model != self.settings.model => {
                return Err(Refusal::unknown_model(model, &self.settings.model));
            }
            _ => {}
        }
        let (limit, prompt) = (self.engine.context_tokens(), ask.prompt.tokens);
        if prompt.saturating_add(tokens) <= limit {
            return Ok(());
        }
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your prompt contains {prompt} input \
             tokens and you asked for {tokens} output tokens. Please reduce the length of the input prompt."
        );
        Err(Refusal::of_parameter("input_tokens", message))
    }

    /// Adds a load report to the head of a success, if the request asks for one: of the state at that moment, which for an
    /// answer in one piece is the end.
    fn report(&self, asked: &HeaderMap, is_stream: bool, number: u64, answer: &mut HeaderMap) {
        let asked = Asked { format: asked.get("endpoint-load-metrics-format"), is_stream, number };
        if let Some((name, value)) = load_report::of(self.settings.load_reports, asked, &self.engine.load()) {
            answer.insert(name, value);
        }
    }

    fn health(&self) -> Response<SimBody> {
        let status = if self.settings.unhealthy { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let mut response = response(status, JSON, SimBody::from(Bytes::new()));
        response.headers_mut().remove(CONTENT_TYPE);
        response
    }

    async fn metrics(&self) -> Response<SimBody> {
        if !self.settings.metrics_delay.is_zero() {
            tokio::time::sleep(self.settings.metrics_delay).await;
        }
        if let Some(page) = &self.page {
            return response(StatusCode::OK, PAGE, page.clone().into());
        }
        let (load, totals) = self.engine.read();
        let (model, kv_blocks) = (self.settings.model.as_str(), self.settings.kv_blocks);
        let text = match self.settings.engine {
            SimEngine::Vllm => Page { model, kv_blocks, created: self.started.0 as f64 / 1e6 }.text(load, &totals),
            SimEngine::Sglang => sglang_page::text(model, load, &totals),
        };
        response(StatusCode::OK, PAGE, Bytes::from(text).into())
    }

    /// The page of the exporter on the pod's node.
    fn gpus(&self) -> Response<SimBody> {
        let SimSettings { name, gpus, capacity, .. } = &self.settings;
        let node = dcgm::Node { pod: name, gpus: *gpus, capacity: *capacity };
        response(StatusCode::OK, PAGE, Bytes::from(node.page(self.engine.load())).into())
    }

    fn models(&self) -> Response<SimBody> {
        let (model, created) = (&self.model_json, self.started.unix_ms() / 1000);
        let list = format!(
            r#"{{"object":"list","data":[{{"id":{model},"object":"model","created":{created},"owned_by":"vllm","root":{model},"parent":null,"max_model_len":{},"permission":[{{"id":"modelperm-{:016x}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}]}}"#,
            self.engine.context_tokens(),
            hash_of(model),
        );
        response(StatusCode::OK, JSON, Bytes::from(list).into())
    }
}

/// How a generation request ends that is not answered.
enum Ending {
    Refused(Refusal),
    Reset(OnPurpose),
}

impl From<Refusal> for Ending {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("a simulated engine reads at most {BODY_BYTES_MAX} bytes");
            Err(Refusal::of_status(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Err(error) => Err(Refusal::of_status(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
    }
}

fn bad_header(error: super::faults::FaultError) -> Refusal {
    Refusal::of_status(StatusCode::BAD_REQUEST, error.to_string())
}

fn refused(refusal: &Refusal) -> Response<SimBody> {
    response(refusal.status, JSON, Bytes::from(refusal.json()).into())
}

fn not_allowed(allowed: &'static str) -> Response<SimBody> {
    let mut response = refused(&Refusal::of_status(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// With the headers that a vLLM behind uvicorn sends; the date is hyper's.
fn response(status: StatusCode, content_type: HeaderValue, body: SimBody) -> Response<SimBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("uvicorn"));
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    response
}

fn json_text(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}
