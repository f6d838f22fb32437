//! Requests below `<issuer>/realms/<name>`, handed to what serves that realm.

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use tower::ServiceExt;

use super::error::OAuthError;
use crate::http::{Shared, afresh};
use crate::realms::RealmError;

/// The parts of such a path.
#[derive(serde::Deserialize)]
pub(super) struct Place {
    realm: String,
}

pub(super) async fn forward(
    State(services): State<Shared>,
    Path(Place { realm }): Path<Place>,
    request: Request,
) -> Result<Response, OAuthError> {
    let nothing = || OAuthError::nothing_there("there is no such realm");
    let realms = services.realms.as_ref().ok_or_else(nothing)?;
    let served = match realms.served(&realm).await {
        Ok(served) => served,
        Err(RealmError::NotFound) => return Err(nothing()),
        Err(RealmError::Store(error)) => return Err(error.into()),
        Err(error) => return Err(OAuthError::fault(&error)),
    };
    let router = served.oauth.clone().ok_or_else(nothing)?;
    Ok(router.oneshot(afresh(request)).await.into_response())
}
