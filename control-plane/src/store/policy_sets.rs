//! Every policy set that was ever in force.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::clients::{from_json, to_json};
use super::{Store, StoreError, Transaction, from_sql, to_sql};
use crate::policies::{PolicyHeader, PolicyVersion};

pub(crate) async fn insert(transaction: &mut Transaction, set: &PolicyVersion) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO policy_sets (version, documents, actor, restored_from, applied_at) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(to_sql(set.header.version))
    .bind(to_json(&set.documents))
    .bind(&set.header.actor)
    .bind(set.header.restored_from.map(to_sql))
    .bind(set.header.applied_at)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// The newest version number under the write lock; 0 when there is none.
pub(crate) async fn locked_newest(transaction: &mut Transaction) -> Result<u64, StoreError> {
    let newest: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM policy_sets")
        .fetch_one(&mut **transaction)
        .await?;
    from_sql("version", newest)
}

pub(crate) async fn newest(store: &Store) -> Result<Option<PolicyVersion>, StoreError> {
    sqlx::query(
        "SELECT version, documents, actor, restored_from, applied_at FROM policy_sets \
         ORDER BY version DESC LIMIT 1",
    )
    .fetch_optional(store.readers())
    .await?
    .map(|row| version_from(&row))
    .transpose()
}

pub(crate) async fn get(store: &Store, version: u64) -> Result<Option<PolicyVersion>, StoreError> {
    sqlx::query(
        "SELECT version, documents, actor, restored_from, applied_at FROM policy_sets WHERE version = $1",
    )
    .bind(to_sql(version))
    .fetch_optional(store.readers())
    .await?
    .map(|row| version_from(&row))
    .transpose()
}

/// Newest first.
pub(crate) async fn history(store: &Store, limit: u32) -> Result<Vec<PolicyHeader>, StoreError> {
    sqlx::query(
        "SELECT version, actor, restored_from, applied_at FROM policy_sets ORDER BY version DESC LIMIT $1",
    )
    .bind(i64::from(limit))
    .fetch_all(store.readers())
    .await?
    .iter()
    .map(header_from)
    .collect()
}

fn version_from(row: &SqliteRow) -> Result<PolicyVersion, StoreError> {
    Ok(PolicyVersion { header: header_from(row)?, documents: from_json("documents", row)? })
}

fn header_from(row: &SqliteRow) -> Result<PolicyHeader, StoreError> {
    let restored: Option<i64> = row.try_get("restored_from")?;
    Ok(PolicyHeader {
        version: from_sql("version", row.try_get("version")?)?,
        actor: row.try_get("actor")?,
        restored_from: restored.map(|version| from_sql("restored_from", version)).transpose()?,
        applied_at: row.try_get("applied_at")?,
    })
}
