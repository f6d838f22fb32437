//! `/admin/v1/revocations`

use std::time::Duration;

use atm_core::opaque::{self, OpaqueKind};
use atm_core::token::AuthenticToken;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use super::{ACTOR, Body, Items, Page};
use crate::feed::Receipt;
use crate::http::problem::Problem;
use crate::http::{Services, Shared, presented};
use crate::revocation::{RevocationRecord, Selector};

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

pub(super) async fn revoke(
    State(services): State<Shared>,
    Body(request): Body<Request>,
) -> Result<Json<Response>, Problem> {
    let (share, limit) = wait(request.wait.as_ref())?;
    let reason = request.reason.clone();
    let selectors = selectors(&services, request).await?;
    let revoked = services.revocations.revoke(&selectors, ACTOR, reason.as_deref()).await?;
    services.metrics.revoked(revoked.revoked);
    tracing::info!(revision = revoked.revision, revoked = revoked.revoked, actor = ACTOR, "revoked");
    let receipt = services.feed.wait_applied(revoked.revision, share, limit).await;
    Ok(Json(Response { revision: revoked.revision, revoked: revoked.revoked, receipt }))
}

pub(super) async fn list(
    State(services): State<Shared>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Items<RevocationRecord>>, Problem> {
    let Query(page) = page?;
    if page.after.is_some() {
        return Err(Problem::field("after", "is not taken here; the newest come first, raise limit"));
    }
    Ok(Json(Items::whole(services.revocations.list(page.limit()?).await?)))
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
