//! The read side: answers what became of a request, from the ledger while it is fresh and from the store ever after.
//!
//! Nothing here runs on the data path. In the order in which a question meets them: `serve` takes the connection, `auth`
//! decides who may ask (by [`token`], within `limit`), `accept` in which form the answer goes out, [`key`] what was asked
//! for, [`resolve`] where the answer is (`own` for whoever is no operator), `wait` when it is ready, [`shape`] what of it is
//! told, `links` and `around` what to look at next, [`problem`] how to say that there is nothing and [`render`] how to say it
//! to a person. `bulk` answers many keys, [`list`] questions without one, page by page (`cursor`); `erase` has records
//! deleted. [`client`] is the other end: how the command line asks for a key, for a whole list ([`export`]) and for what
//! comes ([`tail`]), and `openapi` describes it all to others.
//!
//! What is deliberately absent: nothing here writes, deleting is asked for and done elsewhere; and nothing here knows the
//! data path, the pipeline or the exits.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use auth::Limits;
use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::snapshot::{FleetView, GpuHealth, Run};
use crate::store::{Erasure, Reader};
use crate::telemetry::Metrics;
use crate::tenant::Tenants;

mod accept;
mod around;
mod auth;
mod bulk;
pub mod client;
mod cursor;
mod erase;
pub mod export;
mod fleet;
pub mod key;
mod limit;
mod links;
pub mod list;
pub mod moment;
mod openapi;
mod own;
pub mod problem;
pub mod render;
pub mod resolve;
mod routes;
mod serve;
pub mod shape;
#[cfg(test)]
pub(crate) mod specimen;
pub mod tail;
#[cfg(test)]
mod tests;
pub mod token;
mod wait;

pub use around::{Around, Width, Wrong, look_in};
pub use erase::{Deleted, Erasing};
pub use fleet::{LeavingPart, Membership, MembershipSource, SourcePart};
pub use key::Key;
pub use links::{LinkTemplate, Links, Offered};
pub use problem::Problem;
pub use serve::serve;
pub use token::{Scope, Token};

/// Reads of the store at one time: far fewer than the runtime's blocking threads, so that lookups cannot take them all.
const READS_MAX: usize = 16;

/// Lookups that wait for their request's end at one time. One more is refused, not queued.
const WAITS_MAX: usize = 1024;

/// Bulk lookups at one time, each of some megabytes at most. One more is refused, not queued.
const BULKS_MAX: usize = 16;

/// How often the files of tokens are looked at.
const ROTATION: Duration = Duration::from_secs(1);

/// Who may look up, how often, and what they are offered. All of it can be swapped while the listener serves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whoever presents one of these may do what its scope says. With none, a loopback listener lets everybody read.
    pub tokens: Vec<Token>,
    /// The admin listener is bound to a loopback address, so that only this machine can ask.
    pub loopback: bool,
    /// Whoever presents a request's API key may look that request up.
    pub own_records: bool,
    /// Of one token.
    pub requests_per_second: u32,
    /// Of one tenant.
    pub own_requests_per_second: u32,
    /// In vain, from one address.
    pub failures_per_minute: u32,
    /// Connections to the listener.
    pub connections_max: usize,
    /// What an answer offers.
    pub links: Links,
}

/// As the configuration has it when nobody says anything, but beyond loopback.
impl Default for Settings {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            loopback: false,
            own_records: true,
            requests_per_second: 1000,
            own_requests_per_second: 5,
            failures_per_minute: 60,
            connections_max: 256,
            links: Links::default(),
        }
    }
}

/// Why the gateway is not ready; ready if there is no reason. Texts are for operators, a sentence each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What keeps it from serving requests.
    pub reasons: Vec<String>,
    /// What is wrong and keeps it from nothing of the kind, such as a full disk.
    pub warnings: Vec<String>,
}

/// Gives the current view of the fleet.
pub type FleetSource = Arc<dyn Fn() -> Arc<FleetView> + Send + Sync>;

/// Says how it stands with what tells of GPUs.
pub type GpuSource = Arc<dyn Fn() -> GpuHealth + Send + Sync>;

/// Says whether the gateway is ready, and if not, why.
pub type ReadinessSource = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// Has records deleted, by whoever may write; `None` if it cannot take any more at the moment.
pub type EraseSource = Arc<dyn Fn(Erasure) -> Option<Erasing> + Send + Sync>;

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
    /// Likewise: how it stands with what tells of GPUs.
    pub gpus: GpuSource,
    /// Likewise: who belongs to the fleet.
    pub membership: MembershipSource,
    /// For `/readyz`.
    pub readiness: ReadinessSource,
    /// Tells whose a request is, as the data path does.
    pub tenants: Arc<Tenants>,
    /// For deleting; `None` if the store is off.
    pub erase: Option<EraseSource>,
    /// Who may look up. A reload swaps it whole.
    pub settings: Arc<ArcSwap<Settings>>,
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
    /// How often each may ask.
    limits: Limits,
}

/// The admin interface. Lookups are guarded; health, readiness, metrics and the description of it all are open
/// wherever the listener is bound.
pub fn router(state: LookupState) -> Router {
    let permits = |count| Arc::new(Semaphore::new(count));
    let (reads, waits, bulks) = (permits(READS_MAX), permits(WAITS_MAX), permits(BULKS_MAX));
    router_of(Arc::new(Lookup { state, reads, waits, bulks, limits: Limits::default() }))
}

/// Looks each second whether a file holds another token than it did, for as long as it is polled.
pub async fn rotate_tokens(settings: Arc<ArcSwap<Settings>>, metrics: Arc<Metrics>) -> Infallible {
    let mut rotation = token::Rotation::default();
    loop {
        tokio::time::sleep(ROTATION).await;
        let current = settings.load_full();
        let tokens = current.tokens.clone();
        // A disk may be slow, and this runtime answers lookups.
        let looked = tokio::task::spawn_blocking(move || {
            let rotated = rotation.look(&tokens);
            (rotation, rotated)
        });
        let rotated;
        (rotation, rotated) = looked.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the files of the tokens could not be looked at");
            Default::default()
        });
        metrics.token_files_failing.set(rotation.failing() as i64);
        if let Some(tokens) = rotated {
            // If the settings were swapped meanwhile, these are of yesterday: the next look takes the new ones.
            settings.compare_and_swap(&current, Arc::new(Settings { tokens, ..(*current).clone() }));
        }
    }
}

fn router_of(lookup: Arc<Lookup>) -> Router {
    let operators = Router::new()
        .route("/v1/snapshots", get(list::list).delete(erase::of_tenant))
        .route("/v1/snapshots/resolve", post(bulk::resolve_all))
        .route("/v1/fleet", get(routes::fleet))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&lookup), auth::operators));
    let callers = Router::new()
        .route("/v1/snapshots/{key}", get(routes::snapshot).delete(erase::of_id))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&lookup), auth::callers));
    Router::new()
        .merge(operators)
        .merge(callers)
        .route("/healthz", get(routes::healthz))
        .route("/readyz", get(routes::readyz))
        .route("/metrics", get(routes::metrics))
        .route("/openapi.json", get(openapi::page))
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
