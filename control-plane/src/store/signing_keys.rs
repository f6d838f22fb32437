//! Our signing keys, their private halves wrapped.

use atm_core::key::Algorithm;

use super::{Row, Store, StoreError, Transaction, corrupt, query};
use crate::keys::{KeyRecord, SigningKeyState};

/// A key as stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredKey {
    pub(crate) record: KeyRecord,
    pub(crate) realm: String,
    /// DER SubjectPublicKeyInfo.
    pub(crate) spki: Vec<u8>,
    /// The wrapped private key, or its provider's reference. Empty once the key may no longer sign.
    pub(crate) wrapped: Vec<u8>,
}

const SELECT_OF_ISSUER: &str = "SELECT kid, issuer, realm, algorithm, provider, state, spki, wrapped, created_at, activated_at, \
                                retiring_at, retired_at FROM signing_keys WHERE issuer = $1 ORDER BY created_at, kid";

pub(crate) async fn insert(transaction: &mut Transaction, key: &StoredKey) -> Result<(), StoreError> {
    query(
        "INSERT INTO signing_keys (kid, issuer, realm, algorithm, provider, state, spki, wrapped, created_at, activated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(&key.record.kid)
    .bind(&key.record.issuer)
    .bind(&key.realm)
    .bind(key.record.algorithm.to_string())
    .bind(&key.record.provider)
    .bind(key.record.state.as_str())
    .bind(&key.spki)
    .bind(&key.wrapped)
    .bind(key.record.created_at)
    .bind(key.record.activated_at)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Writes state, times and the wrapped key.
pub(crate) async fn update(transaction: &mut Transaction, key: &StoredKey) -> Result<(), StoreError> {
    query(
        "UPDATE signing_keys SET state = $2, wrapped = $3, activated_at = $4, retiring_at = $5, retired_at = $6 \
         WHERE kid = $1",
    )
    .bind(&key.record.kid)
    .bind(key.record.state.as_str())
    .bind(&key.wrapped)
    .bind(key.record.activated_at)
    .bind(key.record.retiring_at)
    .bind(key.record.retired_at)
    .execute(transaction)
    .await?;
    Ok(())
}

/// All keys of an issuer, the oldest first.
pub(crate) async fn list(store: &Store, issuer: &str) -> Result<Vec<StoredKey>, StoreError> {
    let rows = query(SELECT_OF_ISSUER).bind(issuer).fetch_all(store).await?;
    rows.iter().map(key_from).collect()
}

/// As [`list`], locked until the transaction ends.
pub(crate) async fn locked(
    transaction: &mut Transaction,
    issuer: &str,
) -> Result<Vec<StoredKey>, StoreError> {
    let rows = query(SELECT_OF_ISSUER).bind(issuer).for_update().fetch_all(transaction).await?;
    rows.iter().map(key_from).collect()
}

/// Issuers of a realm that have keys: more than one where its issuer was another one before.
pub(crate) async fn issuers_of_realm(
    transaction: &mut Transaction,
    realm: &str,
) -> Result<Vec<String>, StoreError> {
    query("SELECT DISTINCT issuer FROM signing_keys WHERE realm = $1 ORDER BY issuer")
        .bind(realm)
        .fetch_all(transaction)
        .await?
        .iter()
        .map(|row| row.get("issuer"))
        .collect()
}

fn key_from(row: &Row) -> Result<StoredKey, StoreError> {
    let algorithm: String = row.get("algorithm")?;
    let state: String = row.get("state")?;
    Ok(StoredKey {
        record: KeyRecord {
            kid: row.get("kid")?,
            issuer: row.get("issuer")?,
            algorithm: algorithm.parse::<Algorithm>().map_err(|_| corrupt("key algorithm", &algorithm))?,
            provider: row.get("provider")?,
            state: SigningKeyState::parse(&state).ok_or_else(|| corrupt("key state", &state))?,
            created_at: row.get("created_at")?,
            activated_at: row.get("activated_at")?,
            retiring_at: row.get("retiring_at")?,
            retired_at: row.get("retired_at")?,
        },
        realm: row.get("realm")?,
        spki: row.get("spki")?,
        wrapped: row.get("wrapped")?,
    })
}
