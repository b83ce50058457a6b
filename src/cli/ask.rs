//! What can be asked of a gateway, or of its store, and by what right.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use crate::config::{self, Secret};
use crate::lookup::shape::{Format, Shape};
use crate::tls::ClientSettings;

/// Where `snapgate lookup` asks if nobody says: the default of the key `admin`.
pub(super) const ADMIN_URL: &str = "http://127.0.0.1:8081";

/// What `snapgate lookup` is told.
#[derive(Args, Clone, Debug)]
pub struct LookupArgs {
    /// Snapshot ID, trace ID, client request ID or answer ID
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Whom to ask
    #[command(flatten)]
    pub gateway: AdminArgs,
    /// Read the store in this directory instead of asking a gateway
    #[arg(long, value_name = "DIR", conflicts_with_all = ["admin", "token", "ca", "client_cert"])]
    pub data_dir: Option<PathBuf>,
    /// Tell as well what else went wrong at the request's target so long before and after it, such as 30s
    #[arg(long, value_name = "DURATION")]
    pub around: Option<String>,
    /// Print the document instead of the explanation
    #[arg(long)]
    pub json: bool,
}

/// Whom to ask, and by what right.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// The admin listener of the gateway to ask: http://HOST:PORT, or https://HOST:PORT
    #[arg(long, value_name = "URL", default_value = ADMIN_URL)]
    pub admin: String,
    /// With https: the authorities to believe, in PEM, and no others [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// With https: a certificate to present, in PEM
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// The operator's token; better set as the variable SNAPGATE_TOKEN, because others can see command lines
    #[arg(long, value_name = "TOKEN", value_parser = secret)]
    token: Option<Secret>,
}

/// What `snapgate delete` is told.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("what").required(true).args(["ids", "tenant"]))]
pub struct DeleteArgs {
    /// Snapshot IDs
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Everything of a tenant: t_ and 8 hex digits, as snapshots show it, or all 64
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Whom to ask
    #[command(flatten)]
    pub gateway: AdminArgs,
    /// Do not ask whether it is meant; needed where nobody can be asked
    #[arg(long)]
    pub yes: bool,
    /// Print what was deleted as JSON, one line for each ID
    #[arg(long)]
    pub json: bool,
}

/// What `snapgate tail` is told.
#[derive(Args, Clone, Debug)]
pub struct TailArgs {
    /// Whom to ask
    #[command(flatten)]
    pub gateway: AdminArgs,
    /// Which requests
    #[command(flatten)]
    pub filters: FilterArgs,
    /// Print documents instead of lines for people
    #[arg(long)]
    pub json: bool,
}

/// What `snapgate export` is told.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Whom to ask
    #[command(flatten)]
    pub gateway: AdminArgs,
    /// Read the store in this directory instead of asking a gateway
    #[arg(long, value_name = "DIR", conflicts_with_all = ["admin", "token", "ca", "client_cert"])]
    pub data_dir: Option<PathBuf>,
    /// Issued then or later: RFC 3339, Unix seconds, milliseconds or microseconds, or how long ago, such as 15m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Issued before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Which requests
    #[command(flatten)]
    filters: FilterArgs,
    /// What of each request [default: document; flat for CSV]
    #[arg(long, value_name = "SHAPE")]
    pub shape: Option<Shape>,
    /// How it is written: ndjson or csv [default: csv for an --output that ends in .csv, else ndjson]
    #[arg(long, value_name = "FORMAT", value_parser = table_format)]
    format: Option<Format>,
    /// Where to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print what the columns of the shape are, flat if nothing else is said, as CSV, and export nothing
    #[arg(long)]
    pub columns: bool,
}

/// Which requests: all that are as these say.
#[derive(Args, Clone, Debug, Default)]
pub struct FilterArgs {
    /// The model that was asked for
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The pod that served or was tried last
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Statuses or their classes, such as 429,5xx
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Endings, such as upstream_reset,upstream_timeout
    #[arg(long, value_name = "ENDING")]
    ending: Option<String>,
    /// The caller, as snapshots show it: t_8f3a91c2
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// A recorded header and its value; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Took so long or longer, such as 2s
    #[arg(long, value_name = "DURATION")]
    min_duration: Option<String>,
    /// The trace they belong to
    #[arg(long, value_name = "ID")]
    trace_id: Option<String>,
    /// The client's own x-request-id
    #[arg(long, value_name = "ID")]
    client_request_id: Option<String>,
}

impl FilterArgs {
    /// As parameters of a list.
    pub fn parameters(&self) -> Vec<(String, String)> {
        let named = [
            ("model", &self.model),
            ("target", &self.target),
            ("status", &self.status),
            ("ending", &self.ending),
            ("tenant", &self.tenant),
            ("min_duration", &self.min_duration),
            ("trace_id", &self.trace_id),
            ("client_request_id", &self.client_request_id),
        ];
        let labels = self.labels.iter().map(|(name, value)| (format!("label.{name}"), value.clone()));
        given(&named).chain(labels).collect()
    }
}

impl ExportArgs {
    /// How it is written: as was said, else as the output's name does.
    pub fn format(&self) -> Format {
        let named_csv = |file: &PathBuf| file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
        let by_name = || if self.output.as_ref().is_some_and(named_csv) { Format::Csv } else { Format::Ndjson };
        self.format.unwrap_or_else(by_name)
    }

    /// As parameters of a list.
    pub fn parameters(&self) -> Vec<(String, String)> {
        let times = [("since", &self.since), ("until", &self.until)];
        given(&times).chain(self.filters.parameters()).collect()
    }
}

fn given(named: &[(&str, &Option<String>)]) -> impl Iterator<Item = (String, String)> {
    named.iter().filter_map(|(name, value)| Some(((*name).to_owned(), value.as_ref()?.clone())))
}

impl AdminArgs {
    /// Whom to believe, and who we are, with https.
    pub fn tls(&self) -> ClientSettings {
        ClientSettings { ca: self.ca.clone(), identity: self.client_cert.clone().zip(self.client_key.clone()) }
    }

    /// What to present: the flag, else the variable, else nothing.
    pub fn token(&self) -> Option<Secret> {
        self.token
            .clone()
            .or_else(|| std::env::var(config::TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()).map(Secret::new))
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it has to be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn table_format(text: &str) -> Result<Format, String> {
    match text {
        "ndjson" => Ok(Format::Ndjson),
        "csv" => Ok(Format::Csv),
        _ => Err("there are ndjson and csv".to_owned()),
    }
}

fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text.to_owned()))
}
