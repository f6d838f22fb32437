//! Opaque access tokens: what each stands for, until it expires.

use atm_core::time::UnixMillis;
use serde_json::{Map, Value};

use super::query::query;
use super::{Store, StoreError, corrupt};

pub(crate) async fn insert(
    store: &Store,
    digest_hash: &[u8; 32],
    realm: &str,
    claims: &Map<String, Value>,
    expires_at: UnixMillis,
) -> Result<(), StoreError> {
    let claims = serde_json::to_string(claims).map_err(|error| corrupt("token's claims", error))?;
    query("INSERT INTO opaque_tokens (digest_hash, realm, claims, expires_at) VALUES ($1, $2, $3, $4)")
        .bind(digest_hash)
        .bind(realm)
        .bind(claims)
        .bind(expires_at.0)
        .execute_alone(store)
        .await?;
    Ok(())
}

/// The realm of the token and its claims, expired or not.
pub(crate) async fn by_digest(
    store: &Store,
    digest_hash: &[u8; 32],
) -> Result<Option<(String, Map<String, Value>)>, StoreError> {
    let row = query("SELECT realm, claims FROM opaque_tokens WHERE digest_hash = $1")
        .bind(digest_hash)
        .fetch_optional(store)
        .await?;
    row.map(|row| {
        let claims: String = row.get("claims")?;
        let claims = serde_json::from_str(&claims).map_err(|error| corrupt("token's claims", error))?;
        Ok((row.get("realm")?, claims))
    })
    .transpose()
}

/// Forgets what expired before `before`, at most `limit`. Returns how many went.
pub(crate) async fn purge(store: &Store, before: UnixMillis, limit: u32) -> Result<u64, StoreError> {
    query(
        "DELETE FROM opaque_tokens WHERE digest_hash IN \
         (SELECT digest_hash FROM opaque_tokens WHERE expires_at < $1 LIMIT $2)",
    )
    .bind(before.0)
    .bind(limit)
    .execute_alone(store)
    .await
}
