//! Realms beside the default one.

use super::versions::{self, Topic};
use super::{Row, Store, StoreError, Transaction, corrupt, query};
use crate::realms::{Realm, RealmStatus};

pub(crate) async fn insert(transaction: &mut Transaction, realm: &Realm) -> Result<(), StoreError> {
    query("INSERT INTO realms (name, settings, status, created_at, updated_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(&realm.name)
        .bind(settings(realm)?)
        .bind(realm.status.as_str())
        .bind(realm.created_at)
        .bind(realm.updated_at)
        .execute(transaction)
        .await?;
    versions::bump(transaction, Topic::Realms).await
}

/// Writes all that may change.
pub(crate) async fn update(transaction: &mut Transaction, realm: &Realm) -> Result<(), StoreError> {
    query("UPDATE realms SET settings = $2, status = $3, updated_at = $4 WHERE name = $1")
        .bind(&realm.name)
        .bind(settings(realm)?)
        .bind(realm.status.as_str())
        .bind(realm.updated_at)
        .execute(transaction)
        .await?;
    versions::bump(transaction, Topic::Realms).await
}

pub(crate) async fn get(store: &Store, name: &str) -> Result<Option<Realm>, StoreError> {
    query("SELECT name, settings, status, created_at, updated_at FROM realms WHERE name = $1")
        .bind(name)
        .fetch_optional(store)
        .await?
        .map(|row| realm_from(&row))
        .transpose()
}

/// The realm, locked until the transaction ends.
pub(crate) async fn locked(transaction: &mut Transaction, name: &str) -> Result<Option<Realm>, StoreError> {
    query("SELECT name, settings, status, created_at, updated_at FROM realms WHERE name = $1")
        .bind(name)
        .for_update()
        .fetch_optional(transaction)
        .await?
        .map(|row| realm_from(&row))
        .transpose()
}

/// Realms by name, after `after`, at most `limit`.
pub(crate) async fn list(store: &Store, after: &str, limit: u32) -> Result<Vec<Realm>, StoreError> {
    query(
        "SELECT name, settings, status, created_at, updated_at FROM realms WHERE name > $1 ORDER BY name LIMIT $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(realm_from)
    .collect()
}

fn settings(realm: &Realm) -> Result<String, StoreError> {
    serde_json::to_string(&realm.settings).map_err(|error| corrupt("realm", error))
}

fn realm_from(row: &Row) -> Result<Realm, StoreError> {
    let (settings, status): (String, String) = (row.get("settings")?, row.get("status")?);
    Ok(Realm {
        name: row.get("name")?,
        settings: serde_json::from_str(&settings).map_err(|error| corrupt("realm", error))?,
        status: RealmStatus::parse(&status).ok_or_else(|| corrupt("realm's status", status))?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}
