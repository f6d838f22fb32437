//! Revocation by the token's own client (RFC 7009).

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};

use super::client_auth::authenticated;
use super::error::{Code, OAuthError};
use super::parameters::Parameters;
use crate::http::{Shared, presented};

pub(super) async fn revoke(
    State(services): State<Shared>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<StatusCode, OAuthError> {
    let client = authenticated(&services, &headers, &parameters).await?;
    // `token_type_hint` is only a hint, so it is not looked at (RFC 7009 §2.1).
    let token = parameters.required("token")?;
    // RFC 7009 §2.2: what is unknown, broken or over is as good as revoked.
    let Ok(token) = presented::signed(&services, token) else { return Ok(StatusCode::OK) };
    if token.claims.client_id.as_ref() != Some(&client.client_id) {
        return Err(OAuthError::new(Code::InvalidGrant, "the token was issued to another client"));
    }
    if presented::is_over(&token, services.clock.wall()) || services.revocations.is_revoked(&token).await? {
        return Ok(StatusCode::OK);
    }
    let selector = presented::selector(&token).ok_or_else(|| OAuthError::request("the token has no jti"))?;
    let actor = format!("client:{}", client.client_id);
    let revoked = services.revocations.revoke(&[selector], &actor, None).await?;
    services.metrics.revoked(revoked.revoked);
    tracing::info!(client = client.client_id, revision = revoked.revision, "a client revoked its token");
    Ok(StatusCode::OK)
}
