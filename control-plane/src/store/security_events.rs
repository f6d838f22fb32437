//! Security event tokens that were taken, and the keys of those who send them.

use atm_core::key::VerificationKey;
use atm_core::time::UnixMillis;
use atm_proto::change::Change;

use super::{Store, StoreError, Transaction, corrupt, query};

/// Takes note of an event. Returns whether it is new.
pub(crate) async fn first(
    transaction: &mut Transaction,
    id: &[u8; 32],
    now: UnixMillis,
) -> Result<bool, StoreError> {
    let inserted =
        query("INSERT INTO security_events (id, taken_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
            .bind(id)
            .bind(now.0)
            .execute(transaction)
            .await?;
    Ok(inserted > 0)
}

/// Whether the event came before.
pub(crate) async fn is_taken(store: &Store, id: &[u8; 32]) -> Result<bool, StoreError> {
    let found = query("SELECT 1 AS found FROM security_events WHERE id = $1").bind(id);
    Ok(found.fetch_optional(store).await?.is_some())
}

/// Forgets what was taken before `before`, at most `limit`.
pub(crate) async fn purge(store: &Store, before: UnixMillis, limit: u32) -> Result<u64, StoreError> {
    query("DELETE FROM security_events WHERE id IN (SELECT id FROM security_events WHERE taken_at < $1 LIMIT $2)")
        .bind(before.0)
        .bind(limit)
        .execute_alone(store)
        .await
}

/// The keys that a trusted issuer published last; none where it is not registered or has none.
pub(crate) async fn issuer_keys(store: &Store, issuer: &str) -> Result<Vec<VerificationKey>, StoreError> {
    let row = query("SELECT published FROM trusted_issuers WHERE issuer = $1")
        .bind(issuer)
        .fetch_optional(store)
        .await?;
    let published: Option<Vec<u8>> = match row {
        None => None,
        Some(row) => row.get("published")?,
    };
    match published.map(|bytes| Change::decode(&bytes)).transpose() {
        Ok(None) => Ok(Vec::new()),
        Ok(Some(Change::IssuerKeys { keys, .. })) => Ok(keys),
        Ok(Some(_)) => Err(corrupt("trusted issuer", "its published change is of another kind")),
        Err(error) => Err(corrupt("trusted issuer", error)),
    }
}
