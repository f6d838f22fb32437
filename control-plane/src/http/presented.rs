//! Tokens that callers present: verified exactly as a sidecar verifies them, by `core`.

use atm_core::claims::Expectations;
use atm_core::jws::UnverifiedToken;
use atm_core::opaque;
use atm_core::reason::Reason;
use atm_core::time::UnixMillis;
use atm_core::token::{AuthenticToken, KeyedToken};

use super::Services;
use crate::revocation::Selector;
use crate::store::StoreError;

/// Seconds beyond its expiry for which some sidecar may still accept a token: the most skew that a policy may allow.
const MOST_SKEW: i64 = 300;

/// The token, if one of our keys signed it. Time, audience and revocation are still open.
pub(super) fn signed(services: &Services, token: &str) -> Result<AuthenticToken, Reason> {
    KeyedToken::select(UnverifiedToken::parse(token)?, &services.keys.issuers())?.verify()
}

/// As [`signed`], an opaque one among them. None: not ours.
pub(super) async fn ours(services: &Services, token: &str) -> Result<Option<AuthenticToken>, StoreError> {
    if opaque::prefix_kind(token).is_some() {
        return services.introspection.credential(token).await;
    }
    Ok(signed(services, token).ok())
}

/// The token, if it is ours, in time and not revoked.
pub(super) async fn in_force(services: &Services, token: &str) -> Result<Option<AuthenticToken>, StoreError> {
    let Some(token) = ours(services, token).await? else { return Ok(None) };
    if !is_in_time(&token, services.clock.wall()) || services.revocations.is_revoked(&token).await? {
        return Ok(None);
    }
    Ok(Some(token))
}

/// Whether the token is in time now, by our own clock and so without skew.
pub(super) fn is_in_time(token: &AuthenticToken, now: UnixMillis) -> bool {
    let claims = &token.claims;
    // Who asks is checked against the audience elsewhere, so any will do here.
    let expected = Expectations {
        issuers: &[],
        audiences: &claims.audience,
        clock_skew: 0,
        now: now.max(claims.issued_at),
    };
    claims.validate(expected).is_ok()
}

/// Whether no sidecar accepts the token any more, whatever its policies say.
pub(super) fn is_over(token: &AuthenticToken, now: UnixMillis) -> bool {
    token.claims.expires_at.saturating_add(MOST_SKEW) <= now.seconds()
}

/// What revokes just this token; none for one without a `jti`, which none of ours is.
pub(super) fn selector(token: &AuthenticToken) -> Option<Selector> {
    Some(Selector::Token {
        jti: token.claims.jti.clone()?,
        issuer: Some(token.claims.issuer.clone()),
        expires_at: Some(token.claims.expires_at),
    })
}
