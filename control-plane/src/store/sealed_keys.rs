//! Keys of our own, sealed by the operator's wrapping key.

use atm_core::time::UnixMillis;

use super::{StoreError, Transaction, query};

/// The sealed key and the name of what sealed it.
pub(crate) async fn get(
    transaction: &mut Transaction,
    name: &str,
) -> Result<Option<(Vec<u8>, String)>, StoreError> {
    query("SELECT sealed, sealed_by FROM sealed_keys WHERE name = $1")
        .bind(name)
        .for_update()
        .fetch_optional(&mut *transaction)
        .await?
        .map(|row| Ok((row.get("sealed")?, row.get("sealed_by")?)))
        .transpose()
}

pub(crate) async fn put(
    transaction: &mut Transaction,
    name: &str,
    sealed: &[u8],
    sealed_by: &str,
    now: UnixMillis,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO sealed_keys (name, sealed, sealed_by, updated_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed, sealed_by = excluded.sealed_by, \
         updated_at = excluded.updated_at",
    )
    .bind(name)
    .bind(sealed)
    .bind(sealed_by)
    .bind(now.0)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Whether something in the store hangs on a root key already.
pub(crate) async fn is_in_use(transaction: &mut Transaction) -> Result<bool, StoreError> {
    for table in ["signing_keys", "clients", "api_keys"] {
        let found = query(sqlx::AssertSqlSafe(format!("SELECT 1 AS found FROM {table} LIMIT 1")));
        if found.fetch_optional(&mut *transaction).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
