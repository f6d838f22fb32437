//! Problem details (RFC 9457): every error of the admin API, made in one place. What is said outside is not what is
//! logged inside.

use atm_core::policy::PolicyError;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::assertions::RulesError;
use crate::audit::AuditError;
use crate::feed::{FeedError, RotationError};
use crate::issuance::IssuanceError;
use crate::issuers::IssuersError;
use crate::keys::KeysError;
use crate::keys::provider::ProviderError;
use crate::keys::root::RootError;
use crate::policies::PoliciesError;
use crate::realms::RealmError;
use crate::registry::{FieldError, RegistryError};
use crate::revocation::RevocationError;
use crate::sessions::SessionError;
use crate::store::StoreError;

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    errors: Vec<ProblemError>,
}

/// One of several mistakes in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProblemError {
    /// Where in the request, as in `scopes[2]`.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
    /// Where in a policy document.
    #[serde(flatten)]
    pub place: Option<Place>,
}

/// A place in a policy document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The document, from 0.
    pub document: usize,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// The key, like `spec.rules[1].paths[0]`.
    pub path: String,
    /// The text of that line.
    pub excerpt: String,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [ProblemError],
}

impl Problem {
    /// A problem without a list of mistakes.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), errors: Vec::new() }
    }

    /// A request that was understood and cannot be accepted: 422, with all mistakes.
    pub fn invalid(detail: impl Into<String>, errors: Vec<ProblemError>) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, detail: detail.into(), errors }
    }

    /// One field that cannot be accepted.
    pub fn field(field: &str, message: impl Into<String>) -> Self {
        let error = ProblemError { field: field.to_owned(), message: message.into(), place: None };
        Self::invalid(format!("{}: {}", error.field, error.message), vec![error])
    }

    /// A fault of ours that may pass: 503.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "internal fault");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "an internal fault; the log says more")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            errors: &self.errors,
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="atm-admin""#));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        Self::unavailable("the store does not answer; the log says more")
    }
}

impl From<RotationError> for Problem {
    fn from(error: RotationError) -> Self {
        match error {
            RotationError::Refused(why) => Self::field("key", why),
            RotationError::Store(StoreError::Exists) => Self::new(
                StatusCode::CONFLICT,
                "another process handed the trust over just now; look, and try again",
            ),
            RotationError::Store(error) => error.into(),
        }
    }
}

impl From<FeedError> for Problem {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::NotSequenced | FeedError::Epoch(_) => Self::unavailable(error.to_string()),
            FeedError::Store(error) => error.into(),
            FeedError::Connection { problem, .. } => Self::new(StatusCode::CONFLICT, problem),
            FeedError::RealmGroup(_) | FeedError::UntrustedKey(_) => Self::internal(&error),
        }
    }
}

impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Store(error) => error.into(),
            AuditError::Secret(_) | AuditError::Form(_) => Self::internal(&error),
        }
    }
}

impl From<RootError> for Problem {
    fn from(error: RootError) -> Self {
        match error {
            RootError::Store(error) => error.into(),
            RootError::Secret(_) => Self::internal(&error),
        }
    }
}

impl From<KeysError> for Problem {
    fn from(error: KeysError) -> Self {
        match error {
            KeysError::RotationUnderWay { .. } => Self::new(StatusCode::CONFLICT, error.to_string()),
            KeysError::Store(error) => error.into(),
            KeysError::Feed(error) => error.into(),
            KeysError::NoActiveKey | KeysError::Provider(ProviderError::Unavailable { .. }) => {
                tracing::error!(%error, "no signing key is at hand");
                Self::unavailable(error.to_string())
            }
            // Its words say what the operator has to mend.
            KeysError::Provider(_) | KeysError::NoProvider { .. } => {
                tracing::error!(%error, "the key provider refuses");
                Self::new(StatusCode::BAD_GATEWAY, error.to_string())
            }
            KeysError::Wrapped { .. } | KeysError::Library | KeysError::Claims(_) => Self::internal(&error),
        }
    }
}

impl From<RealmError> for Problem {
    fn from(error: RealmError) -> Self {
        match error {
            RealmError::Invalid(errors) => fields("fields that cannot be accepted", errors),
            RealmError::Exists => Self::new(StatusCode::CONFLICT, error.to_string()),
            RealmError::NotFound => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            RealmError::Start(_) => Self::internal(&error),
            RealmError::Revocation(error) => error.into(),
            RealmError::Store(error) => error.into(),
        }
    }
}

impl From<RevocationError> for Problem {
    fn from(error: RevocationError) -> Self {
        match error {
            RevocationError::Invalid(errors) => {
                fields("selectors that cannot be accepted; nothing was revoked", errors)
            }
            RevocationError::Store(error) => error.into(),
            RevocationError::Keys(error) => error.into(),
            RevocationError::Feed(error) => error.into(),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Invalid(errors) => fields("fields that cannot be accepted", errors),
            RegistryError::Exists => Self::new(StatusCode::CONFLICT, error.to_string()),
            RegistryError::NotFound => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            RegistryError::Revocation(error) => error.into(),
            RegistryError::Store(error) => error.into(),
            RegistryError::Secret(_) => Self::internal(&error),
        }
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Invalid(errors) => fields("fields that cannot be accepted", errors),
            SessionError::NotFound => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            SessionError::Disabled | SessionError::Refused => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
            SessionError::Revocation(error) => error.into(),
            SessionError::Issuance(IssuanceError::Store(error)) | SessionError::Store(error) => error.into(),
            SessionError::Issuance(IssuanceError::Keys(error)) => error.into(),
            SessionError::Issuance(_) | SessionError::Secret(_) => Self::internal(&error),
        }
    }
}

impl From<RulesError> for Problem {
    fn from(error: RulesError) -> Self {
        match error {
            RulesError::Invalid(errors) => fields("fields that cannot be accepted", errors),
            RulesError::NotFound => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            RulesError::Store(error) => error.into(),
            RulesError::Secret(_) => Self::internal(&error),
        }
    }
}

impl From<IssuersError> for Problem {
    fn from(error: IssuersError) -> Self {
        match error {
            IssuersError::Invalid(errors) => fields("fields that cannot be accepted", errors),
            IssuersError::Exists | IssuersError::UnderWay => {
                Self::new(StatusCode::CONFLICT, error.to_string())
            }
            IssuersError::NotFound => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            IssuersError::Store(error) => error.into(),
            IssuersError::Secret(_) => Self::internal(&error),
        }
    }
}

impl From<PoliciesError> for Problem {
    fn from(error: PoliciesError) -> Self {
        match error {
            PoliciesError::Refused(errors) => Self::invalid(
                "the policy documents do not compile; the set in force stays",
                errors.into_iter().map(policy_error).collect(),
            ),
            PoliciesError::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            PoliciesError::NoSuchVersion => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            PoliciesError::Store(error) => error.into(),
            PoliciesError::Feed(error) => error.into(),
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        // All of these are the caller's: 400, 413, 415 and 422. Their texts name a place and a type.
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

fn fields(detail: &str, errors: Vec<FieldError>) -> Problem {
    let errors = errors
        .into_iter()
        .map(|FieldError { field, message }| ProblemError { field, message, place: None })
        .collect();
    Problem::invalid(detail, errors)
}

fn policy_error(error: PolicyError) -> ProblemError {
    let PolicyError { document, line, column, path, message, excerpt } = error;
    ProblemError {
        field: format!("documents[{document}]"),
        message,
        place: Some(Place { document, line, column, path, excerpt }),
    }
}
