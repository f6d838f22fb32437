//! Requests below `<issuer>/realms/<name>`, handed to what serves that realm.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use tower::ServiceExt;

use super::error::OAuthError;
use crate::http::{Services, Shared, afresh, uncached};
use crate::realms::RealmError;

/// The part of such a path that says which.
#[derive(serde::Deserialize)]
pub(super) struct Place {
    realm: String,
}

pub(super) async fn forward(
    State(services): State<Shared>,
    Path(Place { realm }): Path<Place>,
    request: Request,
) -> Response {
    match router_of(&services, &realm).await {
        Ok(router) => router.oneshot(afresh(request)).await.into_response(),
        Err(error) => uncached(error.into_response()).await,
    }
}

/// A disabled realm is none.
async fn router_of(services: &Services, realm: &str) -> Result<Router, OAuthError> {
    let nothing = || OAuthError::nothing_there("there is no such realm");
    let realms = services.realms.as_ref().ok_or_else(nothing)?;
    match realms.served(realm).await {
        Ok(served) => served.oauth.clone().ok_or_else(nothing),
        Err(RealmError::NotFound) => Err(nothing()),
        Err(RealmError::Store(error)) => Err(error.into()),
        Err(error) => Err(OAuthError::fault(&error)),
    }
}
