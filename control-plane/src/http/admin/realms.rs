//! `/admin/v1/realms`, and below each realm the part of the admin API that is a realm's own.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::http::uri::PathAndQuery;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tower::ServiceExt;

use super::{Body, Items, Page, actor};
use crate::http::problem::Problem;
use crate::http::{Services, Shared, afresh};
use crate::realms::{Realm, RealmSettings, RealmStatus, Realms};

/// A realm as it is shown.
#[derive(Serialize)]
pub(super) struct Shown {
    #[serde(flatten)]
    realm: Realm,
    /// The `iss` of its tokens.
    issuer: String,
}

/// What makes a realm.
#[derive(Deserialize)]
pub(super) struct New {
    name: String,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

/// What changes a realm: what is left out stays, null is as configured for the default realm.
#[derive(Deserialize)]
pub(super) struct Change {
    #[serde(default)]
    status: Option<RealmStatus>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

/// The parts of a path below a realm.
#[derive(Deserialize)]
pub(super) struct Place {
    realm: String,
}

pub(super) async fn create(
    State(services): State<Shared>,
    Body(New { name, settings }): Body<New>,
) -> Result<Response, Problem> {
    let realm = realms(&services)?.create(&name, read(settings)?).await?;
    tracing::info!(realm = realm.name, actor = actor(), "realm made");
    let location = format!("/admin/v1/realms/{}", realm.name);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(shown(&services, realm))).into_response())
}

pub(super) async fn list(
    State(services): State<Shared>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Items<Shown>>, Problem> {
    let Query(page) = page?;
    let limit = page.limit()?;
    let items = realms(&services)?.list(page.after.as_deref(), limit).await?;
    let page = Items::page(items, limit, |realm| realm.name.clone());
    Ok(Json(page.map(|realm| shown(&services, realm))))
}

pub(super) async fn show(
    State(services): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Problem> {
    let realm = realms(&services)?.get(&name?).await?;
    Ok(Json(shown(&services, realm)))
}

pub(super) async fn change(
    State(services): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    Body(Change { status, settings }): Body<Change>,
) -> Result<Json<Shown>, Problem> {
    let Path(name) = name?;
    let realms = realms(&services)?;
    let settings = if settings.is_empty() {
        None
    } else {
        let before = serde_json::to_value(realms.get(&name).await?.settings).unwrap_or_default();
        let mut members = before.as_object().cloned().unwrap_or_default();
        members.extend(settings);
        Some(read(members)?)
    };
    let realm = realms.change(&name, status, settings, &actor()).await?;
    tracing::info!(realm = realm.name, actor = actor(), "realm changed");
    Ok(Json(shown(&services, realm)))
}

/// The caller has a credential; what serves the realm takes the rest of the path as if the realm were the only one.
pub(super) async fn forward(
    State(services): State<Shared>,
    Path(Place { realm }): Path<Place>,
    mut request: Request,
) -> Result<Response, Problem> {
    let served = realms(&services)?.served(&realm).await?;
    // As it was sent: what the extractor gives has been decoded.
    let rest = request.uri().path().splitn(6, '/').nth(5).unwrap_or_default();
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let target: PathAndQuery = format!("/admin/v1/{rest}{query}")
        .parse()
        .map_err(|_| Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))?;
    *request.uri_mut() = target.into();
    Ok(served.admin.clone().oneshot(afresh(request)).await.into_response())
}

fn realms(services: &Services) -> Result<&Realms, Problem> {
    let none = || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path");
    services.realms.as_ref().ok_or_else(none)
}

fn shown(services: &Services, realm: Realm) -> Shown {
    Shown { issuer: crate::realms::issuer_of(&services.issuer, &realm.name), realm }
}

fn read(settings: Map<String, Value>) -> Result<RealmSettings, Problem> {
    serde_json::from_value(Value::Object(settings))
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}
