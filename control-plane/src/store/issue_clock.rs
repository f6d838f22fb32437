//! The issue clock's two instants; see [`crate::clock`] for what they promise.

use atm_core::time::UnixMillis;

use super::{Row, Store, StoreError, corrupt, query};

/// The clock as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The newest watermark: every later token is above it.
    pub(crate) floor: UnixMillis,
    /// No token has an instant above it. Always above the floor.
    pub(crate) ceiling: UnixMillis,
}

/// Reads both, and with them what other replicas have changed.
pub(crate) async fn read(store: &Store) -> Result<Reading, StoreError> {
    let rows = query("SELECT c.floor_ms, c.ceiling_ms, v.topic, v.version FROM issue_clock c, versions v")
        .fetch_all(store)
        .await?;
    store.0.versions.note_all(&rows)?;
    reading(rows.first())
}

/// Raises the ceiling to `to`; never lowers it.
pub(crate) async fn raise_ceiling(store: &Store, to: UnixMillis) -> Result<Reading, StoreError> {
    let rows = query(
        "UPDATE issue_clock SET ceiling_ms = CASE WHEN ceiling_ms < $1 THEN $1 ELSE ceiling_ms END \
         WHERE only_row = 1 RETURNING floor_ms, ceiling_ms",
    )
    .bind(to.0)
    .fetch_alone(store)
    .await?;
    reading(rows.first())
}

/// Takes a watermark: the floor rises to the ceiling, or to `wall` if that is later, and the ceiling above it.
pub(crate) async fn take_watermark(store: &Store, wall: UnixMillis) -> Result<Reading, StoreError> {
    let rows = query(
        "UPDATE issue_clock SET floor_ms = CASE WHEN ceiling_ms < $1 THEN $1 ELSE ceiling_ms END, \
         ceiling_ms = CASE WHEN ceiling_ms < $1 THEN $1 ELSE ceiling_ms END + 1 \
         WHERE only_row = 1 RETURNING floor_ms, ceiling_ms",
    )
    .bind(wall.0)
    .fetch_alone(store)
    .await?;
    reading(rows.first())
}

fn reading(row: Option<&Row>) -> Result<Reading, StoreError> {
    let row = row.ok_or_else(|| corrupt("issue clock", "is missing"))?;
    Ok(Reading { floor: UnixMillis(row.get("floor_ms")?), ceiling: UnixMillis(row.get("ceiling_ms")?) })
}
