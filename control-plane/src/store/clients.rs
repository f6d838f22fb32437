//! Clients and the hashes of their secrets.

use std::borrow::Cow;

use super::versions::{self, Topic};
use super::{Row, Store, StoreError, Transaction, corrupt, query, transact};
use crate::realms::DEFAULT_REALM;
use crate::registry::{Client, ClientConfiguration, ClientStatus, SecretHashes};

/// What a client is found by: its id alone is unique within its realm only. Those of the default realm have plain keys, as rows
/// from before there were realms do.
pub(crate) fn key<'a>(realm: &str, client_id: &'a str) -> Cow<'a, str> {
    if realm == DEFAULT_REALM { Cow::Borrowed(client_id) } else { format!("{realm}/{client_id}").into() }
}

pub(crate) async fn insert(
    transaction: &mut Transaction,
    realm: &str,
    client: &Client,
    hashes: &SecretHashes,
) -> Result<(), StoreError> {
    let configuration = &client.configuration;
    query(
        "INSERT INTO clients (client_id, realm, configuration, secret_hash, status, created_at, updated_at, \
         name, scopes, audiences, access_token_lifetime_s) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(key(realm, &client.client_id).into_owned())
    .bind(realm)
    .bind(json(configuration)?)
    .bind(hashes.current.clone().unwrap_or_default())
    .bind(client.status.as_str())
    .bind(client.created_at)
    .bind(client.updated_at)
    // For a version that knows these alone.
    .bind(&configuration.name)
    .bind(to_json(&configuration.scopes))
    .bind(to_json(&configuration.audiences))
    .bind(configuration.access_token_lifetime_seconds)
    .execute(transaction)
    .await?;
    versions::bump(transaction, Topic::Clients).await
}

/// The client and the hashes of its secrets.
pub(crate) async fn get(
    store: &Store,
    realm: &str,
    client_id: &str,
) -> Result<Option<(Client, SecretHashes)>, StoreError> {
    // No id has a slash, and one that a caller made up must not reach into another realm.
    if client_id.contains('/') {
        return Ok(None);
    }
    query(
        "SELECT client_id, configuration, secret_hash, previous_secret_hash, previous_secret_expires_at, status, \
         created_at, updated_at, name, scopes, audiences, access_token_lifetime_s FROM clients WHERE client_id = $1",
    )
    .bind(key(realm, client_id).into_owned())
    .fetch_optional(store)
    .await?
    .map(|row| client_from(&row))
    .transpose()
}

/// Clients by id, after `after`, at most `limit`.
pub(crate) async fn list(
    store: &Store,
    realm: &str,
    after: &str,
    limit: u32,
) -> Result<Vec<Client>, StoreError> {
    query(
        "SELECT client_id, configuration, secret_hash, previous_secret_hash, previous_secret_expires_at, status, \
         created_at, updated_at, name, scopes, audiences, access_token_lifetime_s FROM clients \
         WHERE realm = $1 AND client_id > $2 ORDER BY client_id LIMIT $3",
    )
    .bind(realm)
    .bind(key(realm, after).into_owned())
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(|row| Ok(client_from(row)?.0))
    .collect()
}

/// Clients of all realms, those whose keys are after `after`, at most `limit`; each with its key.
pub(crate) async fn of_all_realms(
    store: &Store,
    after: &str,
    limit: u32,
) -> Result<Vec<(String, Client)>, StoreError> {
    query(
        "SELECT client_id, configuration, secret_hash, previous_secret_hash, previous_secret_expires_at, status, \
         created_at, updated_at, name, scopes, audiences, access_token_lifetime_s FROM clients \
         WHERE client_id > $1 ORDER BY client_id LIMIT $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(|row| Ok((row.get("client_id")?, client_from(row)?.0)))
    .collect()
}

/// The client, locked until the transaction ends.
pub(crate) async fn locked(
    transaction: &mut Transaction,
    realm: &str,
    client_id: &str,
) -> Result<Option<(Client, SecretHashes)>, StoreError> {
    if client_id.contains('/') {
        return Ok(None);
    }
    query(
        "SELECT client_id, configuration, secret_hash, previous_secret_hash, previous_secret_expires_at, status, \
         created_at, updated_at, name, scopes, audiences, access_token_lifetime_s FROM clients WHERE client_id = $1",
    )
    .bind(key(realm, client_id).into_owned())
    .for_update()
    .fetch_optional(transaction)
    .await?
    .map(|row| client_from(&row))
    .transpose()
}

/// Writes all that may change.
pub(crate) async fn update(
    transaction: &mut Transaction,
    realm: &str,
    client: &Client,
    hashes: &SecretHashes,
) -> Result<(), StoreError> {
    let configuration = &client.configuration;
    query(
        "UPDATE clients SET configuration = $2, secret_hash = $3, previous_secret_hash = $4, \
         previous_secret_expires_at = $5, status = $6, updated_at = $7, name = $8, scopes = $9, audiences = $10, \
         access_token_lifetime_s = $11 WHERE client_id = $1",
    )
    .bind(key(realm, &client.client_id).into_owned())
    .bind(json(configuration)?)
    .bind(hashes.current.clone().unwrap_or_default())
    .bind(&hashes.previous)
    .bind(client.previous_secret_expires_at)
    .bind(client.status.as_str())
    .bind(client.updated_at)
    .bind(&configuration.name)
    .bind(to_json(&configuration.scopes))
    .bind(to_json(&configuration.audiences))
    .bind(configuration.access_token_lifetime_seconds)
    .execute(transaction)
    .await?;
    versions::bump(transaction, Topic::Clients).await
}

pub(crate) async fn delete(store: &Store, realm: &str, client_id: &str) -> Result<(), StoreError> {
    transact!(store, |transaction| -> Result<(), StoreError> {
        query("DELETE FROM clients WHERE client_id = $1")
            .bind(key(realm, client_id).into_owned())
            .execute(transaction)
            .await?;
        versions::bump(transaction, Topic::Clients).await
    })
}

fn client_from(row: &Row) -> Result<(Client, SecretHashes), StoreError> {
    let (key, status): (String, String) = (row.get("client_id")?, row.get("status")?);
    let configuration: Option<String> = row.get("configuration")?;
    let configuration = match configuration {
        Some(text) => serde_json::from_str(&text).map_err(|error| corrupt("client", error))?,
        None => legacy(row)?,
    };
    let current: Vec<u8> = row.get("secret_hash")?;
    let hashes = SecretHashes {
        current: (!current.is_empty()).then_some(current),
        previous: row.get("previous_secret_hash")?,
    };
    let client = Client {
        client_id: key.rsplit_once('/').map_or(key.as_str(), |(_, id)| id).to_owned(),
        configuration,
        status: ClientStatus::parse(&status).ok_or_else(|| corrupt("client status", status))?,
        previous_secret_expires_at: row.get("previous_secret_expires_at")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    };
    Ok((client, hashes))
}

/// A row that a version without the column `configuration` wrote.
fn legacy(row: &Row) -> Result<ClientConfiguration, StoreError> {
    let lifetime: Option<i64> = row.get("access_token_lifetime_s")?;
    Ok(ClientConfiguration {
        name: row.get("name")?,
        scopes: from_json("scopes", row)?,
        audiences: from_json("audiences", row)?,
        access_token_lifetime_seconds: lifetime
            .map(u32::try_from)
            .transpose()
            .map_err(|error| corrupt("access_token_lifetime_s", error))?,
        ..ClientConfiguration::default()
    })
}

fn json(configuration: &ClientConfiguration) -> Result<String, StoreError> {
    serde_json::to_string(configuration).map_err(|error| corrupt("client", error))
}

pub(super) fn to_json(list: &[String]) -> String {
    serde_json::Value::from(list).to_string()
}

pub(super) fn from_json(column: &'static str, row: &Row) -> Result<Vec<String>, StoreError> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| corrupt(column, error))
}
