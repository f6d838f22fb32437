//! The feed's head and its stored change sets.

use atm_core::time::UnixMillis;
use atm_proto::change::{Digest, Epoch};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError, Transaction, corrupt, from_sql, to_sql};

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

const SELECT_HEAD: &str = "SELECT epoch, revision, digest FROM feed_head WHERE only_row = 1";

/// Starts the first epoch in a new store.
pub(crate) async fn ensure_head(store: &Store) -> Result<(), StoreError> {
    let mut transaction = store.begin().await?;
    sqlx::query(
        "INSERT INTO feed_head (only_row, epoch, revision, digest, issue_floor_ms) VALUES (1, $1, 0, $2, 0) \
         ON CONFLICT (only_row) DO NOTHING",
    )
    .bind(random_epoch()?.as_bytes().to_vec())
    .bind(Digest::ZERO.as_bytes().to_vec())
    .execute(&mut *transaction)
    .await?;
    Ok(transaction.commit().await?)
}

pub(crate) async fn head(store: &Store) -> Result<Head, StoreError> {
    head_from(&sqlx::query(SELECT_HEAD).fetch_one(store.readers()).await?)
}

/// The head under the write lock.
pub(crate) async fn locked_head(transaction: &mut Transaction) -> Result<Head, StoreError> {
    head_from(&sqlx::query(SELECT_HEAD).fetch_one(&mut **transaction).await?)
}

/// Appends `set` and moves the head to it.
pub(crate) async fn append(
    transaction: &mut Transaction,
    set: &StoredChangeSet,
    now: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO change_sets (epoch, revision, digest, signed, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(set.epoch.as_bytes().to_vec())
    .bind(to_sql(set.revision))
    .bind(set.digest.as_bytes().to_vec())
    .bind(&set.signed)
    .bind(now.0)
    .execute(&mut **transaction)
    .await?;
    sqlx::query("UPDATE feed_head SET revision = $1, digest = $2 WHERE only_row = 1")
        .bind(to_sql(set.revision))
        .bind(set.digest.as_bytes().to_vec())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Puts the head at the beginning of a new epoch. Sets of earlier epochs go: no reader may be sent them again.
pub(crate) async fn begin_epoch(transaction: &mut Transaction) -> Result<Epoch, StoreError> {
    let epoch = random_epoch()?;
    sqlx::query("UPDATE feed_head SET epoch = $1, revision = 0, digest = $2 WHERE only_row = 1")
        .bind(epoch.as_bytes().to_vec())
        .bind(Digest::ZERO.as_bytes().to_vec())
        .execute(&mut **transaction)
        .await?;
    sqlx::query("DELETE FROM change_sets WHERE epoch <> $1")
        .bind(epoch.as_bytes().to_vec())
        .execute(&mut **transaction)
        .await?;
    Ok(epoch)
}

/// Consecutive sets from `from` on, at most `limit`.
pub(crate) async fn sets_from(
    store: &Store,
    epoch: Epoch,
    from: u64,
    limit: u32,
) -> Result<Vec<StoredChangeSet>, StoreError> {
    sqlx::query(
        "SELECT epoch, revision, digest, signed FROM change_sets WHERE epoch = $1 AND revision >= $2 \
         ORDER BY revision LIMIT $3",
    )
    .bind(epoch.as_bytes().to_vec())
    .bind(to_sql(from))
    .bind(i64::from(limit))
    .fetch_all(store.readers())
    .await?
    .iter()
    .map(|row| {
        Ok(StoredChangeSet {
            epoch: Epoch::from_bytes(array(row, "epoch")?),
            revision: from_sql("revision", row.try_get("revision")?)?,
            digest: Digest::from_bytes(array(row, "digest")?),
            signed: row.try_get("signed")?,
        })
    })
    .collect()
}

pub(crate) async fn issue_floor(store: &Store) -> Result<UnixMillis, StoreError> {
    let floor: i64 = sqlx::query_scalar("SELECT issue_floor_ms FROM feed_head WHERE only_row = 1")
        .fetch_one(store.readers())
        .await?;
    Ok(UnixMillis(floor))
}

/// Raises the kept floor to `floor`; never lowers it.
pub(crate) async fn raise_issue_floor(
    transaction: &mut Transaction,
    floor: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE feed_head SET issue_floor_ms = $1 WHERE only_row = 1 AND issue_floor_ms < $1")
        .bind(floor.0)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

fn head_from(row: &SqliteRow) -> Result<Head, StoreError> {
    Ok(Head {
        epoch: Epoch::from_bytes(array(row, "epoch")?),
        revision: from_sql("revision", row.try_get("revision")?)?,
        digest: Digest::from_bytes(array(row, "digest")?),
    })
}

fn array<const N: usize>(row: &SqliteRow, column: &'static str) -> Result<[u8; N], StoreError> {
    let bytes: Vec<u8> = row.try_get(column)?;
    bytes.try_into().map_err(|_| corrupt(column, format!("is not of {N} bytes")))
}

fn random_epoch() -> Result<Epoch, StoreError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(crate::secret::SecretError::from)?;
    Ok(Epoch::from_bytes(bytes))
}
