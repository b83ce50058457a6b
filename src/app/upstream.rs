//! What the gateway is to its targets: certificates and credentials.

use std::sync::Arc;

use super::StartError;
use crate::config::Config;
use crate::discovery::Discovery;
use crate::fleet::{self, Fleet};
use crate::telemetry::Metrics;
use crate::tls::{self, Connector, Credential, CredentialSettings, Credentials, Followed, Rotate};

/// Who we are to targets, and whom we believe.
pub(super) struct Upstream {
    pub(super) connector: Arc<Connector>,
    pub(super) authorization: Option<Arc<Credential>>,
    fleet_authorization: Option<Arc<Credential>>,
    pub(super) authorization_of: Credentials,
    /// The same, until a reload brings others.
    pub(super) target_credentials: Arc<Followed>,
}

impl Upstream {
    pub(super) fn load(config: &Config) -> Result<Self, StartError> {
        let credential = |section, settings: &Option<CredentialSettings>| {
            let loaded = settings.clone().map(|settings| Credential::load(section, settings).map(Arc::new));
            loaded.transpose().map_err(StartError::Tls)
        };
        let connector = Connector::load("upstream", config.upstream_tls.clone()).map_err(StartError::Tls)?;
        let authorization_of = credentials_of_targets(config).map_err(StartError::Tls)?;
        let target_credentials = Arc::<Followed>::default();
        target_credentials.set(authorization_of.clone());
        Ok(Self {
            connector: Arc::new(connector),
            authorization: credential("upstream", &config.upstream_authorization)?,
            fleet_authorization: credential("fleet", &config.fleet_authorization)?,
            authorization_of,
            target_credentials,
        })
    }

    pub(super) fn fleet(&self, config: &Config) -> fleet::Settings {
        let (connector, authorization) = (Some(Arc::clone(&self.connector)), self.fleet_authorization.clone());
        fleet::Settings { connector, authorization, ..config.fleet.clone() }
    }

    /// Whose targets the fleet's are. Nobody is asked yet.
    pub(super) fn discovery(&self, config: &Config, fleet: &Arc<Fleet>, metrics: &Arc<Metrics>) -> Arc<Discovery> {
        let fleet = Arc::clone(fleet);
        let put_into_effect = move |targets: &[_]| fleet.replace_targets(targets);
        Discovery::new(config.fleet.targets.clone(), &config.discovery, Arc::clone(metrics), put_into_effect)
    }

    /// What of it follows its files.
    pub(super) fn rotating(&self) -> impl Iterator<Item = Arc<dyn Rotate>> {
        let credentials = [&self.authorization, &self.fleet_authorization].into_iter().flatten();
        let others = [Arc::clone(&self.connector) as _, Arc::clone(&self.target_credentials) as _];
        credentials.map(|credential| Arc::clone(credential) as _).chain(others)
    }
}

/// What single targets get, by their names. Blocks.
pub(super) fn credentials_of_targets(config: &Config) -> Result<Credentials, tls::LoadError> {
    let load = |(name, settings): &(String, CredentialSettings)| {
        Ok((name.as_str().into(), Arc::new(Credential::load("targets", settings.clone())?)))
    };
    config.target_authorization.iter().map(load).collect()
}
