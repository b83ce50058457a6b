//! Whose a request is: the keyed hash of its API key, or of a name that only a trusted proxy can give it.
//!
//! The data path and the lookup ask the same question in the same way, or nobody would find its own records. The key is
//! not checked here: who presents it is called its owner, as the engine behind will do.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

use crate::snapshot::Tenant;

/// Where clients put their API key besides `authorization`: Anthropic's and Azure's ways.
const API_KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// What keys are derived for. Each names one use and no other, so that no API key can be chosen to hash like a name.
const SECRET_CONTEXT: &str = "snapgate 2026-11 tenant secret";
const API_KEY_CONTEXT: &str = "snapgate 2026-11 tenant by API key";
const NAME_CONTEXT: &str = "snapgate 2026-11 tenant by name";

/// Where a connection comes from. Whoever accepts connections puts it into each request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

impl Peer {
    /// What counts as one address where something is limited by it: in IPv6 a whole /64, because whoever has one address
    /// there has all of them.
    pub fn counted(self) -> IpAddr {
        match self.0.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address => address,
        }
    }
}

/// The key of the hash. Never printed.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// Drawn for one gateway, and kept by it.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From a secret that replicas share, so that each finds what a tenant did at the others.
    pub fn of_secret(secret: &str) -> Self {
        Self(blake3::derive_key(SECRET_CONTEXT, secret.as_bytes()))
    }

    /// A key for one use, which the context names and no other has.
    pub fn derive(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<set>")
    }
}

/// How tenants are told from each other, as the operator has it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The header that names a tenant.
    pub header: Option<HeaderName>,
    /// From where it is believed.
    pub trusted: Vec<Network>,
    /// The key that replicas share; without it each gateway draws its own.
    pub key: Option<Key>,
}

/// Tells tenants from each other.
#[derive(Clone, Debug)]
pub struct Tenants {
    key: Key,
    for_api_keys: Key,
    for_names: Key,
    /// The header that names the tenant, and who is believed.
    named: Option<(HeaderName, Vec<Network>)>,
}

impl Tenants {
    /// As the settings say; `own` keys the hash unless they bring a key.
    pub fn new(settings: &Settings, own: Key) -> Self {
        let named = settings.header.clone().map(|header| (header, settings.trusted.clone()));
        Self { named, ..Self::by_key(settings.key.as_ref().unwrap_or(&own).0) }
    }

    /// By their API keys alone.
    pub fn by_key(key: [u8; 32]) -> Self {
        let key = Key(key);
        let (for_api_keys, for_names) = (Key(key.derive(API_KEY_CONTEXT)), Key(key.derive(NAME_CONTEXT)));
        Self { key, for_api_keys, for_names, named: None }
    }

    /// What keys all hashes of this gateway, or of all replicas that share it.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether it matters where a request comes from: if not, nobody has to say it.
    pub fn needs_peer(&self) -> bool {
        self.named.is_some()
    }

    /// Whose a request with this head is; `None` if it bears neither a key nor a name that can be believed.
    pub fn of(&self, headers: &HeaderMap, peer: Option<Peer>) -> Option<Tenant> {
        let hash = |key: &Key, value| Tenant(*blake3::keyed_hash(&key.0, value).as_bytes());
        let name = self.name(headers, peer).map(|name| hash(&self.for_names, name));
        name.or_else(|| credential(headers).map(|credential| hash(&self.for_api_keys, credential)))
    }

    /// The name, if it stands there once: of two, one may be the client's.
    fn name<'h>(&self, headers: &'h HeaderMap, peer: Option<Peer>) -> Option<&'h [u8]> {
        let (header, trusted) = self.named.as_ref()?;
        let Peer(address) = peer?;
        let mut names = headers.get_all(header).iter();
        let (name, None) = (names.next()?.as_bytes(), names.next()) else { return None };
        let believed = !name.is_empty() && trusted.iter().any(|network| network.contains(address));
        believed.then_some(name)
    }
}

/// Whether two are the same, in all 256 bits and in a time that does not tell how many of them are.
pub fn is_same(a: Tenant, b: Tenant) -> bool {
    // Hashes of this crate are compared in constant time.
    blake3::Hash::from_bytes(a.0) == blake3::Hash::from_bytes(b.0)
}

/// The API key, wherever it stands: `Bearer K` and `x-api-key: K` are one key. Another scheme is part of its credential.
fn credential(headers: &HeaderMap) -> Option<&[u8]> {
    let api_key = || API_KEY_HEADERS.iter().find_map(|name| headers.get(*name));
    let key = match headers.get(AUTHORIZATION) {
        Some(value) => bearer(headers).unwrap_or(value.as_bytes()),
        None => api_key()?.as_bytes(),
    };
    Some(key.trim_ascii()).filter(|key| !key.is_empty())
}

/// Whether a header that holds a credential stands there twice: the engine might read the one, and the record name the other.
pub fn is_ambiguous(headers: &HeaderMap) -> bool {
    let is_twice = |name: &str| headers.get_all(name).iter().nth(1).is_some();
    is_twice(AUTHORIZATION.as_str()) || API_KEY_HEADERS.iter().any(|name| is_twice(name))
}

/// The token of an `Authorization: Bearer …` header; the scheme's name is free in its case.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, secret) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| secret.trim_ascii()).filter(|secret| !secret.is_empty())
}

/// Addresses that begin alike: `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether the address is one of them. An IPv4 address counts as itself also where a socket shows it as IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// The text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoNetwork;

impl fmt::Display for NoNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not a network: write an address such as 10.0.3.2, or one with the number of its fixed bits, 10.0.0.0/8",
        )
    }
}

impl std::error::Error for NoNetwork {}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NoNetwork)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), |bits| bits.parse().map_err(|_| NoNetwork))?;
        if bits > all { Err(NoNetwork) } else { Ok(Self { address, bits }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn peer(address: &str) -> Option<Peer> {
        Some(Peer(address.parse().unwrap()))
    }

    #[test]
    fn a_tenant_is_its_api_key_under_our_key_wherever_it_stands() {
        let tenants = Tenants::by_key([7; 32]);
        let of = |lines: &[_]| tenants.of(&headers(lines), None);
        let one = of(&[("authorization", "Bearer sk-a")]);
        assert!(one.is_some());
        for same in [("authorization", "bearer  sk-a "), ("x-api-key", "sk-a"), ("api-key", "sk-a")] {
            assert_eq!(of(&[same]), one, "{same:?}");
        }
        for other in [("authorization", "Bearer sk-b"), ("authorization", "Basic sk-a"), ("x-api-key", "sk-A")] {
            assert_ne!(of(&[other]), one, "{other:?}");
        }
        assert_ne!(Tenants::by_key([8; 32]).of(&headers(&[("x-api-key", "sk-a")]), None), one, "another gateway's key");
        for nobody in [&[][..], &[("x-api-key", "")], &[("authorization", "")]] {
            assert_eq!(of(nobody), None, "{nobody:?}");
        }
    }

    #[test]
    fn a_name_is_believed_only_from_a_trusted_proxy() {
        let trusted = vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        let settings = Settings { header: Some(HeaderName::from_static("x-tenant")), trusted, key: None };
        let tenants = Tenants::new(&settings, Key::new([7; 32]));
        let acme = headers(&[("x-tenant", "acme"), ("x-api-key", "sk-a")]);
        let key = tenants.of(&acme, None).unwrap();
        let name = tenants.of(&acme, peer("10.1.2.3")).unwrap();
        assert!(!is_same(key, name));
        for (address, want) in [("::1", name), ("::ffff:10.9.9.9", name), ("11.0.0.1", key), ("::2", key)] {
            assert!(is_same(tenants.of(&acme, peer(address)).unwrap(), want), "{address}");
        }
        let twice = headers(&[("x-tenant", "acme"), ("x-tenant", "evil"), ("x-api-key", "sk-a")]);
        assert_eq!(tenants.of(&twice, peer("10.1.2.3")), Some(key), "a second name may be the client's own");
        assert_eq!(tenants.of(&headers(&[("x-tenant", "")]), peer("10.1.2.3")), None);
        let namesake = headers(&[("x-api-key", "acme")]);
        assert_ne!(tenants.of(&namesake, None), Some(name), "a key that reads like a name is not that name");
    }

    #[test]
    fn ownership_takes_all_bits() {
        let mut other = [1; 32];
        other[31] = 2;
        assert!(is_same(Tenant([1; 32]), Tenant([1; 32])));
        assert!(!is_same(Tenant([1; 32]), Tenant(other)), "the last byte counts like the first eight digits");
    }

    #[test]
    fn networks_are_addresses_with_fixed_bits() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.168.1.7", "192.168.1.7", "192.168.1.8"),
            ("0.0.0.0/0", "8.8.8.8", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::/0", "::1", "10.0.0.1"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/-1", "10.0.0.0/", "example.com"] {
            assert_eq!(wrong.parse::<Network>(), Err(NoNetwork), "{wrong}");
        }
    }

    #[test]
    fn a_shared_secret_makes_one_key_and_is_never_shown() {
        let of = |secret, own| {
            let settings = Settings { key: Some(Key::of_secret(secret)), ..Settings::default() };
            Tenants::new(&settings, Key::new(own)).of(&headers(&[("x-api-key", "sk-a")]), None)
        };
        assert_eq!(of("0123456789abcdef", [1; 32]), of("0123456789abcdef", [2; 32]), "replicas agree");
        assert_ne!(of("0123456789abcdef", [1; 32]), of("0123456789abcdeg", [1; 32]));
        let shown = format!("{:?}", Tenants::by_key([77; 32]));
        assert!(!shown.contains("77"), "{shown}");
    }
}
