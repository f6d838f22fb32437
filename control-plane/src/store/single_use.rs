//! What may be used once: assertions and DPoP proofs, remembered until they are too old by themselves.

use atm_core::time::UnixMillis;

use super::query::query;
use super::{Store, StoreError};

/// Takes note of a use. Returns whether it is the first: at any replica, and through restarts.
pub(crate) async fn first_use(
    store: &Store,
    id: &[u8; 32],
    expires_at: UnixMillis,
) -> Result<bool, StoreError> {
    let inserted =
        query("INSERT INTO used_once (id, expires_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
            .bind(id)
            .bind(expires_at.0)
            .execute_alone(store)
            .await?;
    Ok(inserted > 0)
}

/// Forgets what expired before `before`, at most `limit`. Returns how many went.
pub(crate) async fn purge(store: &Store, before: UnixMillis, limit: u32) -> Result<u64, StoreError> {
    query("DELETE FROM used_once WHERE id IN (SELECT id FROM used_once WHERE expires_at < $1 LIMIT $2)")
        .bind(before.0)
        .bind(limit)
        .execute_alone(store)
        .await
}
