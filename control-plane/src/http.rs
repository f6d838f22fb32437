//! The HTTP interfaces: OAuth for clients, the admin API for operators, each on its own listener.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use atm_core::binding::NonceKey;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, PRAGMA, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use crate::admin_access::AdminAccess;
use crate::anomalies::Anomalies;
use crate::api_keys::ApiKeys;
use crate::assertions::AssertionGrants;
use crate::audit::{Audit, Origin, scope};
use crate::authentication::Authenticator;
use crate::clock::IssueClock;
use crate::config::TrustedProxy;
use crate::events::Events;
use crate::feed::FeedHandle;
use crate::introspection::Introspection;
use crate::issuance::Issuance;
use crate::issuers::Issuers;
use crate::keys::Keys;
use crate::keys::root::WrappingKeys;
use crate::lifecycle::Readiness;
use crate::limits::Limits;
use crate::metrics::{Endpoint, Metrics};
use crate::policies::Policies;
use crate::realms::Realms;
use crate::registration::Registration;
use crate::registry::Registry;
use crate::revocation::{Revocations, Transmitters};
use crate::sessions::Sessions;
use crate::store::Store;

pub mod admin;
mod health;
pub mod oauth;
mod presented;
pub mod problem;
pub mod serve;
mod snapshots;

use problem::Problem;

/// How long a request may take; the longest wait for a receipt fits in.
const REQUEST_BOUND: Duration = Duration::from_mins(1);

/// What the interfaces work with.
#[derive(Debug)]
pub struct Services {
    /// Exactly as in the tokens' `iss`.
    pub issuer: String,
    /// The issuer's path, without a final slash.
    pub issuer_path: String,
    /// Where the realm's part of the admin API is.
    pub admin_path: String,
    /// Who may use the admin API.
    pub admin_access: AdminAccess,
    /// Who may push security events.
    pub transmitters: Transmitters,
    /// What should not happen and did.
    pub anomalies: Anomalies,
    /// What the root key is sealed by.
    pub wrapping_keys: Arc<WrappingKeys>,
    /// Where everything that happens is recorded.
    pub audit: Audit,
    /// The store, for readiness.
    pub store: Store,
    /// The instants of tokens.
    pub clock: Arc<IssueClock>,
    /// The feed.
    pub feed: FeedHandle,
    /// Signing keys.
    pub keys: Keys,
    /// Clients.
    pub registry: Registry,
    /// Who a client is.
    pub authenticator: Authenticator,
    /// How much a client may ask.
    pub limits: Limits,
    /// Sessions and their refresh tokens.
    pub sessions: Sessions,
    /// How clients register themselves; none: they do not.
    pub registration: Option<Registration>,
    /// Which assertions are grants.
    pub assertions: AssertionGrants,
    /// API keys.
    pub api_keys: ApiKeys,
    /// What opaque credentials stand for.
    pub introspection: Introspection,
    /// Tokens.
    pub issuance: Issuance,
    /// Issuers that are not ours.
    pub issuers: Issuers,
    /// Revocations.
    pub revocations: Revocations,
    /// Policy sets.
    pub policies: Policies,
    /// Where what the OAuth side does is told.
    pub events: Events,
    /// Scheme and authority of the issuer.
    pub origin: (String, String),
    /// What nonces of DPoP proofs are made with; none: proofs need no nonce.
    pub dpop_nonces: Option<Arc<NonceKey>>,
    /// Who may pass on a client's certificate.
    pub trusted_proxy: Option<TrustedProxy>,
    /// Whether a client can present a certificate at all.
    pub takes_client_certificates: bool,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The realms beside the default one; none in theirs.
    pub realms: Option<Realms>,
    /// What keeps the program from being ready.
    pub readiness: Readiness,
}

impl Services {
    /// The realm of the issuer.
    pub fn realm(&self) -> &str {
        self.issuance.realm()
    }

    /// The path of the token endpoint, as its clients know it.
    fn token_path(&self) -> String {
        format!("{}/oauth2/token", self.issuer_path)
    }
}

/// The request as if it had just come, for another router: without what this one has found out about it.
fn afresh(request: Request) -> Request {
    let (mut parts, body) = request.into_parts();
    let connection = parts.extensions.remove::<serve::Connection>();
    parts.extensions.clear();
    if let Some(connection) = connection {
        parts.extensions.insert(connection);
    }
    Request::from_parts(parts, body)
}

/// What every handler gets.
type Shared = Arc<Services>;

/// Counts and times the requests of `router` as `endpoint`.
fn measured(services: &Shared, endpoint: Endpoint, router: Router<Shared>) -> Router<Shared> {
    router.layer(middleware::from_fn_with_state((Arc::clone(services), endpoint), measure))
}

async fn measure(
    State((services, endpoint)): State<(Shared, Endpoint)>,
    request: Request,
    next: Next,
) -> Response {
    let timer = services.metrics.request(endpoint);
    let response = next.run(request).await;
    let elapsed = timer.ended(response.status().as_u16());
    // No headers, no query and no body: credentials are in them.
    tracing::debug!(?endpoint, status = response.status().as_u16(), ?elapsed, "answered");
    response
}

/// Where a request came from, for whatever is recorded while it is answered.
async fn with_origin(request: Request, next: Next) -> Response {
    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let peer =
        request.extensions().get::<serve::Connection>().map(|connection| connection.peer.ip().to_canonical());
    let origin = Origin::new(peer, traceparent);
    scope(origin, next.run(request)).await
}

/// What both listeners have around everything: bounds, no guessing of types, and answers in one form.
fn enclosed(router: Router<Shared>, services: Shared) -> Router {
    router
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method; see Allow")
        })
        .layer(middleware::from_fn(with_origin))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_BOUND))
        .layer(middleware::map_response(async |mut response: Response| {
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        }))
        .with_state(services)
}

/// Forbids every cache to keep a response (RFC 6749 §5.1).
async fn uncached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    tracing::error!(message, "a handler panicked");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "an internal fault; the log says more").into_response()
}
