//! The feed's head and its stored change sets.

use atm_core::time::UnixMillis;
use atm_proto::change::{Change, ChangeSet, Digest, Epoch};
use atm_proto::wire::Signed;
use prost::Message;

use super::query::Reader;
use super::{Row, Store, StoreError, Transaction, corrupt, from_sql, query, to_sql};

/// How far the log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) epoch: Epoch,
    /// 0 for an empty log.
    pub(crate) revision: u64,
    pub(crate) digest: Digest,
}

/// One change set as stored and published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredChangeSet {
    pub(crate) epoch: Epoch,
    pub(crate) revision: u64,
    pub(crate) digest: Digest,
    /// The encoded `Signed` envelope.
    pub(crate) signed: Vec<u8>,
}

impl StoredChangeSet {
    /// What it changes. For what this store signed itself: the signature is not verified again.
    pub(crate) fn changes(&self) -> Result<Vec<Change>, StoreError> {
        let envelope = Signed::decode(&self.signed[..]).map_err(|error| corrupt("change set", error))?;
        let set = ChangeSet::decode(&envelope.payload).map_err(|error| corrupt("change set", error))?;
        Ok(set.changes)
    }
}

const SELECT_HEAD: &str = "SELECT epoch, revision, digest FROM feed_head WHERE only_row = 1";

/// Starts the first epoch in a new store.
pub(crate) async fn ensure_head(store: &Store) -> Result<(), StoreError> {
    query(
        "INSERT INTO feed_head (only_row, epoch, revision, digest, issue_floor_ms) VALUES (1, $1, 0, $2, 0) \
         ON CONFLICT (only_row) DO NOTHING",
    )
    .bind(random_epoch()?.as_bytes())
    .bind(Digest::ZERO.as_bytes())
    .execute_alone(store)
    .await?;
    Ok(())
}

pub(crate) async fn head<'e>(from: impl Into<Reader<'e>>) -> Result<Head, StoreError> {
    head_from(&query(SELECT_HEAD).fetch_one(from).await?)
}

/// The head, whose lock makes a transaction the only one that appends.
pub(crate) async fn locked_head(transaction: &mut Transaction) -> Result<Head, StoreError> {
    head_from(&query(SELECT_HEAD).for_update().fetch_one(transaction).await?)
}

/// Appends `set` and moves the head to it.
pub(crate) async fn append(
    transaction: &mut Transaction,
    set: &StoredChangeSet,
    now: UnixMillis,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO change_sets (epoch, revision, digest, signed, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(set.epoch.as_bytes())
    .bind(to_sql(set.revision))
    .bind(set.digest.as_bytes())
    .bind(&set.signed)
    .bind(now.0)
    .execute(transaction)
    .await?;
    query("UPDATE feed_head SET revision = $1, digest = $2 WHERE only_row = 1")
        .bind(to_sql(set.revision))
        .bind(set.digest.as_bytes())
        .execute(transaction)
        .await?;
    Ok(())
}

/// Puts the head at the beginning of a new epoch: at revision 1, of which there is no change set, only a snapshot. Sets of
/// earlier epochs go: no reader may be sent them again.
pub(crate) async fn begin_epoch(transaction: &mut Transaction) -> Result<Head, StoreError> {
    let epoch = random_epoch()?;
    let head = Head { epoch, revision: 1, digest: Digest::of(epoch.as_bytes()) };
    query("UPDATE feed_head SET epoch = $1, revision = $2, digest = $3 WHERE only_row = 1")
        .bind(epoch.as_bytes())
        .bind(to_sql(head.revision))
        .bind(head.digest.as_bytes())
        .execute(transaction)
        .await?;
    query("DELETE FROM change_sets WHERE epoch <> $1").bind(epoch.as_bytes()).execute(transaction).await?;
    Ok(head)
}

/// Whether the store was restored from a backup, and its log has not begun anew yet.
pub(crate) async fn is_restored(store: &Store) -> Result<bool, StoreError> {
    Ok(query("SELECT restored_at FROM feed_restored").fetch_optional(store).await?.is_some())
}

pub(crate) async fn forget_restored(transaction: &mut Transaction) -> Result<(), StoreError> {
    query("DELETE FROM feed_restored").execute(transaction).await.map(drop)
}

/// Consecutive sets from `from` on, at most `limit`.
pub(crate) async fn sets_from(
    store: &Store,
    epoch: Epoch,
    from: u64,
    limit: u32,
) -> Result<Vec<StoredChangeSet>, StoreError> {
    query(
        "SELECT epoch, revision, digest, signed FROM change_sets WHERE epoch = $1 AND revision >= $2 \
         ORDER BY revision LIMIT $3",
    )
    .bind(epoch.as_bytes())
    .bind(to_sql(from))
    .bind(i64::from(limit))
    .fetch_all(store)
    .await?
    .iter()
    .map(|row| {
        Ok(StoredChangeSet {
            epoch: Epoch::from_bytes(array(row, "epoch")?),
            revision: from_sql("revision", row.get("revision")?)?,
            digest: Digest::from_bytes(array(row, "digest")?),
            signed: row.get("signed")?,
        })
    })
    .collect()
}

/// The oldest set of the epoch that is kept; none for an empty log.
pub(crate) async fn oldest(store: &Store, epoch: Epoch) -> Result<Option<u64>, StoreError> {
    let row = query("SELECT MIN(revision) AS oldest FROM change_sets WHERE epoch = $1")
        .bind(epoch.as_bytes())
        .fetch_one(store)
        .await?;
    let oldest: Option<i64> = row.get("oldest")?;
    oldest.map(|revision| from_sql("revision", revision)).transpose()
}

/// Forgets sets of the epoch up to `revision` that are older than `before`, at most `limit` and the oldest first. Returns
/// how many went.
pub(crate) async fn prune(
    store: &Store,
    epoch: Epoch,
    revision: u64,
    before: UnixMillis,
    limit: u32,
) -> Result<u64, StoreError> {
    // Contiguous from the oldest on, whatever clocks wrote as their times.
    query(
        "DELETE FROM change_sets WHERE epoch = $1 AND revision IN \
         (SELECT revision FROM change_sets WHERE epoch = $1 AND revision <= $2 AND revision < COALESCE( \
         (SELECT MIN(revision) FROM change_sets WHERE epoch = $1 AND created_at >= $3), $2 + 1) \
         ORDER BY revision LIMIT $4)",
    )
    .bind(epoch.as_bytes())
    .bind(to_sql(revision))
    .bind(before.0)
    .bind(limit)
    .execute_alone(store)
    .await
}

/// How many bytes of sets there are after `revision`.
pub(crate) async fn bytes_after(store: &Store, epoch: Epoch, revision: u64) -> Result<u64, StoreError> {
    let row = query(
        "SELECT CAST(COALESCE(SUM(LENGTH(signed)), 0) AS BIGINT) AS bytes FROM change_sets \
         WHERE epoch = $1 AND revision > $2",
    )
    .bind(epoch.as_bytes())
    .bind(to_sql(revision))
    .fetch_one(store)
    .await?;
    from_sql("bytes", row.get("bytes")?)
}

fn head_from(row: &Row) -> Result<Head, StoreError> {
    Ok(Head {
        epoch: Epoch::from_bytes(array(row, "epoch")?),
        revision: from_sql("revision", row.get("revision")?)?,
        digest: Digest::from_bytes(array(row, "digest")?),
    })
}

fn array<const N: usize>(row: &Row, column: &'static str) -> Result<[u8; N], StoreError> {
    let bytes: Vec<u8> = row.get(column)?;
    bytes.try_into().map_err(|_| corrupt(column, format!("is not of {N} bytes")))
}

fn random_epoch() -> Result<Epoch, StoreError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(crate::secret::SecretError::from)?;
    Ok(Epoch::from_bytes(bytes))
}
