//! `/admin/v1/sessions` and `/admin/v1/subjects`: what the login service and operators do with sessions.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{Body, Items, actor, bounded};
use crate::http::Shared;
use crate::http::problem::Problem;
use crate::sessions::{DisabledSubject, NewSession, Session};

/// A new session with its tokens: the only time that they are shown.
#[derive(Serialize)]
struct Opened<'a> {
    #[serde(flatten)]
    session: &'a Session,
    access_token: &'a str,
    token_type: &'a str,
    expires_in: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    refresh_token: &'a str,
}

/// What the end of something came to.
#[derive(Serialize)]
pub(super) struct Ended {
    /// The feed's revision from which on its access tokens are refused.
    revision: u64,
}

/// Whose sessions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfSubject {
    subject: String,
    #[serde(default = "super::default_limit")]
    limit: u32,
    #[serde(default)]
    after: Option<String>,
}

/// What ends all sessions of a subject, or disables it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubjectRequest {
    subject: String,
    #[serde(default)]
    reason: Option<String>,
}

pub(super) async fn open(
    State(services): State<Shared>,
    Body(new): Body<NewSession>,
) -> Result<Response, Problem> {
    let opened = services.sessions.open(new).await?;
    let location = format!("{}/sessions/{}", services.admin_path, opened.session.id);
    let body = Json(Opened {
        session: &opened.session,
        access_token: &opened.access.access_token,
        token_type: opened.access.token_type,
        expires_in: opened.access.expires_in,
        scope: opened.access.scope.as_deref(),
        refresh_token: &opened.refresh,
    });
    Ok((StatusCode::CREATED, [(LOCATION, location)], body).into_response())
}

pub(super) async fn list(
    State(services): State<Shared>,
    query: Result<Query<OfSubject>, QueryRejection>,
) -> Result<Json<Items<Session>>, Problem> {
    let Query(OfSubject { subject, limit, after }) = query?;
    let limit = bounded(limit)?;
    let items = services.sessions.of_subject(&subject, after.as_deref(), limit).await?;
    Ok(Json(Items::page(items, limit, |session| session.id.clone())))
}

pub(super) async fn show(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Session>, Problem> {
    Ok(Json(services.sessions.get(&id?).await?))
}

pub(super) async fn end(
    State(services): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Ended>, Problem> {
    let revision = services.sessions.end(&id?, &actor(), None).await?;
    Ok(Json(Ended { revision }))
}

/// Global logout of a subject.
pub(super) async fn end_all(
    State(services): State<Shared>,
    Body(request): Body<SubjectRequest>,
) -> Result<Json<Ended>, Problem> {
    let revision = services.sessions.end_all(&request.subject, &actor(), request.reason.as_deref()).await?;
    Ok(Json(Ended { revision }))
}

pub(super) async fn disable(
    State(services): State<Shared>,
    Body(request): Body<SubjectRequest>,
) -> Result<Json<Ended>, Problem> {
    let SubjectRequest { subject, reason } = request;
    let revision = services.sessions.disable_subject(&subject, &actor(), reason.as_deref()).await?;
    Ok(Json(Ended { revision }))
}

pub(super) async fn enable(
    State(services): State<Shared>,
    Body(request): Body<SubjectRequest>,
) -> Result<StatusCode, Problem> {
    services.sessions.enable_subject(&request.subject).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn disabled(
    State(services): State<Shared>,
    page: Result<Query<super::Page>, QueryRejection>,
) -> Result<Json<Items<DisabledSubject>>, Problem> {
    let Query(page) = page?;
    let limit = page.limit()?;
    let items = services.sessions.disabled_subjects(page.after.as_deref(), limit).await?;
    Ok(Json(Items::page(items, limit, |disabled| disabled.subject.clone())))
}
