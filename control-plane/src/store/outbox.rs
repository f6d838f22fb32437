//! Committed changes on their way into the log.

use std::collections::HashSet;

use atm_core::time::UnixMillis;
use atm_proto::change::{Change, ChangeSet, Digest, Epoch};

use super::{Row, Store, StoreError, Transaction, corrupt, from_sql, query, to_sql};
use crate::secret;

/// Rows of one statement; a row can have 400 KB.
const ROWS_A_STATEMENT: usize = 64;
/// Rows that are read without asking first how large they are: as a rule there are fewer.
const UNMEASURED: u32 = 32;
/// The position of changes whose order does not matter.
const COMMUTING: i64 = 0;

/// Names one enqueued change, to learn the revision that it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket(String);

impl Ticket {
    /// As it is kept with what it is a ticket for.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn from_text(text: String) -> Self {
        Self(text)
    }
}

/// A change that has no revision yet.
#[derive(Debug)]
pub(crate) struct Unsequenced {
    pub(crate) id: String,
    pub(crate) change: Change,
    /// Bytes that it takes in a change set, within a few.
    pub(crate) size: usize,
}

/// What waits for its revision.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// As much as one transaction takes.
    pub(crate) rows: Vec<Unsequenced>,
    /// Whether there may be more.
    pub(crate) more: bool,
}

/// Adds `change` to the transaction that makes it true.
pub(crate) async fn enqueue(
    transaction: &mut Transaction,
    change: &Change,
    now: UnixMillis,
) -> Result<Ticket, StoreError> {
    enqueue_all(transaction, std::slice::from_ref(change), now).await
}

/// Adds all of `changes`, in order. The ticket is the last one's: once it is sequenced, all are.
pub(crate) async fn enqueue_all(
    transaction: &mut Transaction,
    changes: &[Change],
    now: UnixMillis,
) -> Result<Ticket, StoreError> {
    let mut last = None;
    for chunk in changes.chunks(ROWS_A_STATEMENT) {
        let mut rows = Vec::with_capacity(chunk.len());
        for change in chunk {
            let position = if commutes(change) { COMMUTING } else { next_position(transaction).await? };
            rows.push((secret::random_id()?, position, encode(change)));
        }
        let values = rows
            .iter()
            .map(|(id, position, change)| [id.into(), (*position).into(), change.into(), now.0.into()]);
        query::insert("INSERT INTO outbox (id, position, change, created_at)", values, "")
            .execute(transaction)
            .await?;
        last = rows.pop().map(|(id, ..)| Ticket(id));
    }
    last.ok_or_else(|| corrupt("call", "has no changes"))
}

/// Whether it is the same in which order `change` and others come. All others are numbered.
fn commutes(change: &Change) -> bool {
    matches!(change, Change::RevokedTokens { .. } | Change::Watermarks { .. })
}

/// The next number, with its row's lock: whoever comes later gets a later one, and commits later. A number that is drawn
/// without a lock could become visible after a higher one.
async fn next_position(transaction: &mut Transaction) -> Result<i64, StoreError> {
    query("UPDATE outbox_positions SET position = position + 1 WHERE only_row = 1 RETURNING position")
        .fetch_one(transaction)
        .await?
        .get("position")
}

/// Unsequenced changes, the numbered ones first and in order, at most `limit` rows of about `bytes`. Under the head's lock
/// that is all of what is committed: there is no cursor that a row which commits late could fall behind.
pub(crate) async fn unsequenced(
    transaction: &mut Transaction,
    limit: u32,
    bytes: usize,
) -> Result<Waiting, StoreError> {
    const NUMBERED: &str = "SELECT id, change FROM outbox WHERE revision IS NULL AND position > 0 \
                            ORDER BY position LIMIT $1";
    const OTHERS: &str = "SELECT id, change FROM outbox WHERE revision IS NULL AND position = 0 \
                          ORDER BY created_at LIMIT $1";
    let first = UNMEASURED.min(limit);
    let numbered = query(NUMBERED).bind(first).fetch_all(&mut *transaction).await?;
    let rest = limit - u32::try_from(numbered.len()).unwrap_or(limit).min(limit);
    let mut more = numbered.len() == first as usize;
    let mut rows = numbered.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if rest == 0 {
        return Ok(Waiting { rows, more });
    }
    let first = UNMEASURED.min(rest);
    let others = query(OTHERS).bind(first).fetch_all(&mut *transaction).await?;
    let full = others.len() == first as usize;
    rows.extend(others.iter().map(read).collect::<Result<Vec<_>, _>>()?);
    if full {
        more |= extend(transaction, &mut rows, rest, bytes).await?;
    }
    Ok(Waiting { rows, more })
}

/// Adds further rows whose order does not matter, until there are `limit` of these or all rows have `bytes`. Whether there may be
/// more.
async fn extend(
    transaction: &mut Transaction,
    rows: &mut Vec<Unsequenced>,
    limit: u32,
    bytes: usize,
) -> Result<bool, StoreError> {
    const SIZES: &str = "SELECT id, CAST(LENGTH(change) AS BIGINT) AS size FROM outbox \
                         WHERE revision IS NULL AND position = 0 ORDER BY created_at LIMIT $1";
    let sizes = query(SIZES).bind(limit).fetch_all(&mut *transaction).await?;
    let mut more = sizes.len() == limit as usize;
    let mut sum: usize = rows.iter().map(|row| row.size).sum();
    let mut wanted: Vec<String> = Vec::new();
    let known: HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    for row in &sizes {
        let id: String = row.get("id")?;
        if known.contains(id.as_str()) {
            continue;
        }
        sum += usize::try_from(row.get::<i64>("size")?).unwrap_or(usize::MAX);
        if sum > bytes {
            more = true;
            break;
        }
        wanted.push(id);
    }
    for chunk in wanted.chunks(500) {
        let text =
            format!("SELECT id, change FROM outbox WHERE id IN {}", query::placeholders(1, chunk.len()));
        let mut select = query(sqlx::AssertSqlSafe(text));
        for id in chunk {
            select = select.bind(id);
        }
        let found = select.fetch_all(&mut *transaction).await?;
        rows.extend(found.iter().map(read).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(more)
}

fn read(row: &Row) -> Result<Unsequenced, StoreError> {
    let bytes: Vec<u8> = row.get("change")?;
    Ok(Unsequenced { id: row.get("id")?, size: bytes.len(), change: decode(&bytes)? })
}

/// Notes that the changes `ids` are in the set `revision`, and lets go of their bytes.
pub(crate) async fn mark_sequenced(
    transaction: &mut Transaction,
    ids: &[String],
    epoch: Epoch,
    revision: u64,
) -> Result<(), StoreError> {
    for chunk in ids.chunks(500) {
        let sql = format!(
            "UPDATE outbox SET revision = $1, epoch = $2, change = $3 WHERE id IN {}",
            query::placeholders(4, chunk.len())
        );
        let mut update = query(sqlx::AssertSqlSafe(sql))
            .bind(to_sql(revision))
            .bind(epoch.as_bytes())
            .bind(Vec::<u8>::new());
        for id in chunk {
            update = update.bind(id);
        }
        update.execute(transaction).await?;
    }
    Ok(())
}

/// The revision that the change got; none while it is unsequenced.
pub(crate) async fn revision_of(store: &Store, ticket: &Ticket) -> Result<Option<u64>, StoreError> {
    let row = query("SELECT revision FROM outbox WHERE id = $1").bind(&ticket.0).fetch_one(store).await?;
    let revision: Option<i64> = row.get("revision")?;
    revision.map(|revision| from_sql("revision", revision)).transpose()
}

/// The head's revision, if it covers every numbered change that is committed by now; none while one of them waits.
pub(crate) async fn settled_revision(store: &Store) -> Result<Option<u64>, StoreError> {
    query(
        "SELECT revision FROM feed_head WHERE only_row = 1 AND NOT EXISTS \
         (SELECT 1 FROM outbox WHERE revision IS NULL AND position > 0)",
    )
    .fetch_optional(store)
    .await?
    .map(|row| from_sql("revision", row.get("revision")?))
    .transpose()
}

/// Forgets sequenced rows from before `before`, at most `limit`. Returns how many went.
pub(crate) async fn purge(store: &Store, before: UnixMillis, limit: u32) -> Result<u64, StoreError> {
    query(
        "DELETE FROM outbox WHERE id IN \
         (SELECT id FROM outbox WHERE revision IS NOT NULL AND created_at < $1 LIMIT $2)",
    )
    .bind(before.0)
    .bind(limit)
    .execute_alone(store)
    .await
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
