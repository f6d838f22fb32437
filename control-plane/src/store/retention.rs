//! What is past and kept for those who look for what happened: ended sessions, records of revocations. Each realm says for how
//! long, or leaves it to the configuration.

use atm_core::time::UnixMillis;

use super::{Row, Store, StoreError, query};
use crate::realms::DEFAULT_REALM;

/// A day in milliseconds.
pub(crate) const DAY_MS: i64 = 86_400 * 1_000;

/// What goes by a retention of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Sessions that have ended or expired.
    Sessions,
    /// Records of revocations, and scheduled ones that are settled.
    Revocations,
}

impl Kept {
    /// The realms' column.
    const fn column(self) -> &'static str {
        match self {
            Self::Sessions => "session_retention_days",
            Self::Revocations => "revocation_retention_days",
        }
    }

    /// Table, key and instants: what is older by any of them goes.
    const fn tables(self) -> &'static [(&'static str, &'static str, &'static str)] {
        match self {
            Self::Sessions => &[("sessions", "id", "ended_at"), ("sessions", "id", "expires_at")],
            Self::Revocations => {
                &[("revocations", "id", "created_at"), ("scheduled_revocations", "id", "settled_at")]
            }
        }
    }
}

/// The instant before which things are too old; `days` of 0 keep for ever.
fn cutoff(days: u32, now: UnixMillis) -> Option<i64> {
    (days > 0).then(|| now.0.saturating_sub(i64::from(days) * DAY_MS))
}

/// Forgets what its realm keeps no longer, where `configured_days` hold for realms that say nothing; 0: for ever. At most `limit`
/// rows in a transaction, and one transaction a table of each of at most `limit` realms. Returns how many rows went.
pub(crate) async fn purge(
    store: &Store,
    kept: Kept,
    configured_days: u32,
    now: UnixMillis,
    limit: u32,
) -> Result<u64, StoreError> {
    let mut gone = 0;
    let own = cutoff(configured_days, now).map(|before| (DEFAULT_REALM.to_owned(), before));
    for (realm, before) in own.into_iter().chain(overdue(store, kept, configured_days, now, limit).await?) {
        for (table, key, instant) in kept.tables() {
            if gone >= u64::from(limit) {
                return Ok(gone);
            }
            let left = u64::from(limit) - gone;
            gone += query(sqlx::AssertSqlSafe(format!(
                "DELETE FROM {table} WHERE {key} IN \
                 (SELECT {key} FROM {table} WHERE realm = $1 AND {instant} < $2 LIMIT $3)"
            )))
            .bind(&realm)
            .bind(before)
            .bind(i64::try_from(left).unwrap_or(i64::MAX))
            .execute_alone(store)
            .await?;
        }
    }
    Ok(gone)
}

/// Realms beside the default one that hold something too old, with the instant before which it is. One statement, with a look
/// into an index for each realm: what is idle costs that.
async fn overdue(
    store: &Store,
    kept: Kept,
    configured_days: u32,
    now: UnixMillis,
    limit: u32,
) -> Result<Vec<(String, i64)>, StoreError> {
    let days = format!("COALESCE(r.{}, $2)", kept.column());
    // An instant that nothing is before keeps for ever.
    let before = format!("(CASE WHEN {days} = 0 THEN 0 ELSE $1 - {days} * {DAY_MS} END)");
    let is_overdue = kept.tables().iter().map(|(table, _, instant)| {
        format!("EXISTS (SELECT 1 FROM {table} t WHERE t.realm = r.name AND t.{instant} < {before})")
    });
    let is_overdue = is_overdue.collect::<Vec<_>>().join(" OR ");
    let sql = format!("SELECT r.name, {before} AS before FROM realms r WHERE {is_overdue} LIMIT $3");
    let overdue = query(sqlx::AssertSqlSafe(sql)).bind(now.0).bind(i64::from(configured_days)).bind(limit);
    let found = |row: &Row| Ok((row.get("name")?, row.get("before")?));
    overdue.fetch_all(store).await?.iter().map(found).collect()
}
