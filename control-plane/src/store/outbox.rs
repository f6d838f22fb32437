//! Committed changes on their way into the log.

use atm_core::time::UnixMillis;
use atm_proto::change::{Change, ChangeSet, Digest, Epoch};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::{Store, StoreError, Transaction, corrupt, from_sql, to_sql};
use crate::secret;

/// Names one enqueued change, to learn the revision that it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket(String);

/// A change that has no revision yet.
#[derive(Debug)]
pub(crate) struct Unsequenced {
    pub(crate) id: String,
    pub(crate) change: Change,
    /// Bytes that it takes in a change set, within a few.
    pub(crate) size: usize,
}

/// Adds `change` to the transaction that makes it true.
pub(crate) async fn enqueue(
    transaction: &mut Transaction,
    change: &Change,
    now: UnixMillis,
) -> Result<Ticket, StoreError> {
    let id = secret::random_id()?;
    // The write lock orders positions as commits; a serial number would not (rows of a slow transaction come late).
    sqlx::query(
        "INSERT INTO outbox (id, position, change, created_at) \
         SELECT $1, COALESCE(MAX(position), 0) + 1, $2, $3 FROM outbox WHERE revision IS NULL",
    )
    .bind(&id)
    .bind(encode(change))
    .bind(now.0)
    .execute(&mut **transaction)
    .await?;
    Ok(Ticket(id))
}

/// Adds all of `changes`, in order. The ticket is the last one's: once it is sequenced, all are.
pub(crate) async fn enqueue_all(
    transaction: &mut Transaction,
    changes: &[Change],
    now: UnixMillis,
) -> Result<Ticket, StoreError> {
    let mut last = Err(corrupt("call", "has no changes"));
    for change in changes {
        last = Ok(enqueue(transaction, change, now).await?);
    }
    last
}

/// The oldest unsequenced changes, at most `limit` rows.
pub(crate) async fn unsequenced(
    transaction: &mut Transaction,
    limit: u32,
) -> Result<Vec<Unsequenced>, StoreError> {
    sqlx::query("SELECT id, change FROM outbox WHERE revision IS NULL ORDER BY position LIMIT $1")
        .bind(i64::from(limit))
        .fetch_all(&mut **transaction)
        .await?
        .iter()
        .map(|row| {
            let bytes: Vec<u8> = row.try_get("change")?;
            Ok(Unsequenced { id: row.try_get("id")?, size: bytes.len(), change: decode(&bytes)? })
        })
        .collect()
}

/// Notes that the changes `ids` are in the set `revision`, and lets go of their bytes.
pub(crate) async fn mark_sequenced(
    transaction: &mut Transaction,
    ids: &[String],
    epoch: Epoch,
    revision: u64,
) -> Result<(), StoreError> {
    for chunk in ids.chunks(500) {
        let mut query = QueryBuilder::<Sqlite>::new("UPDATE outbox SET revision = ");
        query.push_bind(to_sql(revision)).push(", epoch = ").push_bind(epoch.as_bytes().to_vec());
        query.push(", change = ").push_bind(Vec::<u8>::new()).push(" WHERE id IN (");
        let mut list = query.separated(", ");
        for id in chunk {
            list.push_bind(id);
        }
        query.push(")").build().execute(&mut **transaction).await?;
    }
    Ok(())
}

/// The revision that the change got; none while it is unsequenced.
pub(crate) async fn revision_of(store: &Store, ticket: &Ticket) -> Result<Option<u64>, StoreError> {
    let revision: Option<i64> = sqlx::query_scalar("SELECT revision FROM outbox WHERE id = $1")
        .bind(&ticket.0)
        .fetch_one(store.readers())
        .await?;
    revision.map(|revision| from_sql("revision", revision)).transpose()
}

/// Forgets sequenced rows from before `before`, at most `limit`. Returns how many went.
pub(crate) async fn purge(store: &Store, before: UnixMillis, limit: u32) -> Result<u64, StoreError> {
    let mut transaction = store.begin().await?;
    let done = sqlx::query(
        "DELETE FROM outbox WHERE id IN \
         (SELECT id FROM outbox WHERE revision IS NOT NULL AND created_at < $1 LIMIT $2)",
    )
    .bind(before.0)
    .bind(i64::from(limit))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(done.rows_affected())
}

/// A row holds a change set of one change: the wire contract is the only encoding there is.
fn encode(change: &Change) -> Vec<u8> {
    ChangeSet {
        realm_group: String::new(),
        epoch: Epoch::from_bytes([0; 16]),
        revision: 1,
        previous_digest: Digest::ZERO,
        time: UnixMillis(0),
        changes: vec![change.clone()],
    }
    .encode()
}

fn decode(bytes: &[u8]) -> Result<Change, StoreError> {
    let set = ChangeSet::decode(bytes).map_err(|error| corrupt("change", error))?;
    let [change] =
        <[Change; 1]>::try_from(set.changes).map_err(|_| corrupt("change", "is not exactly one"))?;
    Ok(change)
}
