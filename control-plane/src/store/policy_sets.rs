//! Every policy set that was ever in force.

use super::clients::{from_json, to_json};
use super::query::Reader;
use super::{Row, Store, StoreError, Transaction, from_sql, query, to_sql};
use crate::policies::{PolicyHeader, PolicyVersion};

pub(crate) async fn insert(transaction: &mut Transaction, set: &PolicyVersion) -> Result<(), StoreError> {
    query(
        "INSERT INTO policy_sets (version, documents, actor, restored_from, applied_at) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(to_sql(set.header.version))
    .bind(to_json(&set.documents))
    .bind(&set.header.actor)
    .bind(set.header.restored_from.map(to_sql))
    .bind(set.header.applied_at)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The newest version number; 0 when there is none. Two that take the same one do not both commit.
pub(crate) async fn locked_newest(transaction: &mut Transaction) -> Result<u64, StoreError> {
    let row =
        query("SELECT COALESCE(MAX(version), 0) AS newest FROM policy_sets").fetch_one(transaction).await?;
    from_sql("version", row.get("newest")?)
}

pub(crate) async fn newest<'e>(from: impl Into<Reader<'e>>) -> Result<Option<PolicyVersion>, StoreError> {
    query(
        "SELECT version, documents, actor, restored_from, applied_at FROM policy_sets \
         ORDER BY version DESC LIMIT 1",
    )
    .fetch_optional(from)
    .await?
    .map(|row| version_from(&row))
    .transpose()
}

pub(crate) async fn get(store: &Store, version: u64) -> Result<Option<PolicyVersion>, StoreError> {
    query("SELECT version, documents, actor, restored_from, applied_at FROM policy_sets WHERE version = $1")
        .bind(to_sql(version))
        .fetch_optional(store)
        .await?
        .map(|row| version_from(&row))
        .transpose()
}

/// Newest first.
pub(crate) async fn history(store: &Store, limit: u32) -> Result<Vec<PolicyHeader>, StoreError> {
    query("SELECT version, actor, restored_from, applied_at FROM policy_sets ORDER BY version DESC LIMIT $1")
        .bind(i64::from(limit))
        .fetch_all(store)
        .await?
        .iter()
        .map(header_from)
        .collect()
}

fn version_from(row: &Row) -> Result<PolicyVersion, StoreError> {
    Ok(PolicyVersion { header: header_from(row)?, documents: from_json("documents", row)? })
}

fn header_from(row: &Row) -> Result<PolicyHeader, StoreError> {
    let restored: Option<i64> = row.get("restored_from")?;
    Ok(PolicyHeader {
        version: from_sql("version", row.get("version")?)?,
        actor: row.get("actor")?,
        restored_from: restored.map(|version| from_sql("restored_from", version)).transpose()?,
        applied_at: row.get("applied_at")?,
    })
}
