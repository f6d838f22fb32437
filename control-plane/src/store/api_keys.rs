//! API keys and the hashes of their digests.

use super::clients::{from_json, to_json};
use super::{Row, Store, StoreError, Transaction, corrupt, query};
use crate::api_keys::{ApiKey, ApiKeyStatus};

const COLUMNS: &str =
    "id, name, subject, scopes, audiences, networks, status, expires_at, created_at, updated_at";

pub(crate) async fn insert(
    transaction: &mut Transaction,
    key: &ApiKey,
    digest_hash: &[u8; 32],
) -> Result<(), StoreError> {
    query(
        "INSERT INTO api_keys (id, digest_hash, name, subject, scopes, audiences, networks, status, expires_at, \
         created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(&key.id)
    .bind(&digest_hash[..])
    .bind(&key.name)
    .bind(&key.subject)
    .bind(to_json(&key.scopes))
    .bind(to_json(&key.audiences))
    .bind(to_json(&key.networks))
    .bind(key.status.as_str())
    .bind(key.expires_at)
    .bind(key.created_at)
    .bind(key.updated_at)
    .execute(transaction)
    .await?;
    Ok(())
}

pub(crate) async fn by_digest(store: &Store, digest_hash: &[u8; 32]) -> Result<Option<ApiKey>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM api_keys WHERE digest_hash = $1")))
        .bind(&digest_hash[..])
        .fetch_optional(store)
        .await?
        .map(|row| key_from(&row))
        .transpose()
}

pub(crate) async fn get(store: &Store, id: &str) -> Result<Option<ApiKey>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM api_keys WHERE id = $1")))
        .bind(id)
        .fetch_optional(store)
        .await?
        .map(|row| key_from(&row))
        .transpose()
}

/// Keys by id, after `after`, at most `limit`.
pub(crate) async fn list(store: &Store, after: &str, limit: u32) -> Result<Vec<ApiKey>, StoreError> {
    let text = format!("SELECT {COLUMNS} FROM api_keys WHERE id > $1 ORDER BY id LIMIT $2");
    query(sqlx::AssertSqlSafe(text))
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(store)
        .await?
        .iter()
        .map(key_from)
        .collect()
}

/// The key, locked until the transaction ends.
pub(crate) async fn locked(transaction: &mut Transaction, id: &str) -> Result<Option<ApiKey>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM api_keys WHERE id = $1")))
        .bind(id)
        .for_update()
        .fetch_optional(&mut *transaction)
        .await?
        .map(|row| key_from(&row))
        .transpose()
}

/// Writes all that may change.
pub(crate) async fn update(transaction: &mut Transaction, key: &ApiKey) -> Result<(), StoreError> {
    query(
        "UPDATE api_keys SET name = $2, scopes = $3, audiences = $4, networks = $5, status = $6, updated_at = $7 \
         WHERE id = $1",
    )
    .bind(&key.id)
    .bind(&key.name)
    .bind(to_json(&key.scopes))
    .bind(to_json(&key.audiences))
    .bind(to_json(&key.networks))
    .bind(key.status.as_str())
    .bind(key.updated_at)
    .execute(transaction)
    .await?;
    Ok(())
}

fn key_from(row: &Row) -> Result<ApiKey, StoreError> {
    let status: String = row.get("status")?;
    Ok(ApiKey {
        id: row.get("id")?,
        name: row.get("name")?,
        subject: row.get("subject")?,
        scopes: from_json("scopes", row)?,
        audiences: from_json("audiences", row)?,
        networks: from_json("networks", row)?,
        status: ApiKeyStatus::parse(&status).ok_or_else(|| corrupt("API key's status", status))?,
        expires_at: row.get("expires_at")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}
