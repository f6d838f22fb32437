//! Clients and the hashes of their secrets.

use super::{Row, Store, StoreError, Transaction, corrupt, query};
use crate::registry::{Client, ClientStatus};

pub(crate) async fn insert(
    transaction: &mut Transaction,
    client: &Client,
    secret_hash: &[u8; 32],
) -> Result<(), StoreError> {
    query(
        "INSERT INTO clients (client_id, name, secret_hash, scopes, audiences, access_token_lifetime_s, status, \
         created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&client.client_id)
    .bind(&client.name)
    .bind(&secret_hash[..])
    .bind(to_json(&client.scopes))
    .bind(to_json(&client.audiences))
    .bind(client.access_token_lifetime_seconds.map(i64::from))
    .bind(client.status.as_str())
    .bind(client.created_at)
    .bind(client.updated_at)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The client and the hash of its secret.
pub(crate) async fn get(store: &Store, client_id: &str) -> Result<Option<(Client, Vec<u8>)>, StoreError> {
    query(
        "SELECT client_id, name, secret_hash, scopes, audiences, access_token_lifetime_s, status, created_at, \
         updated_at FROM clients WHERE client_id = $1",
    )
    .bind(client_id)
    .fetch_optional(store)
    .await?
    .map(|row| Ok((client_from(&row)?, row.get("secret_hash")?)))
    .transpose()
}

/// Clients by id, after `after`, at most `limit`.
pub(crate) async fn list(store: &Store, after: &str, limit: u32) -> Result<Vec<Client>, StoreError> {
    query(
        "SELECT client_id, name, scopes, audiences, access_token_lifetime_s, status, created_at, updated_at \
         FROM clients WHERE client_id > $1 ORDER BY client_id LIMIT $2",
    )
    .bind(after)
    .bind(i64::from(limit))
    .fetch_all(store)
    .await?
    .iter()
    .map(client_from)
    .collect()
}

/// The client, locked until the transaction ends.
pub(crate) async fn locked(
    transaction: &mut Transaction,
    client_id: &str,
) -> Result<Option<Client>, StoreError> {
    query(
        "SELECT client_id, name, scopes, audiences, access_token_lifetime_s, status, created_at, updated_at \
         FROM clients WHERE client_id = $1",
    )
    .bind(client_id)
    .for_update()
    .fetch_optional(&mut *transaction)
    .await?
    .map(|row| client_from(&row))
    .transpose()
}

/// Writes all that may change.
pub(crate) async fn update(transaction: &mut Transaction, client: &Client) -> Result<(), StoreError> {
    query(
        "UPDATE clients SET name = $2, scopes = $3, audiences = $4, access_token_lifetime_s = $5, status = $6, \
         updated_at = $7 WHERE client_id = $1",
    )
    .bind(&client.client_id)
    .bind(&client.name)
    .bind(to_json(&client.scopes))
    .bind(to_json(&client.audiences))
    .bind(client.access_token_lifetime_seconds.map(i64::from))
    .bind(client.status.as_str())
    .bind(client.updated_at)
    .execute(transaction)
    .await?;
    Ok(())
}

pub(crate) async fn delete(store: &Store, client_id: &str) -> Result<(), StoreError> {
    query("DELETE FROM clients WHERE client_id = $1").bind(client_id).execute_alone(store).await?;
    Ok(())
}

fn client_from(row: &Row) -> Result<Client, StoreError> {
    let status: String = row.get("status")?;
    let lifetime: Option<i64> = row.get("access_token_lifetime_s")?;
    Ok(Client {
        client_id: row.get("client_id")?,
        name: row.get("name")?,
        scopes: from_json("scopes", row)?,
        audiences: from_json("audiences", row)?,
        access_token_lifetime_seconds: lifetime
            .map(u32::try_from)
            .transpose()
            .map_err(|error| corrupt("access_token_lifetime_s", error))?,
        status: ClientStatus::parse(&status).ok_or_else(|| corrupt("client status", status))?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

pub(super) fn to_json(list: &[String]) -> String {
    serde_json::Value::from(list).to_string()
}

pub(super) fn from_json(column: &'static str, row: &Row) -> Result<Vec<String>, StoreError> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| corrupt(column, error))
}
