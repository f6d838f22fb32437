//! `/admin/v1/clients`

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{Body, Items, Page, Rotate, actor};
use crate::http::Shared;
use crate::http::problem::Problem;
use crate::registry::{Client, ClientChange, NewClient};

/// A new client, with its secret: the only time that it is shown.
#[derive(Serialize)]
struct Created<'a> {
    #[serde(flatten)]
    client: &'a Client,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<&'a str>,
}

/// What the removal of a client came to.
#[derive(Serialize)]
pub(super) struct Deleted {
    client_id: String,
    /// The feed's revision from which on its tokens are refused.
    revision: u64,
}

pub(super) async fn create(
    State(services): State<Shared>,
    Body(new): Body<NewClient>,
) -> Result<Response, Problem> {
    let (client, secret) = services.registry.create_client(new).await?;
    tracing::info!(client = client.client_id, actor = actor(), "client registered");
    // Only unreserved characters are in an id (checked at registration), so it is a path segment as it stands.
    let location = format!("{}/clients/{}", services.admin_path, client.client_id);
    let body =
        Json(Created { client: &client, client_secret: secret.as_ref().map(|secret| secret.as_str()) });
    Ok((StatusCode::CREATED, [(LOCATION, location)], body).into_response())
}

pub(super) async fn list(
    State(services): State<Shared>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Items<Client>>, Problem> {
    let Query(page) = page?;
    let limit = page.limit()?;
    let items = services.registry.list(page.after.as_deref(), limit).await?;
    Ok(Json(Items::page(items, limit, |client| client.client_id.clone())))
}

pub(super) async fn show(
    State(services): State<Shared>,
    client_id: Result<Path<String>, PathRejection>,
) -> Result<Json<Client>, Problem> {
    Ok(Json(services.registry.get(&client_id?).await?))
}

pub(super) async fn change(
    State(services): State<Shared>,
    client_id: Result<Path<String>, PathRejection>,
    Body(change): Body<ClientChange>,
) -> Result<Json<Client>, Problem> {
    let client = services.registry.update(&client_id?, change, &actor()).await?;
    tracing::info!(
        client = client.client_id,
        status = client.status.as_str(),
        actor = actor(),
        "client changed"
    );
    Ok(Json(client))
}

pub(super) async fn delete(
    State(services): State<Shared>,
    client_id: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, Problem> {
    let Path(client_id) = client_id?;
    let revision = services.registry.delete(&client_id, &actor()).await?;
    tracing::info!(client = client_id, revision, actor = actor(), "client removed");
    Ok(Json(Deleted { client_id, revision }))
}

pub(super) async fn rotate_secret(
    State(services): State<Shared>,
    client_id: Result<Path<String>, PathRejection>,
    Body(rotate): Body<Rotate>,
) -> Result<Response, Problem> {
    let (client, secret) = services.registry.rotate_secret(&client_id?, rotate.overlap_seconds).await?;
    tracing::info!(client = client.client_id, actor = actor(), "client secret rotated");
    Ok(Json(Created { client: &client, client_secret: Some(&secret) }).into_response())
}

pub(super) async fn end_previous_secret(
    State(services): State<Shared>,
    client_id: Result<Path<String>, PathRejection>,
) -> Result<Json<Client>, Problem> {
    let client = services.registry.end_previous_secret(&client_id?).await?;
    tracing::info!(
        client = client.client_id,
        actor = actor(),
        "the client secret before the current one ended"
    );
    Ok(Json(client))
}
