//! Which assertions stand for which client.

use super::query::{Row, query};
use super::{Store, StoreError, corrupt};
use crate::assertions::StoredRule;

pub(crate) async fn insert(store: &Store, realm: &str, rule: &StoredRule) -> Result<(), StoreError> {
    let text = serde_json::to_string(&rule.rule).map_err(|error| corrupt("assertion rule", error))?;
    query("INSERT INTO assertion_rules (id, realm, issuer, rule, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(&rule.id)
        .bind(realm)
        .bind(&rule.rule.issuer)
        .bind(text)
        .bind(rule.created_at)
        .execute_alone(store)
        .await?;
    Ok(())
}

/// All rules for the assertions of an issuer, by id.
pub(crate) async fn of_issuer(
    store: &Store,
    realm: &str,
    issuer: &str,
) -> Result<Vec<StoredRule>, StoreError> {
    query("SELECT id, rule, created_at FROM assertion_rules WHERE realm = $1 AND issuer = $2 ORDER BY id")
        .bind(realm)
        .bind(issuer)
        .fetch_all(store)
        .await?
        .iter()
        .map(rule_from)
        .collect()
}

/// Rules by id, after `after`, at most `limit`.
pub(crate) async fn list(
    store: &Store,
    realm: &str,
    after: &str,
    limit: u32,
) -> Result<Vec<StoredRule>, StoreError> {
    query(
        "SELECT id, rule, created_at FROM assertion_rules WHERE realm = $1 AND id > $2 ORDER BY id LIMIT $3",
    )
    .bind(realm)
    .bind(after)
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(rule_from)
    .collect()
}

/// Returns whether it was there.
pub(crate) async fn delete(store: &Store, realm: &str, id: &str) -> Result<bool, StoreError> {
    let deleted = query("DELETE FROM assertion_rules WHERE realm = $1 AND id = $2")
        .bind(realm)
        .bind(id)
        .execute_alone(store)
        .await?;
    Ok(deleted > 0)
}

fn rule_from(row: &Row) -> Result<StoredRule, StoreError> {
    let rule: String = row.get("rule")?;
    Ok(StoredRule {
        id: row.get("id")?,
        rule: serde_json::from_str(&rule).map_err(|error| corrupt("assertion rule", error))?,
        created_at: row.get("created_at")?,
    })
}
