//! Trusted issuers: what was registered, what they published last, and when to look again.

use atm_core::key::VerificationKey;
use atm_proto::change::Change;

use super::{Row, Store, StoreError, Transaction, corrupt, from_sql, query, to_sql};
use crate::issuers::{IssuerSettings, TrustedIssuer};

const COLUMNS: &str = "id, issuer, settings, published, key_count, skipped, jwks_uri, etag, succeeded_at, last_error, \
                       failures, next_fetch, created_at";

pub(crate) async fn insert(transaction: &mut Transaction, issuer: &TrustedIssuer) -> Result<(), StoreError> {
    query(
        "INSERT INTO trusted_issuers (id, issuer, settings, published, key_count, skipped, jwks_uri, etag, \
         succeeded_at, last_error, failures, next_fetch, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(&issuer.id)
    .bind(&issuer.settings.issuer)
    .bind(json(&issuer.settings)?)
    .bind(&issuer.published)
    .bind(to_sql(issuer.key_count))
    .bind(json(&issuer.skipped)?)
    .bind(&issuer.jwks_uri)
    .bind(&issuer.etag)
    .bind(issuer.succeeded_at)
    .bind(&issuer.last_error)
    .bind(to_sql(issuer.failures))
    .bind(issuer.next_fetch)
    .bind(issuer.created_at)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Writes what a fetch came to.
pub(crate) async fn update(transaction: &mut Transaction, issuer: &TrustedIssuer) -> Result<(), StoreError> {
    query(
        "UPDATE trusted_issuers SET published = $2, key_count = $3, skipped = $4, jwks_uri = $5, etag = $6, \
         succeeded_at = $7, last_error = $8, failures = $9, next_fetch = $10 WHERE id = $1",
    )
    .bind(&issuer.id)
    .bind(&issuer.published)
    .bind(to_sql(issuer.key_count))
    .bind(json(&issuer.skipped)?)
    .bind(&issuer.jwks_uri)
    .bind(&issuer.etag)
    .bind(issuer.succeeded_at)
    .bind(&issuer.last_error)
    .bind(to_sql(issuer.failures))
    .bind(issuer.next_fetch)
    .execute(transaction)
    .await?;
    Ok(())
}

pub(crate) async fn delete(transaction: &mut Transaction, id: &str) -> Result<(), StoreError> {
    query("DELETE FROM trusted_issuers WHERE id = $1").bind(id).execute(transaction).await?;
    Ok(())
}

pub(crate) async fn get(store: &Store, id: &str) -> Result<Option<TrustedIssuer>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM trusted_issuers WHERE id = $1")))
        .bind(id)
        .fetch_optional(store)
        .await?
        .map(|row| issuer_from(&row))
        .transpose()
}

/// The keys in force of a trusted issuer, as the feed carries them; none for one that is not trusted, or not yet.
pub(crate) async fn published_keys(
    store: &Store,
    issuer: &str,
) -> Result<Option<Vec<VerificationKey>>, StoreError> {
    let row = query("SELECT published FROM trusted_issuers WHERE issuer = $1")
        .bind(issuer)
        .fetch_optional(store)
        .await?;
    let published: Option<Vec<u8>> = match row {
        None => None,
        Some(row) => row.get("published")?,
    };
    match published.map(|bytes| Change::decode(&bytes)).transpose() {
        Ok(None) => Ok(None),
        Ok(Some(Change::IssuerKeys { keys, .. })) => Ok(Some(keys)),
        Ok(Some(_)) => Err(corrupt("trusted issuer", "its published change is of another kind")),
        Err(error) => Err(corrupt("trusted issuer", error)),
    }
}

/// The issuer, locked until the transaction ends.
pub(crate) async fn locked(
    transaction: &mut Transaction,
    id: &str,
) -> Result<Option<TrustedIssuer>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM trusted_issuers WHERE id = $1")))
        .bind(id)
        .for_update()
        .fetch_optional(&mut *transaction)
        .await?
        .map(|row| issuer_from(&row))
        .transpose()
}

pub(crate) async fn count(transaction: &mut Transaction) -> Result<u64, StoreError> {
    let row = query("SELECT COUNT(*) AS number FROM trusted_issuers").fetch_one(&mut *transaction).await?;
    from_sql("number of issuers", row.get("number")?)
}

/// Issuers by name, those after `after`, at most `limit`.
pub(crate) async fn list(store: &Store, after: &str, limit: u32) -> Result<Vec<TrustedIssuer>, StoreError> {
    let text = format!("SELECT {COLUMNS} FROM trusted_issuers WHERE issuer > $1 ORDER BY issuer LIMIT $2");
    query(sqlx::AssertSqlSafe(text))
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(store)
        .await?
        .iter()
        .map(issuer_from)
        .collect()
}

/// An issuer that is to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) id: String,
    /// Whether it failed the last time.
    pub(crate) failing: bool,
}

/// Issuers that are to be looked at: those that did not fail the last time before the others, the longest overdue first.
pub(crate) async fn due(store: &Store, now_ms: i64, limit: u32) -> Result<Vec<Due>, StoreError> {
    let text = "SELECT id, failures FROM trusted_issuers WHERE next_fetch <= $1 \
                ORDER BY CASE WHEN failures > 0 THEN 1 ELSE 0 END, next_fetch LIMIT $2";
    query(text)
        .bind(now_ms)
        .bind(i64::from(limit))
        .fetch_all(store)
        .await?
        .iter()
        .map(|row| {
            let failures: i64 = row.get("failures")?;
            Ok(Due { id: row.get("id")?, failing: failures > 0 })
        })
        .collect()
}

fn issuer_from(row: &Row) -> Result<TrustedIssuer, StoreError> {
    let settings: String = row.get("settings")?;
    let skipped: String = row.get("skipped")?;
    let settings: IssuerSettings =
        serde_json::from_str(&settings).map_err(|error| corrupt("issuer's settings", error))?;
    Ok(TrustedIssuer {
        id: row.get("id")?,
        settings,
        published: row.get("published")?,
        key_count: from_sql("key_count", row.get("key_count")?)?,
        skipped: serde_json::from_str(&skipped).map_err(|error| corrupt("skipped keys", error))?,
        jwks_uri: row.get("jwks_uri")?,
        etag: row.get("etag")?,
        succeeded_at: row.get("succeeded_at")?,
        last_error: row.get("last_error")?,
        failures: from_sql("failures", row.get("failures")?)?,
        next_fetch: row.get("next_fetch")?,
        created_at: row.get("created_at")?,
    })
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| corrupt("value to be stored", error))
}
