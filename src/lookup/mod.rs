//! The read side: answers what became of a request, from the ledger while it is fresh and from the store ever after.
//!
//! Nothing here runs on the data path. In the order in which a question meets them: `auth` decides who may ask,
//! `accept` in which form the answer goes out, [`key`] what was asked for, [`resolve`] where the answer is, `wait` when
//! it is ready, [`shape`] what of it is told, [`problem`] how to say that there is none and [`render`] how to say it to a
//! person. `bulk` answers many keys, [`list`] questions without one, page by page (`cursor`). [`client`] is the other end:
//! how the command line asks for a key, for a whole list ([`export`]) and for what comes ([`tail`]).
//!
//! What is deliberately absent: nothing here writes, and nothing here knows the data path, the pipeline or the exits.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::snapshot::{FleetView, Run};
use crate::store::Reader;
use crate::telemetry::Metrics;

mod accept;
mod auth;
mod bulk;
pub mod client;
mod cursor;
pub mod export;
mod fleet;
pub mod key;
pub mod list;
pub mod moment;
pub mod problem;
pub mod render;
pub mod resolve;
mod routes;
pub mod shape;
#[cfg(test)]
mod specimen;
pub mod tail;
#[cfg(test)]
mod tests;
mod wait;

pub use auth::Token;
pub use key::Key;
pub use problem::Problem;

/// Reads of the store at one time: far fewer than the runtime's blocking threads, so that lookups cannot take them all.
const READS_MAX: usize = 16;

/// Lookups that wait for their request's end at one time. One more is refused, not queued.
const WAITS_MAX: usize = 1024;

/// Bulk lookups at one time, each of some megabytes at most. One more is refused, not queued.
const BULKS_MAX: usize = 16;

/// Who may look up, and where the listener stands.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Whoever presents one of these may read everything. With none, only a loopback listener serves lookups.
    pub tokens: Vec<Token>,
    /// The admin listener is bound to a loopback address, so that only this machine can ask.
    pub loopback: bool,
}

/// Why the gateway is not ready; ready if there is no reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// One sentence each, for operators.
    pub reasons: Vec<String>,
}

/// Gives the current view of the fleet.
pub type FleetSource = Arc<dyn Fn() -> Arc<FleetView> + Send + Sync>;

/// Says whether the gateway is ready, and if not, why.
pub type ReadinessSource = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// Everything a lookup may look at. Built by the application.
#[derive(Clone)]
pub struct LookupState {
    /// This process: its tag tells other instances' IDs from its own.
    pub run: Arc<Run>,
    /// What is issued and not stored yet.
    pub ledger: Arc<Ledger>,
    /// What is stored; `None` if the store is off.
    pub reader: Option<Reader>,
    /// For the metrics page.
    pub metrics: Arc<Metrics>,
    /// For ages, and to tell an ID of the future from one that may exist.
    pub clock: Arc<Clock>,
    /// For `/v1/fleet`.
    pub fleet: FleetSource,
    /// For `/readyz`.
    pub readiness: ReadinessSource,
    /// Who may look up.
    pub settings: Settings,
}

impl fmt::Debug for LookupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookupState").field("run", &self.run).field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The state and its bounds, shared by all requests to the router.
struct Lookup {
    state: LookupState,
    /// Permits for blocking reads of the store.
    reads: Arc<Semaphore>,
    /// Permits for lookups that wait.
    waits: Arc<Semaphore>,
    /// Permits for lookups of many keys.
    bulks: Arc<Semaphore>,
}

/// The admin interface. Lookups are guarded; health, readiness and metrics are open wherever the listener is bound.
pub fn router(state: LookupState) -> Router {
    let permits = |count| Arc::new(Semaphore::new(count));
    let (reads, waits, bulks) = (permits(READS_MAX), permits(WAITS_MAX), permits(BULKS_MAX));
    router_of(Arc::new(Lookup { state, reads, waits, bulks }))
}

fn router_of(lookup: Arc<Lookup>) -> Router {
    let guarded = Router::new()
        .route("/v1/snapshots", get(list::list))
        .route("/v1/snapshots/{key}", get(routes::snapshot))
        .route("/v1/snapshots/resolve", post(bulk::resolve_all))
        .route("/v1/fleet", get(routes::fleet))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&lookup), auth::guard));
    Router::new()
        .merge(guarded)
        .route("/healthz", get(routes::healthz))
        .route("/readyz", get(routes::readyz))
        .route("/metrics", get(routes::metrics))
        .method_not_allowed_fallback(routes::method_not_allowed)
        .fallback(routes::no_such_path)
        .layer(middleware::map_response(seal))
        .with_state(lookup)
}

/// What every answer carries: it is never to be kept by a cache nor guessed at by a browser.
async fn seal(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
