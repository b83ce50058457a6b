//! `DELETE /v1/snapshots/{id}` and `DELETE /v1/snapshots?tenant=…`: a person's right to have records deleted.
//!
//! Nothing is deleted here: it is asked for, and the answer is waited for. A client that leaves changes nothing.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Lookup;
use super::accept::Form;
use super::auth::{Caller, Operator};
use super::problem::Problem;
use super::render::words;
use super::resolve::{TURN_WAIT_MAX, in_turn};
use super::routes::{failed, json, key_of, text, to_json};
use crate::snapshot::Tenant;
use crate::store::{Erased, Erasure, NotErased, Subject};

/// The answer to a deletion, when there is one; none comes if the gateway stops before.
pub type Erasing = oneshot::Receiver<Result<Erased, NotErased>>;

/// What an answer says of what a deletion cannot reach.
const NOT_REACHED: &str =
    "lines that a JSON log or another exit already has, and copies of the store, are as they were";

/// What may follow the `?`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantQuery {
    tenant: String,
}

/// What was deleted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Records that were stored.
    pub deleted: u64,
    /// Requests that had not ended or were not stored yet, and never will be.
    pub kept_out: u64,
    /// The ID, or all digits of the tenant.
    pub subject: String,
    /// Whose token it was.
    pub by: String,
    /// What a deletion cannot reach, in a sentence without its end.
    pub not_reached: Cow<'static, str>,
}

impl Deleted {
    /// For a person.
    pub fn render(&self) -> String {
        let kept_out = match self.kept_out {
            0 => "0 on their way".to_owned(),
            1 => "1 on its way, which can be looked up until it ends and is never stored".to_owned(),
            some => format!("{some} on their way, which can be looked up until they end and are never stored"),
        };
        format!(
            "Deleted {}: {} stored, {kept_out}. Not reached: {}.\n",
            words::clean(&self.subject),
            self.deleted,
            words::clean(&self.not_reached)
        )
    }
}

/// By an ID.
pub(super) async fn of_id(
    State(lookup): State<Arc<Lookup>>,
    Extension(caller): Extension<Caller>,
    key: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    let form = Form::wanted(&headers);
    let answer = async {
        let Caller::Operator(operator) = caller else { unreachable!("the guard lets nobody else delete") };
        let id = key_of(key)
            .map_err(|problem| *problem)?
            .id()
            .ok_or_else(|| Problem::malformed_query("deleting takes a snapshot ID"))?;
        erase(&lookup, &operator, Subject::Id(id), id.to_string()).await
    };
    answer.await.map_or_else(|problem: Problem| problem.answer(form), |page| show(&page, form))
}

/// By a tenant.
pub(super) async fn of_tenant(
    State(lookup): State<Arc<Lookup>>,
    operator: Operator,
    query: Result<Query<TenantQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let form = Form::wanted(&headers);
    let answer = async {
        let Query(TenantQuery { tenant }) = query.map_err(|rejection| Problem::unreadable_query(&rejection))?;
        let tenant = tenant_of(&lookup, &tenant).await?;
        erase(&lookup, &operator, Subject::Tenant(tenant), digits(&tenant.0)).await
    };
    answer.await.map_or_else(|problem: Problem| problem.answer(form), |page| show(&page, form))
}

async fn erase(lookup: &Lookup, operator: &Operator, subject: Subject, shown: String) -> Result<Deleted, Problem> {
    let by = operator.name();
    let source = lookup.state.erase.as_ref().ok_or_else(Problem::nothing_kept)?;
    let erasing = source(Erasure { subject, by: by.into() }).ok_or_else(Problem::erasures_wait)?;
    match erasing.await {
        Ok(Ok(Erased { records: 0, on_their_way: 0 })) => Err(Problem::nothing_to_erase(&shown)),
        Ok(Ok(Erased { records, on_their_way })) => Ok(Deleted {
            deleted: records,
            kept_out: on_their_way,
            subject: shown,
            by: by.to_owned(),
            not_reached: NOT_REACHED.into(),
        }),
        Ok(Err(NotErased::TooManyBarred)) => Err(Problem::too_many_barred()),
        Ok(Err(error)) => Err(Problem::not_erased(&error.to_string())),
        Err(_) => Err(Problem::not_erased("the gateway stopped before it was done")),
    }
}

/// The tenant by all its 64 digits, or by the eight that documents show, if these are nobody else's as well: nobody shall
/// lose records for having a hash that begins like another's.
async fn tenant_of(lookup: &Lookup, text: &str) -> Result<Tenant, Problem> {
    let digits_given = text.strip_prefix("t_").unwrap_or(text);
    if let Some(whole) = parsed::<32>(digits_given) {
        return Ok(Tenant(whole));
    }
    let first: [u8; 4] = parsed(digits_given).ok_or_else(|| {
        Problem::malformed_query(format!(
            "tenant={text:?} is no tenant: give t_ and 8 hex digits, as documents show it, or 64"
        ))
    })?;
    let stored =
        in_turn(lookup, TURN_WAIT_MAX, move |reader| reader.map(|reader| reader.tenants_shown_as(first)).transpose());
    let mut tenants = stored.await.map_err(failed)?.unwrap_or_default();
    let is_meant = |tenant: &Tenant| tenant.0.starts_with(&first);
    let fresh =
        lookup.state.ledger.search(usize::MAX, |record| record.issued.request.tenant.as_ref().is_some_and(is_meant));
    for tenant in fresh.iter().filter_map(|record| record.issued.request.tenant) {
        if !tenants.contains(&tenant) {
            tenants.push(tenant);
        }
    }
    match tenants[..] {
        [] => Err(Problem::nothing_to_erase(text)),
        [tenant] => Ok(tenant),
        _ => Err(Problem::ambiguous_tenant(tenants.iter().map(|tenant| digits(&tenant.0)).collect())),
    }
}

/// Hex digits of exactly so many bytes.
fn parsed<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}

fn digits(bytes: &[u8; 32]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t_{digits}")
}

fn show(page: &Deleted, form: Form) -> Response {
    match form {
        Form::Json => json(StatusCode::OK, to_json(page)),
        Form::Text => text(page.render()),
    }
}
