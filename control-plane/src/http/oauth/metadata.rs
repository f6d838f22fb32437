//! Keys and metadata: RFC 7517, RFC 8414, OpenID Connect Discovery 1.0.

use atm_core::key::Algorithm;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderName;
use axum::http::header::CACHE_CONTROL;
use serde_json::{Value, json};

use crate::http::{Services, Shared};
use crate::registry::{AuthenticationMethod, GrantType};

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
    document["id_token_signing_alg_values_supported"] = json!([services.keys.algorithm().as_str()]);
    ([(CACHE_CONTROL, "public, max-age=300")], Json(document))
}

/// `response_types_supported` would be empty, for want of an authorization endpoint, and what is empty is left out.
fn document(services: &Services) -> Value {
    let issuer = &services.issuer;
    let methods = AuthenticationMethod::ALL.map(AuthenticationMethod::as_str);
    let algorithms = Algorithm::ALL.map(Algorithm::as_str);
    let own = services.keys.algorithm().as_str();
    let mut document = json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "introspection_endpoint": format!("{issuer}/oauth2/introspect"),
        "introspection_endpoint_auth_methods_supported": methods,
        "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
        // RFC 9701 §7.
        "introspection_signing_alg_values_supported": [own],
        "revocation_endpoint": format!("{issuer}/oauth2/revoke"),
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "jwks_uri": format!("{issuer}/oauth2/jwks"),
        "grant_types_supported": GrantType::ALL.map(GrantType::as_str),
        // RFC 9449 §5.1.
        "dpop_signing_alg_values_supported": algorithms,
    });
    if services.registration.is_some() {
        document["registration_endpoint"] = format!("{issuer}/oauth2/register").into();
    }
    if services.takes_client_certificates {
        // RFC 8705 §3.3.
        document["tls_client_certificate_bound_access_tokens"] = Value::Bool(true);
    }
    document
}
