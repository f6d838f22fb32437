//! What opaque credentials stand for: access tokens and API keys, for sidecars (over NATS) and for the introspection endpoint.

use std::sync::Arc;

use atm_core::key::{Issuer, Issuers};
use atm_core::opaque::{self, OpaqueKind};
use atm_core::time::UnixMillis;
use atm_core::token::AuthenticToken;
use atm_proto::introspection::{IntrospectionReply, IntrospectionRequest, MAX_CACHE_SECONDS};
use serde_json::{Map, Value};

use crate::api_keys::ApiKeys;
use crate::clock::IssueClock;
use crate::keys::Keys;
use crate::realms::DEFAULT_REALM;
use crate::revocation::Revocations;
use crate::secret::SecretHasher;
use crate::store::{Store, StoreError, opaque_tokens};

/// Looks up opaque credentials; clones share everything.
#[derive(Debug, Clone)]
pub struct Introspection {
    store: Store,
    clock: Arc<IssueClock>,
    hasher: SecretHasher,
    keys: Keys,
    revocations: Revocations,
    api_keys: ApiKeys,
}

impl Introspection {
    /// Over the tokens in `store` and the keys of `api_keys`.
    pub fn new(
        store: Store,
        clock: Arc<IssueClock>,
        hasher: SecretHasher,
        keys: Keys,
        revocations: Revocations,
        api_keys: ApiKeys,
    ) -> Self {
        Self { store, clock, hasher, keys, revocations, api_keys }
    }

    /// What `text` stands for, in force or not; none where it is no opaque credential of this realm. API keys are the default
    /// realm's.
    pub async fn credential(&self, text: &str) -> Result<Option<AuthenticToken>, StoreError> {
        let digest = opaque::digest(text);
        let claims = match opaque::is_opaque(text) {
            None => None,
            Some(OpaqueKind::AccessToken) => self.token_claims(&digest).await?,
            Some(OpaqueKind::ApiKey) => {
                let claims = self.api_keys.active_claims(&digest).await?;
                claims.map(|claims| (DEFAULT_REALM.to_owned(), claims))
            }
        };
        let of_realm = claims.filter(|(realm, _)| realm == self.keys.realm());
        Ok(of_realm.and_then(|(realm, claims)| authentic(&realm, claims)))
    }

    /// Answers a sidecar's question, for all realms. The instant is taken before the look, so that a change in between makes the answer out of
    /// date instead of missed.
    pub async fn answer(
        &self,
        request: &IntrospectionRequest,
        realm_group: &str,
    ) -> Result<IntrospectionReply, StoreError> {
        let time = self.clock.issue().await?;
        let Some((realm, claims)) = self.token_claims(&request.token_digest).await? else {
            return self.api_keys.introspect(request, realm_group).await;
        };
        let left = self.seconds_left(&realm, claims).await?;
        Ok(IntrospectionReply {
            realm_group: realm_group.to_owned(),
            token_digest: request.token_digest,
            nonce: request.nonce,
            time,
            cache_seconds: left.as_ref().map_or(MAX_CACHE_SECONDS, |(_, seconds)| *seconds),
            claims: left.map(|(claims, _)| claims),
        })
    }

    /// The claims and the seconds for which they may be kept; none where the token is over or revoked, for good.
    async fn seconds_left(
        &self,
        realm: &str,
        claims: Map<String, Value>,
    ) -> Result<Option<(Map<String, Value>, u32)>, StoreError> {
        let Some(token) = authentic(realm, claims.clone()) else { return Ok(None) };
        let left = token.claims.expires_at - self.clock.wall().seconds();
        if left <= 0 || self.revocations.is_revoked(&token).await? {
            return Ok(None);
        }
        Ok(Some((claims, u32::try_from(left).unwrap_or(u32::MAX).min(MAX_CACHE_SECONDS))))
    }

    async fn token_claims(
        &self,
        digest: &[u8; 32],
    ) -> Result<Option<(String, Map<String, Value>)>, StoreError> {
        opaque_tokens::by_digest(&self.store, &self.hasher.hash(&hex::encode(digest))).await
    }
}

/// What we have stored is ours, whichever realm's; the issuer is the one of then.
fn authentic(realm: &str, claims: Map<String, Value>) -> Option<AuthenticToken> {
    let issuer = claims.get("iss")?.as_str()?.to_owned();
    let mut issuers = Issuers::default();
    issuers.set(Issuer::new(issuer, Some(realm.to_owned()), Vec::new()));
    AuthenticToken::introspected(claims, &issuers, UnixMillis(0)).ok()
}
