//! The token endpoint (RFC 6749 §3.2).

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;

use super::client_auth::authenticated;
use super::error::{Code, OAuthError};
use super::parameters::Parameters;
use crate::http::Shared;
use crate::issuance::ClientCredentials;

/// The grants that are offered.
pub(super) const GRANTS: [&str; 1] = ["client_credentials"];

/// RFC 6749 §5.1.
#[derive(Serialize)]
pub(super) struct TokenResponse {
    access_token: String,
    token_type: &'static str,
    expires_in: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

pub(super) async fn token(
    State(services): State<Shared>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Json<TokenResponse>, OAuthError> {
    // Before the client is read: see `IssueClock::issue`.
    let issued_at = services.clock.issue().await?;
    let client = authenticated(&services, &headers, &parameters).await?;
    let grant = parameters.required("grant_type")?;
    if !GRANTS.contains(&grant) {
        return Err(OAuthError::new(Code::UnsupportedGrantType, "the grant type is not offered"));
    }
    let request = ClientCredentials {
        scope: parameters.get("scope").map(ToOwned::to_owned),
        audience: targets(&parameters)?,
    };
    let issued = services.issuance.client_credentials(&client, &request, issued_at).await?;
    services.metrics.token_issued();
    tracing::debug!(client = client.client_id, jti = issued.jti, "token issued");
    Ok(Json(TokenResponse {
        access_token: issued.access_token,
        token_type: "Bearer",
        expires_in: issued.expires_in,
        scope: issued.scope,
    }))
}

/// What `audience` and `resource` name, each once.
fn targets(parameters: &Parameters) -> Result<Vec<String>, OAuthError> {
    let mut targets: Vec<String> = Vec::new();
    for resource in parameters.all("resource") {
        // RFC 8707 §2: an absolute URI without a fragment.
        let absolute = resource.split_once(':').is_some_and(|(scheme, rest)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !rest.is_empty()
        });
        if !absolute || resource.contains('#') {
            let description = "resource must be an absolute URI without a fragment";
            return Err(OAuthError::new(Code::InvalidTarget, description));
        }
    }
    for target in parameters.all("audience").chain(parameters.all("resource")) {
        if !targets.iter().any(|known| known == target) {
            targets.push(target.to_owned());
        }
    }
    Ok(targets)
}
