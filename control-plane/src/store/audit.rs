//! The audit chains: segments of events, signed checkpoints, and how far each chain has come.

use atm_core::time::UnixMillis;
use atm_proto::audit::Link;

use super::{Row, Store, StoreError, Transaction, corrupt, from_sql, query, to_sql};

/// The events of one group commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredSegment {
    pub(crate) chain: String,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) first_ms: i64,
    pub(crate) last_ms: i64,
    /// Before the first event.
    pub(crate) previous: Link,
    /// Of the last event.
    pub(crate) link: Link,
    /// Sorted 4-byte hashes, big-endian.
    pub(crate) references: Vec<u8>,
    /// JSON, a line each.
    pub(crate) events: Vec<u8>,
}

/// A chain, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredChain {
    pub(crate) chain: String,
    pub(crate) instance: String,
    pub(crate) opened_at: UnixMillis,
    pub(crate) closed_at: Option<UnixMillis>,
    pub(crate) alive_at: UnixMillis,
    /// Up to here the stream has it.
    pub(crate) streamed: u64,
    /// Of its events that are kept; none where retention took all, or before the first one.
    pub(crate) last: Option<u64>,
}

/// A signed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredCheckpoint {
    pub(crate) chain: String,
    pub(crate) sequence: u64,
    pub(crate) link: Link,
    /// Stands for what retention removed.
    pub(crate) is_bridge: bool,
    pub(crate) signed: Vec<u8>,
}

const SEGMENT: &str = "chain, first_seq, last_seq, first_ms, last_ms, previous, link, refs, events";

/// A place in the list of segments, newest first: (last instant, chain, first event).
pub(crate) type SegmentPlace = (i64, String, u64);

pub(crate) async fn open_chain(
    transaction: &mut Transaction,
    chain: &str,
    instance: &str,
    now: UnixMillis,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO audit_chains (chain, instance, opened_at, alive_at, streamed) VALUES ($1, $2, $3, $3, 0)",
    )
    .bind(chain)
    .bind(instance)
    .bind(now.0)
    .execute(transaction)
    .await?;
    Ok(())
}

pub(crate) async fn append(transaction: &mut Transaction, segment: &StoredSegment) -> Result<(), StoreError> {
    query(
        "INSERT INTO audit_segments (chain, first_seq, last_seq, first_ms, last_ms, previous, link, refs, events) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&segment.chain)
    .bind(to_sql(segment.first))
    .bind(to_sql(segment.last))
    .bind(segment.first_ms)
    .bind(segment.last_ms)
    .bind(segment.previous.as_bytes())
    .bind(segment.link.as_bytes())
    .bind(&segment.references)
    .bind(&segment.events)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The process lives; with `closed`, it has written its last event.
pub(crate) async fn touch_chain(
    transaction: &mut Transaction,
    chain: &str,
    now: UnixMillis,
    closed: bool,
) -> Result<(), StoreError> {
    query("UPDATE audit_chains SET alive_at = $2, closed_at = $3 WHERE chain = $1")
        .bind(chain)
        .bind(now.0)
        .bind(closed.then_some(now.0))
        .execute(transaction)
        .await?;
    Ok(())
}

/// Notes that the stream has the chain up to `sequence`.
pub(crate) async fn streamed(store: &Store, chain: &str, sequence: u64) -> Result<(), StoreError> {
    query("UPDATE audit_chains SET streamed = $2 WHERE chain = $1 AND streamed < $2")
        .bind(chain)
        .bind(to_sql(sequence))
        .execute_alone(store)
        .await?;
    Ok(())
}

/// All chains, the oldest first.
pub(crate) async fn chains(store: &Store) -> Result<Vec<StoredChain>, StoreError> {
    query(
        "SELECT chain, instance, opened_at, closed_at, alive_at, streamed, \
         (SELECT MAX(last_seq) FROM audit_segments s WHERE s.chain = c.chain) AS last_seq \
         FROM audit_chains c ORDER BY opened_at, chain",
    )
    .fetch_all(store)
    .await?
    .iter()
    .map(|row| {
        Ok(StoredChain {
            chain: row.get("chain")?,
            instance: row.get("instance")?,
            opened_at: UnixMillis(row.get("opened_at")?),
            closed_at: row.get::<Option<i64>>("closed_at")?.map(UnixMillis),
            alive_at: UnixMillis(row.get("alive_at")?),
            streamed: from_sql("streamed", row.get("streamed")?)?,
            last: row.get::<Option<i64>>("last_seq")?.map(|last| from_sql("last_seq", last)).transpose()?,
        })
    })
    .collect()
}

/// Segments of `chain` that hold event `from` or a later one, in order.
pub(crate) async fn segments_from(
    store: &Store,
    chain: &str,
    from: u64,
    limit: u32,
) -> Result<Vec<StoredSegment>, StoreError> {
    query(sqlx::AssertSqlSafe(format!(
        "SELECT {SEGMENT} FROM audit_segments WHERE chain = $1 AND last_seq >= $2 ORDER BY first_seq LIMIT $3"
    )))
    .bind(chain)
    .bind(to_sql(from))
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(segment_from)
    .collect()
}

/// Segments with an event at or after `since`, the newest first, behind `before`.
pub(crate) async fn newest_segments(
    store: &Store,
    since: i64,
    before: Option<&SegmentPlace>,
    limit: u32,
) -> Result<Vec<StoredSegment>, StoreError> {
    let (last_ms, chain, first) =
        before.map_or((i64::MAX, "", 0), |(ms, chain, first)| (*ms, chain.as_str(), *first));
    query(sqlx::AssertSqlSafe(format!(
        "SELECT {SEGMENT} FROM audit_segments WHERE last_ms >= $1 AND (last_ms, chain, first_seq) < ($2, $3, $4) \
         ORDER BY last_ms DESC, chain DESC, first_seq DESC LIMIT $5"
    )))
    .bind(since)
    .bind(last_ms)
    .bind(chain)
    .bind(to_sql(first))
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(segment_from)
    .collect()
}

/// As [`newest_segments`], without the events: places and what they refer to.
pub(crate) async fn newest_references(
    store: &Store,
    since: i64,
    before: Option<&SegmentPlace>,
    limit: u32,
) -> Result<Vec<(SegmentPlace, Vec<u8>)>, StoreError> {
    let (last_ms, chain, first) =
        before.map_or((i64::MAX, "", 0), |(ms, chain, first)| (*ms, chain.as_str(), *first));
    query(
        "SELECT last_ms, chain, first_seq, refs FROM audit_segments \
         WHERE last_ms >= $1 AND (last_ms, chain, first_seq) < ($2, $3, $4) \
         ORDER BY last_ms DESC, chain DESC, first_seq DESC LIMIT $5",
    )
    .bind(since)
    .bind(last_ms)
    .bind(chain)
    .bind(to_sql(first))
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(|row| {
        let place = (row.get("last_ms")?, row.get("chain")?, from_sql("first_seq", row.get("first_seq")?)?);
        Ok((place, row.get("refs")?))
    })
    .collect()
}

pub(crate) async fn add_checkpoint(
    transaction: &mut Transaction,
    checkpoint: &StoredCheckpoint,
    now: UnixMillis,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO audit_checkpoints (chain, seq, link, bridge, signed, created_at) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (chain, seq, bridge) DO NOTHING",
    )
    .bind(&checkpoint.chain)
    .bind(to_sql(checkpoint.sequence))
    .bind(checkpoint.link.as_bytes())
    .bind(i64::from(checkpoint.is_bridge))
    .bind(&checkpoint.signed)
    .bind(now.0)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Checkpoints of `chain` from event `from` on, in order; a bridge comes before the others of its event.
pub(crate) async fn checkpoints_from(
    store: &Store,
    chain: &str,
    from: u64,
    limit: u32,
) -> Result<Vec<StoredCheckpoint>, StoreError> {
    query(
        "SELECT chain, seq, link, bridge, signed FROM audit_checkpoints WHERE chain = $1 AND seq >= $2 \
         ORDER BY seq, bridge DESC LIMIT $3",
    )
    .bind(chain)
    .bind(to_sql(from))
    .bind(limit)
    .fetch_all(store)
    .await?
    .iter()
    .map(checkpoint_from)
    .collect()
}

/// The newest checkpoint of each chain but `except`, of at most `limit` chains: those that lived last.
pub(crate) async fn newest_checkpoints(
    transaction: &mut Transaction,
    except: &str,
    limit: u32,
) -> Result<Vec<StoredCheckpoint>, StoreError> {
    query(
        "SELECT c.chain, c.seq, c.link, c.bridge, c.signed FROM audit_chains k JOIN audit_checkpoints c \
         ON c.chain = k.chain AND c.seq = (SELECT MAX(n.seq) FROM audit_checkpoints n WHERE n.chain = k.chain) \
         WHERE k.chain <> $1 ORDER BY k.alive_at DESC, c.chain, c.bridge LIMIT $2",
    )
    .bind(except)
    .bind(limit)
    .fetch_all(&mut *transaction)
    .await?
    .iter()
    .map(checkpoint_from)
    .collect()
}

/// The oldest segments of `chain`: the last event of each, its instant, and its link. What retention looks at next.
pub(crate) async fn oldest(
    transaction: &mut Transaction,
    chain: &str,
    limit: u32,
) -> Result<Vec<(u64, i64, Link)>, StoreError> {
    query("SELECT last_seq, last_ms, link FROM audit_segments WHERE chain = $1 ORDER BY first_seq LIMIT $2")
        .bind(chain)
        .bind(limit)
        .fetch_all(transaction)
        .await?
        .iter()
        .map(|row| Ok((from_sql("last_seq", row.get("last_seq")?)?, row.get("last_ms")?, link(row, "link")?)))
        .collect()
}

/// The events of the segment of `chain` that ends with event `last`: JSON, a line each.
pub(crate) async fn events_until(
    transaction: &mut Transaction,
    chain: &str,
    last: u64,
) -> Result<Vec<u8>, StoreError> {
    // By the primary key: the segment that ends there is the last one that begins before.
    query(
        "SELECT events FROM audit_segments WHERE chain = $1 AND first_seq <= $2 ORDER BY first_seq DESC LIMIT 1",
    )
    .bind(chain)
    .bind(to_sql(last))
    .fetch_one(transaction)
    .await?
    .get("events")
}

/// Removes the events of `chain` up to `sequence`, with the checkpoints that vouched for them and older bridges.
pub(crate) async fn remove_until(
    transaction: &mut Transaction,
    chain: &str,
    sequence: u64,
) -> Result<(), StoreError> {
    query("DELETE FROM audit_segments WHERE chain = $1 AND last_seq <= $2")
        .bind(chain)
        .bind(to_sql(sequence))
        .execute(&mut *transaction)
        .await?;
    query("DELETE FROM audit_checkpoints WHERE chain = $1 AND (seq < $2 OR (seq = $2 AND bridge = 0))")
        .bind(chain)
        .bind(to_sql(sequence))
        .execute(transaction)
        .await?;
    Ok(())
}

fn segment_from(row: &Row) -> Result<StoredSegment, StoreError> {
    Ok(StoredSegment {
        chain: row.get("chain")?,
        first: from_sql("first_seq", row.get("first_seq")?)?,
        last: from_sql("last_seq", row.get("last_seq")?)?,
        first_ms: row.get("first_ms")?,
        last_ms: row.get("last_ms")?,
        previous: link(row, "previous")?,
        link: link(row, "link")?,
        references: row.get("refs")?,
        events: row.get("events")?,
    })
}

fn checkpoint_from(row: &Row) -> Result<StoredCheckpoint, StoreError> {
    Ok(StoredCheckpoint {
        chain: row.get("chain")?,
        sequence: from_sql("seq", row.get("seq")?)?,
        link: link(row, "link")?,
        is_bridge: row.get::<i64>("bridge")? != 0,
        signed: row.get("signed")?,
    })
}

fn link(row: &Row, column: &'static str) -> Result<Link, StoreError> {
    let bytes: Vec<u8> = row.get(column)?;
    Ok(Link::from_bytes(bytes.try_into().map_err(|_| corrupt(column, "is not of 32 bytes"))?))
}
