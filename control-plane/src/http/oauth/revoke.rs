//! Revocation by the token's own client (RFC 7009).

use axum::extract::State;
use axum::http::StatusCode;

use super::caller::Caller;
use super::client_auth::authenticated;
use super::error::{Code, OAuthError};
use super::parameters::Parameters;
use crate::events::{Event, EventKind};
use crate::http::{Services, Shared, presented};
use crate::registry::Client;
use crate::sessions::{EndByToken, SessionError};

pub(super) async fn revoke(
    State(services): State<Shared>,
    caller: Caller,
    parameters: Parameters,
) -> Result<StatusCode, OAuthError> {
    let authenticated = authenticated(&services, &caller, &parameters).await?;
    let client = &authenticated.client;
    // `token_type_hint` is only a hint, so it is not looked at (RFC 7009 §2.1).
    let token = parameters.required("token")?;
    match services.sessions.end_by_token(client, token).await {
        // RFC 7009 §2.1: with a refresh token go the access tokens of the same grant.
        Ok(EndByToken::Ended) => {
            services.metrics.revoked(1);
            Ok(StatusCode::OK)
        }
        Ok(EndByToken::EndedBefore) => Ok(StatusCode::OK),
        Ok(EndByToken::NotOurs) => revoke_access(&services, &caller, client, token).await,
        Err(SessionError::Refused) => Err(of_another()),
        Err(error) => Err(error.into()),
    }
}

async fn revoke_access(
    services: &Services,
    caller: &Caller,
    client: &Client,
    token: &str,
) -> Result<StatusCode, OAuthError> {
    // RFC 7009 §2.2: what is unknown, broken or over is as good as revoked.
    let Some(token) = presented::ours(services, token).await? else { return Ok(StatusCode::OK) };
    if token.claims.client_id.as_ref() != Some(&client.client_id) {
        return Err(of_another());
    }
    if presented::is_over(&token, services.clock.wall()) || services.revocations.is_revoked(&token).await? {
        return Ok(StatusCode::OK);
    }
    let selector = presented::selector(&token).ok_or_else(|| OAuthError::request("the token has no jti"))?;
    let actor = format!("client:{}", client.client_id);
    let revoked = services.revocations.revoke(&[selector], &actor, None).await?;
    services.metrics.revoked(revoked.revoked);
    let mut event = Event::new(EventKind::TokenRevoked, services.realm());
    event.client_id = Some(&client.client_id);
    event.subject = Some(&token.claims.subject);
    event.token_id = token.claims.jti.as_deref();
    event.remote = caller.remote;
    services.events.tell(&event);
    Ok(StatusCode::OK)
}

fn of_another() -> OAuthError {
    OAuthError::new(Code::InvalidGrant, "the token was issued to another client")
}
