//! What is revoked: the records that operators list, and the ids that are enforced.

use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::{Store, StoreError, Transaction, corrupt, from_sql, to_sql};
use crate::revocation::RevocationRecord;

/// Rows of one statement; SQLite binds 32,766 parameters at most.
const ROWS: usize = 2_000;

pub(crate) async fn record(
    transaction: &mut Transaction,
    record: &RevocationRecord,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO revocations (id, kind, value, issuer, number, not_after, reason, actor, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(&record.id)
    .bind(&record.kind)
    .bind(&record.value)
    .bind(&record.issuer)
    .bind(to_sql(record.number))
    .bind(record.not_after)
    .bind(&record.reason)
    .bind(&record.actor)
    .bind(record.created_at)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// The newest records first.
pub(crate) async fn list(store: &Store, limit: u32) -> Result<Vec<RevocationRecord>, StoreError> {
    sqlx::query(
        "SELECT id, kind, value, issuer, number, not_after, reason, actor, created_at FROM revocations \
         ORDER BY created_at DESC, id LIMIT $1",
    )
    .bind(i64::from(limit))
    .fetch_all(store.readers())
    .await?
    .iter()
    .map(|row| {
        Ok(RevocationRecord {
            id: row.try_get("id")?,
            kind: row.try_get("kind")?,
            value: row.try_get("value")?,
            issuer: row.try_get("issuer")?,
            number: from_sql("number", row.try_get("number")?)?,
            not_after: row.try_get("not_after")?,
            reason: row.try_get("reason")?,
            actor: row.try_get("actor")?,
            created_at: row.try_get("created_at")?,
        })
    })
    .collect()
}

/// Adds tokens of one bucket; those already there stay.
pub(crate) async fn add_tokens(
    transaction: &mut Transaction,
    bucket: Bucket,
    ids: &[Id],
) -> Result<(), StoreError> {
    for chunk in ids.chunks(ROWS) {
        QueryBuilder::<Sqlite>::new("INSERT INTO revoked_tokens (bucket, id) ")
            .push_values(chunk, |mut row, id| {
                row.push_bind(i64::from(bucket.0)).push_bind(id.as_bytes().to_vec());
            })
            .push(" ON CONFLICT (bucket, id) DO NOTHING")
            .build()
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

/// Raises registers; never lowers one.
pub(crate) async fn raise_watermarks(
    transaction: &mut Transaction,
    kind: IdKind,
    entries: &[(Id, UnixMillis)],
) -> Result<(), StoreError> {
    for chunk in entries.chunks(ROWS) {
        QueryBuilder::<Sqlite>::new("INSERT INTO watermarks (kind, id, not_after) ")
            .push_values(chunk, |mut row, (id, instant)| {
                row.push_bind(kind as i64).push_bind(id.as_bytes().to_vec()).push_bind(instant.0);
            })
            .push(
                " ON CONFLICT (kind, id) DO UPDATE SET not_after = excluded.not_after \
                 WHERE watermarks.not_after < excluded.not_after",
            )
            .build()
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

/// Whether the token is revoked by itself, in its own bucket or in the one of unknown expiries.
pub(crate) async fn is_token_revoked(store: &Store, bucket: Bucket, id: Id) -> Result<bool, StoreError> {
    let found: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM revoked_tokens WHERE bucket IN ($1, $2) AND id = $3")
            .bind(i64::from(bucket.0))
            .bind(i64::from(Bucket::UNKNOWN.0))
            .bind(id.as_bytes().to_vec())
            .fetch_one(store.readers())
            .await?;
    Ok(found > 0)
}

pub(crate) async fn watermark(store: &Store, kind: IdKind, id: Id) -> Result<Option<UnixMillis>, StoreError> {
    let instant: Option<i64> =
        sqlx::query_scalar("SELECT not_after FROM watermarks WHERE kind = $1 AND id = $2")
            .bind(kind as i64)
            .bind(id.as_bytes().to_vec())
            .fetch_optional(store.readers())
            .await?;
    Ok(instant.map(UnixMillis))
}

/// Forgets tokens of buckets before `before` (not the unknown one), at most `limit`. Returns how many went.
pub(crate) async fn purge_tokens(store: &Store, before: Bucket, limit: u32) -> Result<u64, StoreError> {
    let mut transaction = store.begin().await?;
    let done = sqlx::query(
        "DELETE FROM revoked_tokens WHERE (bucket, id) IN \
         (SELECT bucket, id FROM revoked_tokens WHERE bucket > $1 AND bucket < $2 LIMIT $3)",
    )
    .bind(i64::from(Bucket::UNKNOWN.0))
    .bind(i64::from(before.0))
    .bind(i64::from(limit))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(done.rows_affected())
}

/// Enforced tokens after `(bucket, id)` in ascending order, at most `limit`: the pages of a whole copy.
pub(crate) async fn tokens_after(
    transaction: &mut Transaction,
    after: Option<(Bucket, Id)>,
    limit: u32,
) -> Result<Vec<(Bucket, Id)>, StoreError> {
    let (bucket, id) =
        after.map_or((-1, vec![]), |(bucket, id)| (i64::from(bucket.0), id.as_bytes().to_vec()));
    sqlx::query(
        "SELECT bucket, id FROM revoked_tokens WHERE (bucket, id) > ($1, $2) ORDER BY bucket, id LIMIT $3",
    )
    .bind(bucket)
    .bind(id)
    .bind(i64::from(limit))
    .fetch_all(&mut **transaction)
    .await?
    .iter()
    .map(|row| {
        let bucket = u32::try_from(row.try_get::<i64, _>("bucket")?).map_err(|e| corrupt("bucket", e))?;
        Ok((Bucket(bucket), id_from(row)?))
    })
    .collect()
}

/// All registers of one kind.
pub(crate) async fn watermarks_of(
    transaction: &mut Transaction,
    kind: IdKind,
) -> Result<Vec<(Id, UnixMillis)>, StoreError> {
    sqlx::query("SELECT id, not_after FROM watermarks WHERE kind = $1 ORDER BY id")
        .bind(kind as i64)
        .fetch_all(&mut **transaction)
        .await?
        .iter()
        .map(|row| Ok((id_from(row)?, UnixMillis(row.try_get("not_after")?))))
        .collect()
}

fn id_from(row: &SqliteRow) -> Result<Id, StoreError> {
    let bytes: Vec<u8> = row.try_get("id")?;
    Ok(Id::from_bytes(bytes.try_into().map_err(|_| corrupt("id", "is not of 16 bytes"))?))
}
