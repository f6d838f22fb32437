//! Where transmitters push security event tokens (RFC 8935).

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_LANGUAGE, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::http::Shared;
use crate::revocation::{MEDIA_TYPE, SecurityEventError};

/// 202 and nothing else where the event is taken, also if it was before (RFC 8935 §2.2).
pub(super) async fn push(State(services): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    match pushed(&services, &headers, &body).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(error) => refused(&error),
    }
}

async fn pushed(services: &Shared, headers: &HeaderMap, body: &[u8]) -> Result<(), SecurityEventError> {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case(MEDIA_TYPE) {
        return Err(SecurityEventError::Request("Content-Type must be application/secevent+jwt"));
    }
    let token = std::str::from_utf8(body)
        .map_err(|_| SecurityEventError::Request("the body is no security event token"))?;
    let credential = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
    });
    let transmitters = &services.transmitters;
    let taken = services.revocations.take_security_event(transmitters, credential, token.trim()).await?;
    services.metrics.revoked(taken.selectors.len());
    Ok(())
}

/// RFC 8935 §2.3.
fn refused(error: &SecurityEventError) -> Response {
    let code = match error {
        SecurityEventError::Authentication => "authentication_failed",
        SecurityEventError::Request(_) => "invalid_request",
        SecurityEventError::Key => "invalid_key",
        SecurityEventError::Issuer => "invalid_issuer",
        SecurityEventError::Audience => "invalid_audience",
        SecurityEventError::Revocation(error) => {
            tracing::error!(%error, "a security event was not taken");
            // Not the transmitter's fault: it sends it again (RFC 8935 §2.5).
            return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response();
        }
    };
    let body = Json(json!({ "err": code, "description": error.to_string() }));
    (StatusCode::BAD_REQUEST, [(CONTENT_LANGUAGE, "en")], body).into_response()
}
