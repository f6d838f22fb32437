//! `/admin/v1/issuers`

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{Body, Items, Page, actor};
use crate::http::Shared;
use crate::http::problem::Problem;
use crate::issuers::key_set::SkippedKey;
use crate::issuers::{IssuerSettings, TrustedIssuer};

/// An issuer as it is shown.
#[derive(Serialize)]
pub(super) struct Shown {
    id: String,
    #[serde(flatten)]
    settings: IssuerSettings,
    /// `trusted`, or `unreachable` while there has been no usable key set.
    status: &'static str,
    keys: u64,
    skipped_keys: Vec<SkippedKey>,
    succeeded_at: Option<i64>,
    last_error: Option<String>,
    failures: u64,
    /// None for keys that were given at the registration.
    next_fetch: Option<i64>,
    created_at: i64,
}

impl From<TrustedIssuer> for Shown {
    fn from(issuer: TrustedIssuer) -> Self {
        let fetched = issuer.settings.jwks.is_none();
        Self {
            status: if issuer.published.is_some() { "trusted" } else { "unreachable" },
            id: issuer.id,
            settings: issuer.settings,
            keys: issuer.key_count,
            skipped_keys: issuer.skipped,
            succeeded_at: issuer.succeeded_at,
            last_error: issuer.last_error,
            failures: issuer.failures,
            next_fetch: fetched.then_some(issuer.next_fetch),
            created_at: issuer.created_at,
        }
    }
}

/// What the end of the trust came to.
#[derive(Serialize)]
pub(super) struct Removed {
    id: String,
    /// The feed's revision from which on its tokens are refused; none where it was never trusted.
    revision: Option<u64>,
}

pub(super) async fn register(
    State(services): State<Shared>,
    Body(settings): Body<IssuerSettings>,
) -> Result<Response, Problem> {
    let issuer = services.issuers.register(settings).await?;
    tracing::info!(issuer = issuer.settings.issuer, id = issuer.id, actor = actor(), "issuer registered");
    let location = format!("/admin/v1/issuers/{}", issuer.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(Shown::from(issuer))).into_response())
}

pub(super) async fn list(
    State(services): State<Shared>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Items<Shown>>, Problem> {
    let Query(page) = page?;
    let limit = page.limit()?;
    let items = services.issuers.list(page.after.as_deref(), limit).await?;
    Ok(Json(Items::page(items, limit, |issuer| issuer.settings.issuer.clone()).map(Shown::from)))
}

pub(super) async fn show(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Problem> {
    Ok(Json(services.issuers.get(&id?).await?.into()))
}

pub(super) async fn refresh(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Problem> {
    Ok(Json(services.issuers.refresh(&id?).await?.into()))
}

pub(super) async fn remove(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Removed>, Problem> {
    let Path(id) = id?;
    let revision = services.issuers.remove(&id).await?;
    tracing::info!(id, revision, actor = actor(), "issuer removed");
    Ok(Json(Removed { id, revision }))
}
