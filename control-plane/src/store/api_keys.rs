//! API keys and the hashes of their digests.

use atm_core::time::UnixMillis;

use super::clients::{from_json, to_json};
use super::{Row, Store, StoreError, Transaction, corrupt, query};
use crate::api_keys::{ApiKey, ApiKeyStatus};

const COLUMNS: &str = "id, name, subject, scopes, audiences, networks, status, expires_at, previous_expires_at, last_used_at, \
     created_at, updated_at";

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

/// The key with this digest. Found by the digest before a rotation, it expires with the overlap at the latest.
pub(crate) async fn by_digest(
    store: &Store,
    digest_hash: &[u8; 32],
    now: UnixMillis,
) -> Result<Option<ApiKey>, StoreError> {
    let text = format!(
        "SELECT {COLUMNS}, digest_hash FROM api_keys \
         WHERE digest_hash = $1 OR (previous_digest_hash = $1 AND previous_expires_at > $2)"
    );
    let row =
        query(sqlx::AssertSqlSafe(text)).bind(&digest_hash[..]).bind(now.0).fetch_optional(store).await?;
    let Some(row) = row else { return Ok(None) };
    let mut key = key_from(&row)?;
    let current: Vec<u8> = row.get("digest_hash")?;
    if current != digest_hash {
        let overlap = key.previous_expires_at.unwrap_or(0).div_euclid(1_000);
        key.expires_at = key.expires_at.min(overlap);
    }
    Ok(Some(key))
}

/// Gives the key another digest; the one before is taken until `previous_expires_at`, or no more where that is none.
pub(crate) async fn rotate(
    transaction: &mut Transaction,
    key: &ApiKey,
    digest_hash: &[u8; 32],
) -> Result<(), StoreError> {
    query(
        "UPDATE api_keys SET \
         previous_digest_hash = CASE WHEN $3 > 0 THEN digest_hash ELSE NULL END, \
         previous_expires_at = CASE WHEN $3 > 0 THEN $3 ELSE NULL END, digest_hash = $2, updated_at = $4 WHERE id = $1",
    )
    .bind(&key.id)
    .bind(&digest_hash[..])
    .bind(key.previous_expires_at.unwrap_or(0))
    .bind(key.updated_at)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Notes a use, unless one is noted since `since`.
pub(crate) async fn used(
    store: &Store,
    id: &str,
    now: UnixMillis,
    since: UnixMillis,
) -> Result<(), StoreError> {
    query(
        "UPDATE api_keys SET last_used_at = $2 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $3)",
    )
    .bind(id)
    .bind(now.0)
    .bind(since.0)
    .execute_alone(store)
    .await?;
    Ok(())
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
        previous_expires_at: row.get("previous_expires_at")?,
        last_used_at: row.get("last_used_at")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}
