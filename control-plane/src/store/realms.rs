//! Realms beside the default one.

use super::query::Query;
use super::versions::{self, Topic};
use super::{Row, Store, StoreError, Transaction, corrupt, query};
use crate::realms::{Realm, RealmSettings, RealmStatus};

const REALM: &str = "name, settings, status, created_at, updated_at, session_retention_days, \
                     revocation_retention_days, audit_retention_days";
/// Settings with columns of their own.
const APART: [&str; 3] = ["session_retention_days", "revocation_retention_days", "audit_retention_days"];

pub(crate) async fn insert(transaction: &mut Transaction, realm: &Realm) -> Result<(), StoreError> {
    let insert = query(sqlx::AssertSqlSafe(format!(
        "INSERT INTO realms ({REALM}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
    )))
    .bind(&realm.name)
    .bind(settings(realm)?)
    .bind(realm.status.as_str())
    .bind(realm.created_at)
    .bind(realm.updated_at);
    with_retentions(insert, &realm.settings).execute(transaction).await?;
    versions::bump(transaction, Topic::Realms).await
}

/// Writes all that may change.
pub(crate) async fn update(transaction: &mut Transaction, realm: &Realm) -> Result<(), StoreError> {
    let update = query(
        "UPDATE realms SET settings = $2, status = $3, updated_at = $4, session_retention_days = $5, \
         revocation_retention_days = $6, audit_retention_days = $7 WHERE name = $1",
    )
    .bind(&realm.name)
    .bind(settings(realm)?)
    .bind(realm.status.as_str())
    .bind(realm.updated_at);
    with_retentions(update, &realm.settings).execute(transaction).await?;
    versions::bump(transaction, Topic::Realms).await
}

/// Binds [`APART`], in their order.
fn with_retentions<'q>(query: Query<'q>, settings: &RealmSettings) -> Query<'q> {
    query
        .bind(settings.session_retention_days)
        .bind(settings.revocation_retention_days)
        .bind(settings.audit_retention_days)
}

pub(crate) async fn get(store: &Store, name: &str) -> Result<Option<Realm>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {REALM} FROM realms WHERE name = $1")))
        .bind(name)
        .fetch_optional(store)
        .await?
        .map(|row| realm_from(&row))
        .transpose()
}

/// The realm, locked until the transaction ends.
pub(crate) async fn locked(transaction: &mut Transaction, name: &str) -> Result<Option<Realm>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {REALM} FROM realms WHERE name = $1")))
        .bind(name)
        .for_update()
        .fetch_optional(transaction)
        .await?
        .map(|row| realm_from(&row))
        .transpose()
}

/// Realms by name, after `after`, at most `limit`.
pub(crate) async fn list(store: &Store, after: &str, limit: u32) -> Result<Vec<Realm>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {REALM} FROM realms WHERE name > $1 ORDER BY name LIMIT $2")))
        .bind(after)
        .bind(limit)
        .fetch_all(store)
        .await?
        .iter()
        .map(realm_from)
        .collect()
}

/// Realms that say themselves for how many days audit events are kept; 0: for ever.
pub(crate) async fn audit_retentions(store: &Store) -> Result<Vec<(String, u32)>, StoreError> {
    query("SELECT name, audit_retention_days FROM realms WHERE audit_retention_days IS NOT NULL")
        .fetch_all(store)
        .await?
        .iter()
        .map(|row| Ok((row.get("name")?, days(APART[2], row.get(APART[2])?)?)))
        .collect()
}

/// All but what has a column of its own: a program that does not know that reads the rest.
fn settings(realm: &Realm) -> Result<String, StoreError> {
    let mut settings = serde_json::to_value(&realm.settings).map_err(|error| corrupt("realm", error))?;
    for name in APART {
        settings.as_object_mut().and_then(|members| members.remove(name));
    }
    Ok(settings.to_string())
}

fn days(name: &'static str, days: i64) -> Result<u32, StoreError> {
    u32::try_from(days).map_err(|error| corrupt(name, error))
}

fn realm_from(row: &Row) -> Result<Realm, StoreError> {
    let (settings, status): (String, String) = (row.get("settings")?, row.get("status")?);
    let own_days = |name| row.get::<Option<i64>>(name)?.map(|kept| days(name, kept)).transpose();
    let settings: RealmSettings = serde_json::from_str(&settings).map_err(|error| corrupt("realm", error))?;
    Ok(Realm {
        name: row.get("name")?,
        settings: RealmSettings {
            session_retention_days: own_days(APART[0])?,
            revocation_retention_days: own_days(APART[1])?,
            audit_retention_days: own_days(APART[2])?,
            ..settings
        },
        status: RealmStatus::parse(&status).ok_or_else(|| corrupt("realm's status", status))?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}
