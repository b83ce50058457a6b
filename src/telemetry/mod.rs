//! The gateway's view of itself: its own log, and every metric it has.

mod causes;
pub mod log;
pub mod metrics;
pub mod names;
mod reached;
#[cfg(test)]
pub(crate) mod registry;

pub use causes::with_causes;
pub use log::{Log, LogFilter, LogFormat, LogSettings, start_log};
pub use metrics::{ExitBooks, Metrics, ReloadResult, Sums, Untold};
pub use reached::{Limit, Reached};
