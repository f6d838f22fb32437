//! `/admin/v1/assertion-rules`

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};

use super::{Body, Items, Page, actor};
use crate::assertions::{AssertionRule, StoredRule};
use crate::http::Shared;
use crate::http::problem::Problem;

pub(super) async fn create(
    State(services): State<Shared>,
    Body(rule): Body<AssertionRule>,
) -> Result<Response, Problem> {
    let stored = services.assertions.create(rule).await?;
    tracing::info!(rule = stored.id, client = stored.rule.client_id, actor = actor(), "assertion rule made");
    let location = format!("{}/assertion-rules/{}", services.admin_path, stored.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(stored)).into_response())
}

pub(super) async fn list(
    State(services): State<Shared>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Items<StoredRule>>, Problem> {
    let Query(page) = page?;
    let limit = page.limit()?;
    let items = services.assertions.list(page.after.as_deref(), limit).await?;
    Ok(Json(Items::page(items, limit, |rule| rule.id.clone())))
}

pub(super) async fn remove(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let Path(id) = id?;
    services.assertions.remove(&id).await?;
    tracing::info!(rule = id, actor = actor(), "assertion rule removed");
    Ok(StatusCode::NO_CONTENT)
}
