//! Subjects that get no tokens.

use super::query::{Row, query};
use super::{Store, StoreError, Transaction};
use crate::sessions::DisabledSubject;

/// Disables a subject; one that is disabled stays as it is.
pub(crate) async fn disable(
    transaction: &mut Transaction,
    realm: &str,
    subject: &DisabledSubject,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO disabled_subjects (realm, subject, reason, actor, created_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (realm, subject) DO NOTHING",
    )
    .bind(realm)
    .bind(&subject.subject)
    .bind(&subject.reason)
    .bind(&subject.actor)
    .bind(subject.created_at)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Lets a subject have tokens again. Returns whether it was disabled.
pub(crate) async fn enable(store: &Store, realm: &str, subject: &str) -> Result<bool, StoreError> {
    let enabled = query("DELETE FROM disabled_subjects WHERE realm = $1 AND subject = $2")
        .bind(realm)
        .bind(subject)
        .execute_alone(store)
        .await?;
    Ok(enabled > 0)
}

pub(crate) async fn is_disabled(store: &Store, realm: &str, subject: &str) -> Result<bool, StoreError> {
    let row = query("SELECT subject FROM disabled_subjects WHERE realm = $1 AND subject = $2")
        .bind(realm)
        .bind(subject)
        .fetch_optional(store)
        .await?;
    Ok(row.is_some())
}

/// Disabled subjects after `after`, at most `limit`.
pub(crate) async fn list(
    store: &Store,
    realm: &str,
    after: &str,
    limit: u32,
) -> Result<Vec<DisabledSubject>, StoreError> {
    query(
        "SELECT subject, reason, actor, created_at FROM disabled_subjects WHERE realm = $1 AND subject > $2 \
         ORDER BY subject LIMIT $3",
    )
    .bind(realm)
    .bind(after)
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(disabled_from)
    .collect()
}

fn disabled_from(row: &Row) -> Result<DisabledSubject, StoreError> {
    Ok(DisabledSubject {
        subject: row.get("subject")?,
        reason: row.get("reason")?,
        actor: row.get("actor")?,
        created_at: row.get("created_at")?,
    })
}
