//! Keys and metadata: RFC 7517, RFC 8414, OpenID Connect Discovery 1.0.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderName;
use axum::http::header::CACHE_CONTROL;
use serde_json::{Value, json};

use super::client_auth::METHODS;
use super::token::GRANTS;
use crate::http::{Services, Shared};

type Cacheable = ([(HeaderName, &'static str); 1], Json<Value>);

/// The key set. Kept by caches for a minute: a key is published long before its first use, and leaves at once when it is
/// compromised.
pub(super) async fn jwks(State(services): State<Shared>) -> Cacheable {
    ([(CACHE_CONTROL, "public, max-age=60")], Json(services.keys.jwks()))
}

/// RFC 8414 §3.2.
pub(super) async fn metadata(State(services): State<Shared>) -> Cacheable {
    ([(CACHE_CONTROL, "public, max-age=300")], Json(document(&services)))
}

/// The same for who looks where OpenID Connect puts it, with the two members that are required there. No identity tokens
/// are issued.
pub(super) async fn openid_configuration(State(services): State<Shared>) -> Cacheable {
    let mut document = document(&services);
    document["subject_types_supported"] = json!(["public"]);
    document["id_token_signing_alg_values_supported"] =
        json!([services.keys.active_signer().algorithm().as_str()]);
    ([(CACHE_CONTROL, "public, max-age=300")], Json(document))
}

/// `response_types_supported` would be empty, for want of an authorization endpoint, and what is empty is left out.
fn document(services: &Services) -> Value {
    let issuer = &services.issuer;
    json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "token_endpoint_auth_methods_supported": METHODS,
        "introspection_endpoint": format!("{issuer}/oauth2/introspect"),
        "introspection_endpoint_auth_methods_supported": METHODS,
        "revocation_endpoint": format!("{issuer}/oauth2/revoke"),
        "revocation_endpoint_auth_methods_supported": METHODS,
        "jwks_uri": format!("{issuer}/oauth2/jwks"),
        "grant_types_supported": GRANTS,
    })
}
