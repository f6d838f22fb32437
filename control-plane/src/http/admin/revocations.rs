//! `/admin/v1/revocations`

use std::time::Duration;

use atm_core::opaque::{self, OpaqueKind};
use atm_core::time::UnixMillis;
use atm_core::token::AuthenticToken;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::{Body, Items, bounded, default_limit};
use crate::admin_access::Holder;
use crate::feed::Receipt;
use crate::http::problem::Problem;
use crate::http::{Services, Shared, presented};
use crate::revocation::{
    BatchProgress, Order, Preview, RevocationFilter, RevocationRecord, Revoked, ScheduleStatus, Scheduled,
    Selector,
};

/// The longest wait for a receipt, in milliseconds.
const MAX_WAIT_MS: u64 = 30_000;

/// What to revoke, exactly one of `selector`, `tokens` and `token`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    #[serde(default)]
    selector: Option<Selector>,
    #[serde(default)]
    tokens: Option<Vec<TokenReference>>,
    /// An access token of ours as it was issued.
    #[serde(default)]
    token: Option<String>,
    /// What was issued until then, in milliseconds; none: until now.
    #[serde(default)]
    before_ms: Option<i64>,
    /// When to do it, in milliseconds; none: now.
    #[serde(default)]
    at_ms: Option<i64>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    wait: Option<Wait>,
}

/// One of many tokens.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenReference {
    jti: String,
    #[serde(default)]
    issuer: Option<String>,
    /// The token's `exp`, in seconds.
    #[serde(default)]
    expires_at: Option<i64>,
}

/// How much of the fleet to wait for, and how long.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// Of the live sidecars, above 0 to 1.
    #[serde(default = "everyone")]
    share: f64,
    #[serde(default = "default_wait_ms")]
    timeout_ms: u64,
}

fn everyone() -> f64 {
    1.0
}

fn default_wait_ms() -> u64 {
    5_000
}

/// What was put in force, and where it is in force by now.
#[derive(Serialize)]
pub(super) struct Response {
    revision: u64,
    revoked: usize,
    receipt: Receipt,
}

/// What came of a request: done now, or to be done.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Done(Response),
    Scheduled(Scheduled),
}

pub(super) async fn revoke(
    State(services): State<Shared>,
    Extension(holder): Extension<Holder>,
    Body(request): Body<Request>,
) -> Result<(StatusCode, Json<Answer>), Problem> {
    let waiting = wait(request.wait.as_ref())?;
    let (reason, before, at_ms) = (request.reason.clone(), request.before_ms.map(UnixMillis), request.at_ms);
    let selectors = selectors(&services, request).await?;
    let order = Order { selectors: &selectors, before, actor: &holder.name, reason: reason.as_deref() };
    if let Some(at_ms) = at_ms {
        if services.realms.is_none() {
            return Err(Problem::field(
                "at_ms",
                "is taken at the default realm alone; revoke the realm there",
            ));
        }
        let scheduled = services.revocations.schedule(order, at_ms).await?;
        tracing::info!(id = scheduled.id, at_ms, actor = holder.name, "revocation scheduled");
        return Ok((StatusCode::ACCEPTED, Json(Answer::Scheduled(scheduled))));
    }
    let revoked = services.revocations.carry_out_order(order).await?;
    let response = answered(&services, &holder, revoked, waiting).await;
    Ok((StatusCode::OK, Json(Answer::Done(response))))
}

async fn answered(
    services: &Services,
    holder: &Holder,
    revoked: Revoked,
    (share, limit): (f64, Duration),
) -> Response {
    services.metrics.revoked(revoked.revoked);
    tracing::info!(revision = revoked.revision, revoked = revoked.revoked, actor = holder.name, "revoked");
    let receipt = services.feed.wait_applied(revoked.revision, share, limit).await;
    Response { revision: revoked.revision, revoked: revoked.revoked, receipt }
}

/// What a revocation would hit.
pub(super) async fn preview(
    State(services): State<Shared>,
    Body(request): Body<Request>,
) -> Result<Json<Preview>, Problem> {
    let before = request.before_ms.map(UnixMillis);
    let selectors = selectors(&services, request).await?;
    let order = Order { selectors: &selectors, before, actor: "", reason: None };
    Ok(Json(services.revocations.preview(order).await?))
}

/// A part of a file: values of one kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartRequest {
    /// Tokens; or
    #[serde(default)]
    tokens: Vec<TokenReference>,
    /// values of another kind.
    #[serde(default)]
    selectors: Vec<Selector>,
    #[serde(default)]
    before_ms: Option<i64>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    wait: Option<Wait>,
}

/// Puts one part of a file in force; again is as good as once.
pub(super) async fn part(
    State(services): State<Shared>,
    Extension(holder): Extension<Holder>,
    place: Result<Path<(String, u64)>, PathRejection>,
    Body(request): Body<PartRequest>,
) -> Result<Json<Response>, Problem> {
    let Path((batch, part)) = place?;
    let waiting = wait(request.wait.as_ref())?;
    let mut selectors = request.selectors;
    selectors.extend(request.tokens.into_iter().map(Selector::from));
    let order = Order {
        selectors: &selectors,
        before: request.before_ms.map(UnixMillis),
        actor: &holder.name,
        reason: request.reason.as_deref(),
    };
    let revoked = services.revocations.revoke_part(&batch, part, order).await?;
    Ok(Json(answered(&services, &holder, revoked, waiting).await))
}

/// How far a file is.
pub(super) async fn batch(
    State(services): State<Shared>,
    batch: Result<Path<String>, PathRejection>,
) -> Result<Json<BatchProgress>, Problem> {
    let Path(batch) = batch?;
    Ok(Json(services.revocations.batch(&batch).await?))
}

/// Which past calls to list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default = "default_limit")]
    limit: u32,
    after: Option<String>,
    kind: Option<String>,
    value: Option<String>,
    actor: Option<String>,
    reason: Option<String>,
    since_ms: Option<i64>,
    until_ms: Option<i64>,
}

pub(super) async fn list(
    State(services): State<Shared>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Items<RevocationRecord>>, Problem> {
    let Query(Wanted { limit, after, kind, value, actor, reason, since_ms, until_ms }) = wanted?;
    let (limit, after) = (bounded(limit)?, after.as_deref().map(place).transpose()?);
    let filter = RevocationFilter { kind, value, actor, reason, since_ms, until_ms };
    let items = services.revocations.list(&filter, after, limit).await?;
    Ok(Json(Items::page(items, limit, |record| format!("{}.{}", record.created_at, record.id))))
}

/// Which scheduled ones to list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedScheduled {
    #[serde(default = "default_limit")]
    limit: u32,
    after: Option<String>,
    #[serde(default)]
    status: Option<String>,
}

pub(super) async fn scheduled(
    State(services): State<Shared>,
    wanted: Result<Query<WantedScheduled>, QueryRejection>,
) -> Result<Json<Items<Scheduled>>, Problem> {
    let Query(WantedScheduled { limit, after, status }) = wanted?;
    let status = status.map_or(Some(ScheduleStatus::Pending), |status| ScheduleStatus::parse(&status));
    let status = status.ok_or_else(|| Problem::field("status", "must be pending, done or cancelled"))?;
    let (limit, after) = (bounded(limit)?, after.as_deref().map(place).transpose()?);
    let items = services.revocations.scheduled(status, after, limit).await?;
    Ok(Json(Items::page(items, limit, |scheduled| format!("{}.{}", scheduled.at_ms, scheduled.id))))
}

pub(super) async fn cancel(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Scheduled>, Problem> {
    let Path(id) = id?;
    let cancelled = services.revocations.cancel(&id).await?;
    cancelled.map(Json).ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "there is no pending revocation with this id; it may have been carried out",
        )
    })
}

/// `instant.id`
fn place(text: &str) -> Result<(i64, &str), Problem> {
    text.split_once('.')
        .and_then(|(at, id)| Some((at.parse().ok()?, id)))
        .ok_or_else(|| Problem::field("after", "must be the next of the page before"))
}

/// Without `wait`, the receipt says how it stands at once.
fn wait(wait: Option<&Wait>) -> Result<(f64, Duration), Problem> {
    let Some(wait) = wait else { return Ok((1.0, Duration::ZERO)) };
    if !(wait.share > 0.0 && wait.share <= 1.0) {
        return Err(Problem::field("wait.share", "must be above 0 and at most 1"));
    }
    if wait.timeout_ms > MAX_WAIT_MS {
        return Err(Problem::field("wait.timeout_ms", "must be at most 30000"));
    }
    Ok((wait.share, Duration::from_millis(wait.timeout_ms)))
}

async fn selectors(services: &Services, request: Request) -> Result<Vec<Selector>, Problem> {
    match (request.selector, request.tokens, request.token) {
        (Some(selector), None, None) => Ok(vec![selector]),
        (None, Some(tokens), None) => Ok(tokens.into_iter().map(Selector::from).collect()),
        (None, None, Some(token)) => {
            let selector = presented::selector(&presented_token(services, &token).await?);
            Ok(vec![
                selector
                    .ok_or_else(|| Problem::field("token", "has no jti; revoke it by another selector"))?,
            ])
        }
        _ => Err(Problem::field("selector", "give exactly one of selector, tokens and token")),
    }
}

/// The access token that a caller presents, as a JWT or opaque.
async fn presented_token(services: &Services, token: &str) -> Result<AuthenticToken, Problem> {
    match opaque::prefix_kind(token) {
        Some(OpaqueKind::ApiKey) => Err(Problem::field("token", "is an API key; revoke it by its id")),
        Some(OpaqueKind::AccessToken) => {
            let unknown =
                || Problem::field("token", "is no opaque token of ours, or has been over for a while");
            services.introspection.credential(token).await?.ok_or_else(unknown)
        }
        None => presented::signed(services, token).map_err(|reason| {
            let what = reason.description();
            Problem::field("token", format!("{what} Revoke tokens of other issuers by selector.token"))
        }),
    }
}

impl From<TokenReference> for Selector {
    fn from(TokenReference { jti, issuer, expires_at }: TokenReference) -> Self {
        Self::Token { jti, issuer, expires_at }
    }
}
