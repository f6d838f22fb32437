//! `/admin/v1/audit`

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{MAX_LIMIT, bounded, default_limit};
use crate::audit::{ChainView, Filter, ListPage, Top};
use crate::http::Shared;
use crate::http::problem::Problem;
use crate::trace::Trace;

/// Says where an export goes on.
const NEXT: &str = "atm-audit-next";
/// Whether there may be more by now.
const MORE: &str = "atm-audit-more";

/// What to list; everything given must fit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default = "default_limit")]
    limit: u32,
    after: Option<String>,
    since_ms: Option<i64>,
    until_ms: Option<i64>,
    action: Option<String>,
    outcome: Option<String>,
    actor: Option<String>,
    realm: Option<String>,
    client: Option<String>,
    subject: Option<String>,
    session: Option<String>,
    token: Option<String>,
    key: Option<String>,
    api_key: Option<String>,
    issuer: Option<String>,
}

impl Wanted {
    fn filter(self) -> Filter {
        let references = [
            ("client", self.client),
            ("subject", self.subject),
            ("session", self.session),
            ("token", self.token),
            ("key", self.key),
            ("api_key", self.api_key),
            ("issuer", self.issuer),
        ];
        Filter {
            since_ms: self.since_ms,
            until_ms: self.until_ms,
            action: self.action,
            outcome: self.outcome,
            actor: self.actor,
            realm: self.realm,
            references: references.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        }
    }
}

/// The newest events first.
pub(super) async fn list(
    State(services): State<Shared>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<ListPage>, Problem> {
    let Query(mut wanted) = wanted?;
    let (after, limit) = (wanted.after.take(), bounded(wanted.limit)? as usize);
    let page = services.audit.list(&wanted.filter(), after.as_deref(), limit).await?;
    page.map(Json).ok_or_else(|| Problem::field("after", "must be the next of the page before"))
}

/// All chains, and the key that vouches for them.
#[derive(Serialize)]
pub(super) struct Chains {
    items: Vec<ChainView>,
    /// The public key that signs checkpoints here. Pin it elsewhere: whoever holds the control plane can name any key.
    key: String,
}

/// All chains, and how far each is.
pub(super) async fn chains(State(services): State<Shared>) -> Result<Json<Chains>, Problem> {
    let items = services.audit.chains().await?;
    Ok(Json(Chains { items, key: services.audit.public_key().to_string() }))
}

/// Where an export begins.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    #[serde(default)]
    from: u64,
}

/// A page of one chain as JSON Lines, to be verified. Headers say where the next one begins.
pub(super) async fn export(
    State(services): State<Shared>,
    chain: Result<Path<String>, PathRejection>,
    from: Result<Query<From>, QueryRejection>,
) -> Result<Response, Problem> {
    let (Path(chain), Query(From { from })) = (chain?, from?);
    let page = services.audit.export(&chain, from).await?;
    let headers = [
        (CONTENT_TYPE.as_str(), "application/jsonl".to_owned()),
        (NEXT, page.next.to_string()),
        (MORE, page.more.to_string()),
    ];
    Ok((headers, page.lines).into_response())
}

/// The clients and realms that use this replica most.
#[derive(Serialize)]
pub(super) struct Usage {
    clients: Vec<Top>,
    realms: Vec<Top>,
}

/// How many names to show.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageWanted {
    #[serde(default = "default_limit")]
    limit: u32,
}

/// Who uses this replica most. Not a metric: names of clients are no labels.
pub(super) async fn usage(
    State(services): State<Shared>,
    wanted: Result<Query<UsageWanted>, QueryRejection>,
) -> Result<Json<Usage>, Problem> {
    let Query(UsageWanted { limit }) = wanted?;
    let (clients, realms) = services.audit.usage(limit.min(MAX_LIMIT) as usize);
    Ok(Json(Usage { clients, realms }))
}

/// One token's life.
pub(super) async fn trace(
    State(services): State<Shared>,
    jti: Result<Path<String>, PathRejection>,
) -> Result<Json<Trace>, Problem> {
    let Path(jti) = jti?;
    let trace = crate::trace::of_token(&services.audit, &services.feed, &jti).await?;
    if trace.events.is_empty() && trace.decisions.is_empty() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "nothing is recorded of a token with this jti"));
    }
    Ok(Json(trace))
}
