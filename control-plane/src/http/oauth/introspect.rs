//! Introspection (RFC 7662), in JSON or signed (RFC 9701).

use atm_core::token::AuthenticToken;
use axum::Json;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::caller::Caller;
use super::client_auth::authenticated;
use super::error::OAuthError;
use super::parameters::Parameters;
use crate::events::{Event, EventKind};
use crate::http::{Services, Shared, presented};
use crate::registry::Client;
use crate::sessions::Session;

/// The media type of a signed response (RFC 9701 §4).
const SIGNED: &str = "application/token-introspection+jwt";
/// The `typ` of a signed response (RFC 9701 §5).
const SIGNED_TYPE: &str = "token-introspection+jwt";
/// Claims that are passed on as they were signed; what else a token holds is between its issuer and its audience.
const PASSED_ON: [&str; 13] =
    ["iss", "sub", "aud", "client_id", "jti", "scope", "exp", "iat", "nbf", "sid", "cnf", "act", "may_act"];

pub(super) async fn introspect(
    State(services): State<Shared>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Response, OAuthError> {
    let authenticated = authenticated(&services, &caller, &parameters).await?;
    let client = &authenticated.client;
    // `token_type_hint` may speed up a search; a token says itself of which type it is.
    let token = parameters.required("token")?;
    let found = described(&services, client, token).await?;
    services.metrics.introspected(found.is_some());
    if found.is_none() {
        let mut event = Event::new(EventKind::IntrospectedInactive, services.realm());
        event.client_id = Some(&client.client_id);
        event.remote = caller.remote;
        services.events.tell(&event);
    }
    // Inactive is this and nothing else (RFC 7662 §2.2).
    let answer = found.unwrap_or_else(|| json!({ "active": false }));
    if !wants_signed(&caller.headers) {
        return Ok(Json(answer).into_response());
    }
    // RFC 9701 §5: what is said of the token is apart from what is said of the response.
    let claims = json!({
        "iss": services.issuer,
        "aud": client.client_id,
        "iat": services.clock.wall().seconds(),
        "token_introspection": answer,
    });
    let signed =
        services.keys.sign_jwt(SIGNED_TYPE, &claims).await.map_err(|error| OAuthError::keys(&error))?;
    Ok(([(CONTENT_TYPE, HeaderValue::from_static(SIGNED))], signed).into_response())
}

fn wants_signed(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .filter_map(|part| part.split(';').next())
        .any(|media| media.trim().eq_ignore_ascii_case(SIGNED))
}

/// What the caller may know of the token; none where it is not in force, or none of the caller's business (RFC 7662 §4).
async fn described(services: &Services, client: &Client, token: &str) -> Result<Option<Value>, OAuthError> {
    if let Some(session) = services.sessions.introspect(token).await? {
        return Ok((session.client_id == client.client_id).then(|| describe_session(services, &session)));
    }
    let token = presented::in_force(services, token).await?;
    Ok(token.filter(|token| concerns(client, token)).map(|token| describe(&token)))
}

/// A caller that is neither the audience nor the token's client learns nothing.
fn concerns(client: &Client, token: &AuthenticToken) -> bool {
    token.claims.client_id.as_ref() == Some(&client.client_id)
        || token.claims.audience.contains(&client.client_id)
}

fn describe(token: &AuthenticToken) -> Value {
    let mut response = Map::new();
    response.insert("active".to_owned(), Value::Bool(true));
    let bound = token.claims.confirmation.as_ref().is_some_and(|confirmation| confirmation.jkt.is_some());
    response.insert("token_type".to_owned(), if bound { "DPoP" } else { "Bearer" }.into());
    for name in PASSED_ON {
        if let Some(value) = token.claims.raw.get(name) {
            response.insert(name.to_owned(), value.clone());
        }
    }
    Value::Object(response)
}

fn describe_session(services: &Services, session: &Session) -> Value {
    let mut response = json!({
        "active": true,
        "iss": services.issuer,
        "sub": session.subject,
        "client_id": session.client_id,
        "sid": session.id,
        "iat": session.opened_at.div_euclid(1_000),
        "exp": session.expires_at.min(session.idle_expires_at).div_euclid(1_000),
    });
    if !session.details.scopes.is_empty() {
        response["scope"] = session.details.scopes.join(" ").into();
    }
    response
}
