//! Introspection (RFC 7662).

use atm_core::token::AuthenticToken;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Map, Value};

use super::client_auth::authenticated;
use super::error::OAuthError;
use super::parameters::Parameters;
use crate::http::{Services, Shared, presented};
use crate::registry::Client;

/// Claims that are passed on as they were signed; what else a token holds is between its issuer and its audience.
const PASSED_ON: [&str; 12] =
    ["iss", "sub", "aud", "client_id", "jti", "scope", "exp", "iat", "nbf", "sid", "cnf", "act"];

pub(super) async fn introspect(
    State(services): State<Shared>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Json<Value>, OAuthError> {
    let client = authenticated(&services, &headers, &parameters).await?;
    // `token_type_hint` may speed up a search; there is nothing to search here.
    let token = parameters.required("token")?;
    let active = active(&services, &client, token).await?;
    services.metrics.introspected(active.is_some());
    // Inactive is this and nothing else (RFC 7662 §2.2).
    Ok(Json(active.map_or_else(|| serde_json::json!({ "active": false }), |token| described(&token))))
}

/// The token, if it is in force and the caller has to do with it.
async fn active(
    services: &Services,
    client: &Client,
    token: &str,
) -> Result<Option<AuthenticToken>, OAuthError> {
    let Ok(token) = presented::signed(services, token) else { return Ok(None) };
    // RFC 7662 §4: a caller that is neither the audience nor the token's client learns nothing.
    let concerned = token.claims.client_id.as_ref() == Some(&client.client_id)
        || token.claims.audience.contains(&client.client_id);
    if !concerned || !presented::is_in_time(&token, services.clock.wall()) {
        return Ok(None);
    }
    if services.revocations.is_revoked(&token).await? {
        return Ok(None);
    }
    Ok(Some(token))
}

fn described(token: &AuthenticToken) -> Value {
    let mut response = Map::new();
    response.insert("active".to_owned(), Value::Bool(true));
    response.insert("token_type".to_owned(), "Bearer".into());
    for name in PASSED_ON {
        if let Some(value) = token.claims.raw.get(name) {
            response.insert(name.to_owned(), value.clone());
        }
    }
    Value::Object(response)
}
