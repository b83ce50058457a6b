//! What EndpointSlices say: which pods are ready, where they are and who they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::Endpoint;
pub(super) use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::discovery::address::{at, check_name, default_name};
use crate::discovery::settings::Defaults;
use crate::fleet::TargetSettings;
use crate::snapshot::Place;
use crate::snapshot::place::LABELS_MAX;

/// Labels whose names begin with one of these are the cluster's own book-keeping about slices.
const OWN_LABELS: [&str; 3] = ["endpointslice.kubernetes.io/", "kubernetes.io/service-name", "service.kubernetes.io/"];

/// Which of a slice's ports targets are spoken to at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortWanted {
    /// This one, whatever the slices say.
    pub(super) number: Option<u16>,
    /// The one of this name. Without both a slice has to have only one.
    pub(super) name: Option<String>,
}

/// All slices of a service, by name.
#[derive(Debug, Default)]
pub(super) struct Slices(BTreeMap<String, EndpointSlice>);

impl Slices {
    /// A slice is as it says now.
    pub(super) fn put(&mut self, slice: EndpointSlice) {
        self.0.insert(slice.metadata.name.clone().unwrap_or_default(), slice);
    }

    /// A slice is gone.
    pub(super) fn remove(&mut self, slice: &EndpointSlice) {
        self.0.remove(slice.metadata.name.as_deref().unwrap_or_default());
    }

    /// The targets that are ready, each once: an endpoint may be in two slices for a while, and in one for each kind of
    /// address for good, of which IPv4 counts.
    pub(super) fn targets(&self, port: &PortWanted, defaults: &Defaults) -> Result<Vec<TargetSettings>, String> {
        if self.0.is_empty() {
            // A service that is scaled to nothing has slices without endpoints.
            return Err("there are none: is there such a service?".to_owned());
        }
        let mut slices: Vec<_> = self.0.values().collect();
        slices.sort_by_key(|slice| slice.address_type != "IPv4");
        let (mut targets, mut seen) = (Vec::new(), BTreeSet::new());
        for slice in slices {
            let port = port.of(slice)?;
            for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
                // Consumers use the first address alone, says the API.
                let Some(address) = endpoint.addresses.first() else { continue };
                if seen.insert(identity(endpoint, address).to_owned()) {
                    let Some(port) = port else { return Err("the slices have no port: set `port`".to_owned()) };
                    targets.push(target(slice, endpoint, (address, port), defaults)?);
                }
            }
        }
        Ok(targets)
    }
}

impl PortWanted {
    /// `None` if the slice has none, as one without endpoints.
    fn of(&self, slice: &EndpointSlice) -> Result<Option<u16>, String> {
        if self.number.is_some() {
            return Ok(self.number);
        }
        let ports: Vec<_> = slice.ports.iter().flatten().collect();
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let of_name = |wanted: &String| ports.iter().copied().find(|port| name(&port.name) == *wanted);
        let found = match (&self.name, &*ports) {
            (_, []) => return Ok(None),
            (Some(wanted), _) => of_name(wanted),
            (None, [only]) => Some(*only),
            (None, _) => None,
        };
        let number = found.and_then(|port| port.port).and_then(|port| u16::try_from(port).ok());
        number.map(Some).ok_or_else(|| {
            let names: Vec<_> = ports.iter().map(|port| name(&port.name)).collect();
            format!("the ports are called {}: name one of them in `port_name`, or set `port`", names.join(", "))
        })
    }
}

/// That nobody says whether it is ready means that it is, says the API.
fn is_ready(endpoint: &Endpoint) -> bool {
    let said = endpoint.conditions.as_ref();
    said.and_then(|said| said.ready) != Some(false) && said.and_then(|said| said.terminating) != Some(true)
}

/// The same for the same pod.
fn identity<'a>(endpoint: &'a Endpoint, address: &'a str) -> &'a str {
    endpoint.target_ref.as_ref().and_then(|pod| pod.uid.as_deref()).unwrap_or(address)
}

fn target(
    slice: &EndpointSlice,
    endpoint: &Endpoint,
    (address, port): (&str, u16),
    defaults: &Defaults,
) -> Result<TargetSettings, String> {
    let host =
        if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) { format!("[{address}]") } else { address.into() };
    let address = at(format_args!("{host}:{port}"), defaults.tls)?;
    let place = place(slice, endpoint);
    // A pod's name may be longer than a target's.
    let name = place.as_ref().and_then(|place| check_name(&place.pod).ok());
    let name = name.map_or_else(|| default_name(&address), Ok)?;
    Ok(TargetSettings {
        gpus_of: defaults.gpus_of(place.as_ref(), None),
        place: place.map(Arc::new),
        ..defaults.target(&name, &address)
    })
}

fn place(slice: &EndpointSlice, endpoint: &Endpoint) -> Option<Place> {
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    let namespace = pod.namespace.as_ref().or(slice.metadata.namespace.as_ref());
    let labels = slice.metadata.labels.iter().flatten();
    let labels = labels.filter(|(name, _)| !OWN_LABELS.iter().any(|own| name.starts_with(own)));
    Some(Place {
        namespace: namespace.map_or("", String::as_str).into(),
        pod: text(&pod.name),
        uid: text(&pod.uid),
        node: endpoint.node_name.as_deref().map(Into::into),
        labels: labels.take(LABELS_MAX).map(|(name, value)| (label(name), value.as_str().into())).collect(),
    })
}

/// `app.kubernetes.io/name` is `app_kubernetes_io_name` to Prometheus and Loki.
fn label(name: &str) -> Box<str> {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, kind: &str, ports: Value, endpoints: Value) -> EndpointSlice {
        let labels = json!({"kubernetes.io/service-name": "vllm", "app.kubernetes.io/name": "vllm",
                            "endpointslice.kubernetes.io/managed-by": "x"});
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind, "ports": ports,
            "metadata": {"name": name, "namespace": "llm", "labels": labels}, "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn endpoint(pod: &str, address: &str, conditions: Value) -> Value {
        json!({"addresses": [address], "conditions": conditions, "nodeName": "n1",
               "targetRef": {"kind": "Pod", "name": pod, "namespace": "llm", "uid": format!("u-{pod}")}})
    }

    fn of(slices: impl IntoIterator<Item = EndpointSlice>) -> Slices {
        let mut all = Slices::default();
        slices.into_iter().for_each(|slice| all.put(slice));
        all
    }

    fn http() -> Value {
        json!([{"name": "http", "port": 8000}])
    }

    #[test]
    fn ready_pods_are_targets_by_their_names() {
        let endpoints = json!([
            endpoint("a", "10.0.0.1", json!({"ready": true})),
            endpoint("b", "10.0.0.2", json!({"ready": false})),
            endpoint("c", "10.0.0.3", json!({"ready": true, "terminating": true})),
            endpoint("d", "10.0.0.4", json!({})),
            {"addresses": ["10.0.0.5"]},
        ]);
        let slices = of([slice("s", "IPv4", http(), endpoints)]);
        let defaults = Defaults { gpus: Some(2), models: vec!["m".into()], ..Defaults::default() };
        let targets = slices.targets(&PortWanted::default(), &defaults).unwrap();
        let names: Vec<_> = targets.iter().map(|target| (&*target.name, &*target.address)).collect();
        assert_eq!(names, [("a", "10.0.0.1:8000"), ("d", "10.0.0.4:8000"), ("10.0.0.5-8000", "10.0.0.5:8000")]);
        assert_eq!((targets[0].gpus, &*targets[0].models), (Some(2), &["m".to_owned()][..]));
        let place = targets[0].place.as_deref().unwrap();
        assert_eq!(
            (&*place.namespace, &*place.pod, &*place.uid, place.node.as_deref()),
            ("llm", "a", "u-a", Some("n1"))
        );
        assert_eq!(place.labels, [("app_kubernetes_io_name".into(), "vllm".into())].into());
        assert_eq!(targets[2].place, None);
    }

    #[test]
    fn a_pod_in_several_slices_is_one_target() {
        let with = |address: &str| json!([endpoint("a", address, json!({}))]);
        let slices = of([
            slice("s6", "IPv6", http(), with("fd00::1")),
            slice("t", "IPv4", http(), with("10.0.0.1")),
            slice("u", "IPv4", http(), with("10.0.0.1")),
        ]);
        let targets = slices.targets(&PortWanted::default(), &Defaults::default()).unwrap();
        assert_eq!(targets.iter().map(|target| &*target.address).collect::<Vec<_>>(), ["10.0.0.1:8000"]);
        let alone = of([slice("s6", "IPv6", http(), with("fd00::1"))]);
        let tls = Defaults { tls: true, ..Defaults::default() };
        assert_eq!(alone.targets(&PortWanted::default(), &tls).unwrap()[0].address, "https://[fd00::1]:8000");
    }

    #[test]
    fn a_port_is_found_by_number_by_name_or_alone() {
        let ports = json!([{"name": "http", "port": 8000}, {"name": "metrics", "port": 9000}]);
        let slices = of([slice("s", "IPv4", ports, json!([endpoint("a", "10.0.0.1", json!({}))]))]);
        let port = |number: Option<u16>, name: Option<&str>| {
            let wanted = PortWanted { number, name: name.map(str::to_owned) };
            slices.targets(&wanted, &Defaults::default()).map(|targets| targets[0].address.clone())
        };
        assert_eq!(port(Some(1), None).as_deref(), Ok("10.0.0.1:1"));
        assert_eq!(port(None, Some("metrics")).as_deref(), Ok("10.0.0.1:9000"));
        for name in [None, Some("grpc")] {
            assert!(port(None, name).unwrap_err().contains("called http, metrics"), "{name:?}");
        }
    }

    #[test]
    fn nothing_ready_is_an_empty_list_and_no_slice_is_none() {
        let (wanted, defaults) = (PortWanted::default(), Defaults::default());
        for endpoints in [json!(null), json!([]), json!([endpoint("a", "10.0.0.1", json!({"ready": false}))])] {
            assert_eq!(of([slice("s", "IPv4", json!(null), endpoints)]).targets(&wanted, &defaults), Ok(Vec::new()));
        }
        assert!(Slices::default().targets(&wanted, &defaults).unwrap_err().contains("is there such a service"));
    }

    #[test]
    fn a_name_that_is_too_long_for_a_target_gives_way_to_the_address() {
        let pod = "p".repeat(80);
        let slices = of([slice("s", "IPv4", http(), json!([endpoint(&pod, "10.0.0.1", json!({}))]))]);
        let targets = slices.targets(&PortWanted::default(), &Defaults::default()).unwrap();
        assert_eq!((&*targets[0].name, &*targets[0].place.as_ref().unwrap().pod), ("10.0.0.1-8000", &*pod));
    }
}
