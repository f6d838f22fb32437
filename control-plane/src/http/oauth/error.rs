//! Errors as RFC 6749 §5.2 has them.

use axum::Json;
use axum::http::header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::assertions::GrantError;
use crate::authentication::AuthenticationError;
use crate::exchange::ExchangeError;
use crate::issuance::IssuanceError;
use crate::keys::KeysError;
use crate::limits::LimitReached;
use crate::revocation::RevocationError;
use crate::sessions::SessionError;
use crate::store::StoreError;

/// The `error` codes in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    UnauthorizedClient,
    UnsupportedGrantType,
    InvalidScope,
    /// RFC 8707 §2.
    InvalidTarget,
    /// RFC 9449 §5.
    InvalidDpopProof,
    /// RFC 9449 §8.
    UseDpopNonce,
    /// RFC 7591 §3.2.2.
    InvalidClientMetadata,
    /// RFC 6750 §3.1, where a bearer token is asked for.
    InvalidToken,
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
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidTarget => "invalid_target",
            Self::InvalidDpopProof => "invalid_dpop_proof",
            Self::UseDpopNonce => "use_dpop_nonce",
            Self::InvalidClientMetadata => "invalid_client_metadata",
            Self::InvalidToken => "invalid_token",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
            Self::ServerError => "server_error",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::InvalidClient | Self::InvalidToken => StatusCode::UNAUTHORIZED,
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
    /// Seconds after which to come again.
    retry_after: Option<u64>,
}

impl OAuthError {
    pub(super) fn new(code: Code, description: impl Into<String>) -> Self {
        let retry_after = (code == Code::TemporarilyUnavailable).then_some(1);
        Self { status: code.status(), code, description: description.into(), retry_after }
    }

    /// The `error` code.
    pub(super) fn code(&self) -> &'static str {
        self.code.as_str()
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

    /// Clients do not register themselves.
    pub(super) fn not_found() -> Self {
        Self::nothing_there("clients cannot register themselves here")
    }

    /// Nothing at this path.
    pub(super) fn nothing_there(description: &str) -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::request(description) }
    }

    /// A fault of ours.
    pub(super) fn fault(error: &dyn std::error::Error) -> Self {
        Self::internal(error)
    }

    /// Signing failed.
    pub(super) fn keys(error: &KeysError) -> Self {
        Self::internal(error)
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
            let challenge = HeaderValue::from_static(match self.code {
                Code::InvalidToken => r#"Bearer realm="atm", error="invalid_token""#,
                _ => r#"Basic realm="atm", charset="UTF-8""#,
            });
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
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
            AuthenticationError::Assertion(_) | AuthenticationError::Replayed => {
                Self::new(Code::InvalidClient, error.to_string())
            }
            AuthenticationError::Keys(error) => {
                let description = format!("{error}; try again");
                Self { description, ..Self::new(Code::TemporarilyUnavailable, "") }
            }
            AuthenticationError::Store(error) => Self::unavailable(&error),
        }
    }
}

impl From<LimitReached> for OAuthError {
    fn from(limit: LimitReached) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: Code::TemporarilyUnavailable,
            description: limit.to_string(),
            retry_after: Some(limit.retry_after.as_secs().max(1)),
        }
    }
}

impl From<SessionError> for OAuthError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Refused | SessionError::NotFound | SessionError::Disabled => {
                Self::new(Code::InvalidGrant, "the token is not valid: unknown, used, ended or over")
            }
            SessionError::Issuance(error) => error.into(),
            SessionError::Revocation(error) => error.into(),
            SessionError::Store(error) => Self::unavailable(&error),
            SessionError::Invalid(_) | SessionError::Secret(_) => Self::internal(&error),
        }
    }
}

impl From<ExchangeError> for OAuthError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Request(_) => Self::request(error.to_string()),
            ExchangeError::Unauthorized(_) => Self::new(Code::UnauthorizedClient, error.to_string()),
            ExchangeError::NotHeld => Self::new(Code::InvalidGrant, error.to_string()),
            ExchangeError::Issuance(error) => error.into(),
        }
    }
}

impl From<GrantError> for OAuthError {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::Store(error) => Self::unavailable(&error),
            other => Self::new(Code::InvalidGrant, other.to_string()),
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
            IssuanceError::Subject | IssuanceError::Expired => {
                Self::new(Code::InvalidGrant, error.to_string())
            }
            IssuanceError::Store(error) => Self::unavailable(&error),
            // The signing key's provider is away: it may come back, and no other key takes over.
            IssuanceError::Keys(KeysError::Provider(_) | KeysError::NoActiveKey) => Self::unavailable(&error),
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
