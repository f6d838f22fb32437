//! Our signing keys, their private halves wrapped.

use atm_core::key::Algorithm;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError, Transaction, corrupt};
use crate::keys::{KeyRecord, SigningKeyState};

/// A key as stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredKey {
    pub(crate) record: KeyRecord,
    pub(crate) realm: String,
    /// DER SubjectPublicKeyInfo.
    pub(crate) spki: Vec<u8>,
    /// Empty once the key may no longer sign.
    pub(crate) wrapped: Vec<u8>,
}

const SELECT_OF_ISSUER: &str = "SELECT kid, issuer, realm, algorithm, state, spki, wrapped, created_at, activated_at, \
                                retiring_at, retired_at FROM signing_keys WHERE issuer = $1 ORDER BY created_at, kid";

pub(crate) async fn insert(transaction: &mut Transaction, key: &StoredKey) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO signing_keys (kid, issuer, realm, algorithm, state, spki, wrapped, created_at, activated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&key.record.kid)
    .bind(&key.record.issuer)
    .bind(&key.realm)
    .bind(key.record.algorithm.to_string())
    .bind(key.record.state.as_str())
    .bind(&key.spki)
    .bind(&key.wrapped)
    .bind(key.record.created_at)
    .bind(key.record.activated_at)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Writes state, times and the wrapped key.
pub(crate) async fn update(transaction: &mut Transaction, key: &StoredKey) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE signing_keys SET state = $2, wrapped = $3, activated_at = $4, retiring_at = $5, retired_at = $6 \
         WHERE kid = $1",
    )
    .bind(&key.record.kid)
    .bind(key.record.state.as_str())
    .bind(&key.wrapped)
    .bind(key.record.activated_at)
    .bind(key.record.retiring_at)
    .bind(key.record.retired_at)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// All keys of an issuer, the oldest first.
pub(crate) async fn list(store: &Store, issuer: &str) -> Result<Vec<StoredKey>, StoreError> {
    let rows = sqlx::query(SELECT_OF_ISSUER).bind(issuer).fetch_all(store.readers()).await?;
    rows.iter().map(key_from).collect()
}

/// As [`list`], under the write lock.
pub(crate) async fn locked(
    transaction: &mut Transaction,
    issuer: &str,
) -> Result<Vec<StoredKey>, StoreError> {
    let rows = sqlx::query(SELECT_OF_ISSUER).bind(issuer).fetch_all(&mut **transaction).await?;
    rows.iter().map(key_from).collect()
}

/// Issuers that have keys.
pub(crate) async fn issuers(transaction: &mut Transaction) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT DISTINCT issuer FROM signing_keys ORDER BY issuer")
        .fetch_all(&mut **transaction)
        .await?)
}

fn key_from(row: &SqliteRow) -> Result<StoredKey, StoreError> {
    let algorithm: String = row.try_get("algorithm")?;
    let state: String = row.try_get("state")?;
    Ok(StoredKey {
        record: KeyRecord {
            kid: row.try_get("kid")?,
            issuer: row.try_get("issuer")?,
            algorithm: algorithm.parse::<Algorithm>().map_err(|_| corrupt("key algorithm", &algorithm))?,
            state: SigningKeyState::parse(&state).ok_or_else(|| corrupt("key state", &state))?,
            created_at: row.try_get("created_at")?,
            activated_at: row.try_get("activated_at")?,
            retiring_at: row.try_get("retiring_at")?,
            retired_at: row.try_get("retired_at")?,
        },
        realm: row.try_get("realm")?,
        spki: row.try_get("spki")?,
        wrapped: row.try_get("wrapped")?,
    })
}
