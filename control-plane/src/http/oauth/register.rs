//! Dynamic client registration (RFC 7591 §3, RFC 7592 §2).

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};

use super::error::{Code, OAuthError};
use crate::http::{Services, Shared};
use crate::registration::{Registration, RegistrationError};
use crate::registry::RegistryError;

type Metadata = Result<Json<Map<String, Value>>, JsonRejection>;

pub(super) async fn register(
    State(services): State<Shared>,
    headers: HeaderMap,
    metadata: Metadata,
) -> Result<(StatusCode, Json<Value>), OAuthError> {
    let registration = enabled(&services)?;
    let token = bearer(&headers)?;
    let Json(metadata) = metadata.map_err(|error| malformed(&error))?;
    let answer = registration.register(token, metadata).await?;
    tracing::info!(client = answer["client_id"].as_str(), "a client registered itself");
    Ok((StatusCode::CREATED, Json(answer)))
}

pub(super) async fn read(
    State(services): State<Shared>,
    headers: HeaderMap,
    Path(client_id): Path<String>,
) -> Result<Json<Value>, OAuthError> {
    Ok(Json(enabled(&services)?.read(&client_id, bearer(&headers)?).await?))
}

pub(super) async fn replace(
    State(services): State<Shared>,
    headers: HeaderMap,
    Path(client_id): Path<String>,
    metadata: Metadata,
) -> Result<Json<Value>, OAuthError> {
    let registration = enabled(&services)?;
    let token = bearer(&headers)?;
    let Json(metadata) = metadata.map_err(|error| malformed(&error))?;
    Ok(Json(registration.replace(&client_id, token, metadata).await?))
}

pub(super) async fn remove(
    State(services): State<Shared>,
    headers: HeaderMap,
    Path(client_id): Path<String>,
) -> Result<StatusCode, OAuthError> {
    enabled(&services)?.remove(&client_id, bearer(&headers)?).await?;
    tracing::info!(client = client_id, "a client removed its registration");
    Ok(StatusCode::NO_CONTENT)
}

fn enabled(services: &Services) -> Result<&Registration, OAuthError> {
    services.registration.as_ref().ok_or_else(OAuthError::not_found)
}

fn bearer(headers: &HeaderMap) -> Result<&str, OAuthError> {
    let refused = || OAuthError::new(Code::InvalidToken, "give the token as Authorization: Bearer");
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(refused()) };
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(refused)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(refused()) }
}

fn malformed(error: &JsonRejection) -> OAuthError {
    OAuthError::new(
        Code::InvalidClientMetadata,
        format!("the body must be a JSON object: {}", error.body_text()),
    )
}

impl From<RegistrationError> for OAuthError {
    fn from(error: RegistrationError) -> Self {
        match error {
            RegistrationError::Token => Self::new(Code::InvalidToken, error.to_string()),
            RegistrationError::Metadata(_) => Self::new(Code::InvalidClientMetadata, error.to_string()),
            RegistrationError::Registry(RegistryError::Store(error)) => error.into(),
            RegistrationError::Registry(RegistryError::Revocation(error)) => error.into(),
            RegistrationError::Registry(error) => Self::fault(&error),
        }
    }
}
