//! The OAuth endpoints, below the issuer's path.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{any, get, post};

use super::{Shared, enclosed, health, measured, uncached};
use crate::metrics::Endpoint;

mod caller;
mod client_auth;
mod dpop;
mod error;
mod introspect;
mod metadata;
mod parameters;
mod realms;
mod register;
mod revoke;
mod security_events;
mod token;

/// Bytes of a request's body: the largest token and some more.
const MAX_BODY: usize = 64 * 1024;

/// The OAuth listener's routes.
pub fn router(services: Shared) -> Router {
    let path = services.issuer_path.clone();
    let endpoint = |endpoint, router| measured(&services, endpoint, router);
    let requests = Router::new()
        .merge(endpoint(
            Endpoint::Token,
            Router::new().route(&format!("{path}/oauth2/token"), post(token::token)),
        ))
        .merge(endpoint(
            Endpoint::Introspect,
            Router::new().route(&format!("{path}/oauth2/introspect"), post(introspect::introspect)),
        ))
        .merge(endpoint(
            Endpoint::Revoke,
            Router::new().route(&format!("{path}/oauth2/revoke"), post(revoke::revoke)),
        ))
        .merge(endpoint(
            Endpoint::Register,
            Router::new().route(&format!("{path}/oauth2/register"), post(register::register)).route(
                &format!("{path}/oauth2/register/{{client_id}}"),
                get(register::read).put(register::replace).delete(register::remove),
            ),
        ))
        .merge(endpoint(
            Endpoint::SecurityEvents,
            Router::new().route(&format!("{path}/security-events"), post(security_events::push)),
        ))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::map_response(uncached));
    let discovery = Router::new()
        .route(&format!("{path}/oauth2/jwks"), get(metadata::jwks))
        // RFC 8414 §3.1 puts the well-known part before the issuer's path, OpenID Connect Discovery §4 behind it.
        .route(&format!("/.well-known/oauth-authorization-server{path}"), get(metadata::metadata))
        .route(&format!("{path}/.well-known/openid-configuration"), get(metadata::openid_configuration));
    let others = match services.realms {
        None => Router::new(),
        Some(_) => {
            Router::new().route(&format!("{path}/realms/{{realm}}/{{*rest}}"), any(realms::forward)).route(
                &format!("/.well-known/oauth-authorization-server{path}/realms/{{realm}}"),
                any(realms::forward),
            )
        }
    };
    let snapshots = if services.feed.serves_snapshots() { super::snapshots::router() } else { Router::new() };
    let router = Router::new()
        .merge(others)
        .merge(requests)
        .merge(endpoint(Endpoint::Snapshots, snapshots))
        .merge(endpoint(Endpoint::Discovery, discovery))
        .route("/healthz", get(health::healthz));
    enclosed(router, services)
}
