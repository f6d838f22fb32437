//! Errors as RFC 6749 §5.2 has them.

use axum::Json;
use axum::http::header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::issuance::IssuanceError;
use crate::registry::AuthenticationError;
use crate::revocation::RevocationError;
use crate::store::StoreError;

/// The `error` codes in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    UnsupportedGrantType,
    InvalidScope,
    /// RFC 8707 §2.
    InvalidTarget,
    /// A fault of ours that may pass.
    TemporarilyUnavailable,
    /// A fault of ours.
    ServerError,
}

impl Code {
    const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidTarget => "invalid_target",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
            Self::ServerError => "server_error",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::InvalidClient => StatusCode::UNAUTHORIZED,
            Self::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// An error response of an OAuth endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OAuthError {
    status: StatusCode,
    code: Code,
    description: String,
}

impl OAuthError {
    pub(super) fn new(code: Code, description: impl Into<String>) -> Self {
        Self { status: code.status(), code, description: description.into() }
    }

    pub(super) fn request(description: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, description)
    }

    /// Why is nobody's business: unknown, disabled and wrong secret are one answer.
    pub(super) fn client() -> Self {
        Self::new(Code::InvalidClient, "client authentication failed")
    }

    pub(super) fn too_large() -> Self {
        let description = "the request is larger than the limit";
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, ..Self::request(description) }
    }

    fn unavailable(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "a request could not be served");
        Self::new(Code::TemporarilyUnavailable, "the server cannot answer now; try again")
    }

    fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "internal fault");
        Self::new(Code::ServerError, "an internal fault")
    }
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'static str,
    error_description: &'a str,
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let description: String = self.description.chars().map(allowed).collect();
        let body = Body { error: self.code.as_str(), error_description: &description };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static(r#"Basic realm="atm", charset="UTF-8""#);
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// RFC 6749 §5.2 allows %x20-21 / %x23-5B / %x5D-7E in a description.
fn allowed(character: char) -> char {
    match character {
        '"' => '\'',
        '\\' => '/',
        ' '..='~' => character,
        _ => '?',
    }
}

impl From<AuthenticationError> for OAuthError {
    fn from(error: AuthenticationError) -> Self {
        match error {
            AuthenticationError::Refused => Self::client(),
            AuthenticationError::Store(error) => Self::unavailable(&error),
        }
    }
}

impl From<StoreError> for OAuthError {
    fn from(error: StoreError) -> Self {
        Self::unavailable(&error)
    }
}

impl From<IssuanceError> for OAuthError {
    fn from(error: IssuanceError) -> Self {
        match error {
            IssuanceError::Scope(_) | IssuanceError::MalformedScope => {
                Self::new(Code::InvalidScope, error.to_string())
            }
            IssuanceError::Target(_) | IssuanceError::NoTarget(_) => {
                Self::new(Code::InvalidTarget, error.to_string())
            }
            IssuanceError::Keys(_) | IssuanceError::Secret(_) => Self::internal(&error),
        }
    }
}

impl From<RevocationError> for OAuthError {
    fn from(error: RevocationError) -> Self {
        match error {
            // Not in the log, or not known to be: the client must come again (RFC 7009 §2.2.1).
            RevocationError::Store(_) | RevocationError::Feed(_) => Self::unavailable(&error),
            RevocationError::Invalid(_) | RevocationError::Keys(_) => Self::internal(&error),
        }
    }
}
