//! The message itself, `xds.data.orca.v3.OrcaLoadReport`, in base64.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::Message;

use super::collect::{Collector, Group};
use crate::snapshot::load_report::Flaw;

/// With padding, which old readers need; without it, which gRPC for Go leaves out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The message. A number that is 0 is one that was not set.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OrcaLoadReport {
    #[prost(double, tag = "1")]
    pub(super) cpu_utilization: f64,
    #[prost(double, tag = "2")]
    pub(super) mem_utilization: f64,
    /// Before there was `rps_fractional`.
    #[prost(uint64, tag = "3")]
    pub(super) rps: u64,
    #[prost(btree_map = "string, double", tag = "4")]
    pub(super) request_cost: BTreeMap<String, f64>,
    #[prost(btree_map = "string, double", tag = "5")]
    pub(super) utilization: BTreeMap<String, f64>,
    #[prost(double, tag = "6")]
    pub(super) rps_fractional: f64,
    #[prost(double, tag = "7")]
    pub(super) eps: f64,
    #[prost(btree_map = "string, double", tag = "8")]
    pub(super) named_metrics: BTreeMap<String, f64>,
    #[prost(double, tag = "9")]
    pub(super) application_utilization: f64,
}

/// The message in base64, with padding.
pub(super) fn encode(message: &OrcaLoadReport) -> String {
    BASE64.encode(message.encode_to_vec())
}

/// Reads the message.
pub(super) fn read(base64: &str, into: &mut Collector) -> Result<(), Flaw> {
    if base64.is_empty() {
        return Err(Flaw::Empty);
    }
    let bytes = BASE64.decode(base64).map_err(|_| Flaw::NotBase64)?;
    let message = OrcaLoadReport::decode(&bytes[..]).map_err(|_| Flaw::NotProtobuf)?;
    for (name, value) in [
        ("application_utilization", message.application_utilization),
        ("cpu_utilization", message.cpu_utilization),
        ("eps", message.eps),
        ("mem_utilization", message.mem_utilization),
        ("rps_fractional", message.rps_fractional),
        ("rps", message.rps as f64),
    ] {
        if value != 0.0 {
            into.number(name, value)?;
        }
    }
    for (group, metrics) in [
        (Group::NamedMetrics, message.named_metrics),
        (Group::Utilization, message.utilization),
        (Group::RequestCost, message.request_cost),
    ] {
        metrics.iter().try_for_each(|(key, value)| into.metric(group, key, *value))?;
    }
    Ok(())
}
