//! Security event tokens that were taken.

use atm_core::time::UnixMillis;

use super::{Store, StoreError, Transaction, query};

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
