//! `/admin/v1/api-keys`

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{Body, Items, Page, Rotate, actor};
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

/// A key with its new text: the only time that it is shown.
#[derive(Serialize)]
pub(super) struct Rotated {
    #[serde(flatten)]
    key: ApiKey,
    api_key: String,
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
    tracing::info!(api_key = key.id, actor = actor(), "API key made");
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
    Ok(Json(Items::page(items, limit, |key| key.id.clone())))
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
    tracing::info!(api_key = key.id, revision, actor = actor(), "API key changed");
    Ok(Json(Changed { key, revision }))
}

pub(super) async fn revoke(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Revoked>, Problem> {
    let Path(id) = id?;
    let revision = services.api_keys.revoke(&id, &actor()).await?;
    tracing::info!(api_key = id, revision, actor = actor(), "API key revoked");
    Ok(Json(Revoked { id, revision }))
}

pub(super) async fn rotate(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    Body(rotate): Body<Rotate>,
) -> Result<Json<Rotated>, Problem> {
    let (key, text, revision) = services.api_keys.rotate(&id?, rotate.overlap_seconds).await?;
    tracing::info!(api_key = key.id, revision, actor = actor(), "API key rotated");
    Ok(Json(Rotated { key, api_key: text.to_string(), revision }))
}
