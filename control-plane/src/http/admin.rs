//! The admin API, `/admin/v1`, with health and metrics beside it.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::middleware;
use axum::routing::{any, delete, get, post, put};
use axum::{Extension, Json, Router};
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::{Shared, enclosed, health, measured, uncached};
use crate::admin_access::Holder;
use crate::metrics::Endpoint;

mod access;
mod api_keys;
mod assertion_rules;
mod audit;
mod auth;
mod clients;
mod feed;
mod fleet;
mod issuers;
mod keys;
mod openapi;
mod policies;
mod realms;
mod revocations;
mod sessions;

/// Bytes of a request's body.
const MAX_BODY: usize = 1024 * 1024;
/// As [`MAX_BODY`], for a batch of 100,000 revocations.
const MAX_BATCH: usize = 32 * 1024 * 1024;
/// Who sent the request that is being answered, in records.
fn actor() -> String {
    crate::audit::scoped_actor_id().unwrap_or_else(|| "admin".to_owned())
}

/// The admin listener's routes.
pub fn router(services: Shared) -> Router {
    let api = Router::new()
        .merge(measured(&services, Endpoint::AdminClients, client_routes()))
        .merge(measured(&services, Endpoint::AdminSessions, session_routes()))
        .merge(measured(&services, Endpoint::AdminApiKeys, api_key_routes()))
        .merge(measured(&services, Endpoint::AdminIssuers, issuer_routes()))
        .merge(measured(&services, Endpoint::AdminKeys, key_routes()))
        .merge(measured(&services, Endpoint::AdminPolicies, policy_routes()))
        .merge(measured(&services, Endpoint::AdminFleet, fleet_routes()))
        .merge(measured(&services, Endpoint::AdminRealms, realm_routes()))
        .merge(measured(&services, Endpoint::AdminAudit, audit_routes()))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .merge(
            measured(&services, Endpoint::AdminRevocations, revocation_routes())
                .layer(DefaultBodyLimit::max(MAX_BATCH)),
        )
        .layer(middleware::from_fn_with_state(services.clone(), auth::require))
        .layer(middleware::map_response(uncached));
    // Measured, bounded and answered by the realm's own router.
    let api = api.merge(below_realms(&services));
    let open = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics));
    enclosed(api.merge(open), services)
}

/// What of the admin API is a realm's own. That the caller has a credential has been looked at; what it may do is looked at
/// here, by the same table as at the default realm.
pub fn realm_router(services: Shared) -> Router {
    let api = Router::new()
        .merge(measured(&services, Endpoint::AdminClients, client_routes()))
        .merge(measured(&services, Endpoint::AdminSessions, session_routes()))
        .merge(measured(&services, Endpoint::AdminKeys, key_routes()))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .merge(
            measured(
                &services,
                Endpoint::AdminRevocations,
                Router::new()
                    .route("/admin/v1/revocations", get(revocations::list).post(revocations::revoke)),
            )
            .layer(DefaultBodyLimit::max(MAX_BATCH)),
        )
        .layer(middleware::from_fn_with_state(services.clone(), auth::require))
        .layer(middleware::map_response(uncached));
    enclosed(api, services)
}

fn realm_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/realms", get(realms::list).post(realms::create))
        .route("/admin/v1/realms/{realm}", get(realms::show).patch(realms::change))
}

fn below_realms(services: &Shared) -> Router<Shared> {
    Router::new()
        .route("/admin/v1/realms/{realm}/{*rest}", any(realms::forward))
        .layer(middleware::from_fn_with_state(Arc::clone(services), auth::require))
}

fn client_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/clients", get(clients::list).post(clients::create))
        .route(
            "/admin/v1/clients/{client_id}",
            get(clients::show).patch(clients::change).delete(clients::delete),
        )
        .route("/admin/v1/clients/{client_id}/secret", post(clients::rotate_secret))
        .route("/admin/v1/clients/{client_id}/secret/previous", delete(clients::end_previous_secret))
        .route("/admin/v1/assertion-rules", get(assertion_rules::list).post(assertion_rules::create))
        .route("/admin/v1/assertion-rules/{id}", delete(assertion_rules::remove))
}

/// A subject may hold any character, so it is named in a body or a query and never in a path.
fn session_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/sessions", get(sessions::list).post(sessions::open))
        .route("/admin/v1/sessions/{id}", get(sessions::show).delete(sessions::end))
        .route("/admin/v1/sessions/end", post(sessions::end_all))
        .route("/admin/v1/subjects/disabled", get(sessions::disabled))
        .route("/admin/v1/subjects/disable", post(sessions::disable))
        .route("/admin/v1/subjects/enable", post(sessions::enable))
}

fn api_key_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/api-keys", get(api_keys::list).post(api_keys::create))
        .route(
            "/admin/v1/api-keys/{id}",
            get(api_keys::show).patch(api_keys::change).delete(api_keys::revoke),
        )
        .route("/admin/v1/api-keys/{id}/rotate", post(api_keys::rotate))
}

fn issuer_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/issuers", get(issuers::list).post(issuers::register))
        .route("/admin/v1/issuers/{id}", get(issuers::show).delete(issuers::remove))
        .route("/admin/v1/issuers/{id}/refresh", post(issuers::refresh))
}

fn key_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/keys", get(keys::list))
        .route("/admin/v1/keys/rotate", post(keys::rotate))
        .route("/admin/v1/keys/rewrap", post(keys::rewrap))
        .route("/admin/v1/keys/{kid}/compromise", post(keys::compromise))
        .route("/admin/v1/receipts/{revision}", get(keys::receipt))
}

fn revocation_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/revocations", get(revocations::list).post(revocations::revoke))
        .route("/admin/v1/revocations/preview", post(revocations::preview))
        .route("/admin/v1/revocations/scheduled", get(revocations::scheduled))
        .route("/admin/v1/revocations/scheduled/{id}", delete(revocations::cancel))
        .route("/admin/v1/revocations/batches/{batch}", get(revocations::batch))
        .route("/admin/v1/revocations/batches/{batch}/{part}", put(revocations::part))
}

fn policy_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/policies", put(policies::apply).get(policies::current))
        .route("/admin/v1/policies/{version}", get(policies::show))
        .route("/admin/v1/policies/rollback", post(policies::rollback))
}

fn audit_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/whoami", get(whoami))
        .route("/admin/v1/usage", get(audit::usage))
        .route("/admin/v1/audit", get(audit::list))
        .route("/admin/v1/audit/chains", get(audit::chains))
        .route("/admin/v1/audit/export/{chain}", get(audit::export))
        .route("/admin/v1/audit/trace/{jti}", get(audit::trace))
}

/// The credential's name and role.
async fn whoami(Extension(holder): Extension<Holder>) -> Json<Holder> {
    Json(holder)
}

fn fleet_routes() -> Router<Shared> {
    Router::new()
        .route("/admin/v1/openapi.json", get(openapi::show))
        .route("/admin/v1/fleet", get(fleet::show))
        .route("/admin/v1/fleet/scrub", post(fleet::scrub))
        .route("/admin/v1/feed", get(feed::show))
        .route("/admin/v1/feed/keys", post(feed::change_keys))
}

/// A JSON body; what cannot be read is a problem.
struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, services: &Shared) -> Result<Self, Problem> {
        let body: Result<axum::Json<T>, JsonRejection> = axum::Json::from_request(request, services).await;
        Ok(Self(body?.0))
    }
}

/// A list, in the form that all lists have.
#[derive(serde::Serialize)]
struct Items<T> {
    items: Vec<T>,
    /// Where the next page begins: give it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl<T> Items<T> {
    /// A page of at most `limit`; a full one is followed by another, which begins after the `place` of its last entry.
    fn page(items: Vec<T>, limit: u32, place: impl FnOnce(&T) -> String) -> Self {
        let next = if items.len() == limit as usize { items.last().map(place) } else { None };
        Self { items, next }
    }

    /// The same page, its entries as they are shown.
    fn map<U>(self, shown: impl FnMut(T) -> U) -> Items<U> {
        Items { items: self.items.into_iter().map(shown).collect(), next: self.next }
    }
}

/// How many entries a list shows at most.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default = "default_limit")]
    limit: u32,
    #[serde(default)]
    after: Option<String>,
}

const MAX_LIMIT: u32 = 1_000;

fn default_limit() -> u32 {
    100
}

impl Page {
    fn limit(&self) -> Result<u32, Problem> {
        bounded(self.limit)
    }
}

/// The `limit` of a list, if it is one.
fn bounded(limit: u32) -> Result<u32, Problem> {
    if (1..=MAX_LIMIT).contains(&limit) {
        Ok(limit)
    } else {
        Err(Problem::field("limit", "must be 1 to 1000"))
    }
}

/// What rotates a secret or a key.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    /// Seconds for which the one before is taken, too.
    #[serde(default = "default_overlap")]
    overlap_seconds: u64,
}

/// A day: time to roll a deployment.
fn default_overlap() -> u64 {
    86_400
}
