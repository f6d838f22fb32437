//! `/admin/v1/api-keys`

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{ACTOR, Body, Items, Page};
use crate::api_keys::{ApiKey, ApiKeyChange, NewApiKey};
use crate::http::Shared;
use crate::http::problem::Problem;

/// A new key, with its text: the only time that it is shown.
#[derive(Serialize)]
struct Created<'a> {
    #[serde(flatten)]
    key: &'a ApiKey,
    api_key: &'a str,
}

/// A changed key.
#[derive(Serialize)]
pub(super) struct Changed {
    #[serde(flatten)]
    key: ApiKey,
    /// The feed's revision from which on sidecars ask about it anew.
    revision: u64,
}

/// What the end of a key came to.
#[derive(Serialize)]
pub(super) struct Revoked {
    id: String,
    /// The feed's revision from which on it is refused.
    revision: u64,
}

pub(super) async fn create(
    State(services): State<Shared>,
    Body(new): Body<NewApiKey>,
) -> Result<Response, Problem> {
    let (key, text) = services.api_keys.create(new).await?;
    tracing::info!(api_key = key.id, actor = ACTOR, "API key made");
    let location = format!("/admin/v1/api-keys/{}", key.id);
    let body = Json(Created { key: &key, api_key: &text });
    Ok((StatusCode::CREATED, [(LOCATION, location)], body).into_response())
}

pub(super) async fn list(
    State(services): State<Shared>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Items<ApiKey>>, Problem> {
    let Query(page) = page?;
    let limit = page.limit()?;
    let items = services.api_keys.list(page.after.as_deref(), limit).await?;
    let is_full = items.len() == limit as usize;
    let next = items.last().filter(|_| is_full).map(|key| key.id.clone());
    Ok(Json(Items { items, next }))
}

pub(super) async fn show(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ApiKey>, Problem> {
    Ok(Json(services.api_keys.get(&id?).await?))
}

pub(super) async fn change(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    Body(change): Body<ApiKeyChange>,
) -> Result<Json<Changed>, Problem> {
    let (key, revision) = services.api_keys.change(&id?, change).await?;
    tracing::info!(api_key = key.id, revision, actor = ACTOR, "API key changed");
    Ok(Json(Changed { key, revision }))
}

pub(super) async fn revoke(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Revoked>, Problem> {
    let Path(id) = id?;
    let revision = services.api_keys.revoke(&id, ACTOR).await?;
    tracing::info!(api_key = id, revision, actor = ACTOR, "API key revoked");
    Ok(Json(Revoked { id, revision }))
}
