//! What is revoked: the records that operators list, and the ids that are enforced.

use std::collections::HashMap;

use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;

use super::{Row, Store, StoreError, Transaction, corrupt, from_sql, query, to_sql, transact};
use crate::revocation::{RevocationFilter, RevocationRecord};

/// Rows of one statement; SQLite binds 32,766 parameters at most.
const ROWS: usize = 2_000;

/// Takes down a call, or one more part of the file with this id.
pub(crate) async fn record(
    transaction: &mut Transaction,
    realm: &str,
    record: &RevocationRecord,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO revocations (id, kind, value, issuer, number, not_after, reason, actor, created_at, realm) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
         ON CONFLICT (id) DO UPDATE SET number = revocations.number + excluded.number",
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
    .bind(realm)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The realm's newest records that fit first, behind `after` (instant and id).
pub(crate) async fn list(
    store: &Store,
    realm: &str,
    filter: &RevocationFilter,
    after: Option<(i64, &str)>,
    limit: u32,
) -> Result<Vec<RevocationRecord>, StoreError> {
    let (created_at, id) = after.unwrap_or((i64::MAX, ""));
    query(
        "SELECT id, kind, value, issuer, number, not_after, reason, actor, created_at FROM revocations \
         WHERE realm = $10 AND (created_at < $1 OR (created_at = $1 AND id > $2)) \
         AND created_at >= $3 AND created_at <= $4 AND ($5 = '' OR kind = $5) AND ($6 = '' OR value = $6) \
         AND ($7 = '' OR actor = $7) AND ($8 = '' OR reason = $8) \
         ORDER BY created_at DESC, id LIMIT $9",
    )
    .bind(created_at)
    .bind(id)
    .bind(filter.since_ms.unwrap_or(i64::MIN))
    .bind(filter.until_ms.unwrap_or(i64::MAX))
    .bind(filter.kind.as_deref().unwrap_or_default())
    .bind(filter.value.as_deref().unwrap_or_default())
    .bind(filter.actor.as_deref().unwrap_or_default())
    .bind(filter.reason.as_deref().unwrap_or_default())
    .bind(i64::from(limit))
    .bind(realm)
    .fetch_all(store)
    .await?
    .iter()
    .map(|row| {
        Ok(RevocationRecord {
            id: row.get("id")?,
            kind: row.get("kind")?,
            value: row.get("value")?,
            issuer: row.get("issuer")?,
            number: from_sql("number", row.get("number")?)?,
            not_after: row.get("not_after")?,
            reason: row.get("reason")?,
            actor: row.get("actor")?,
            created_at: row.get("created_at")?,
        })
    })
    .collect()
}

/// Adds tokens of one bucket. Returns those that were not there.
pub(crate) async fn add_tokens(
    transaction: &mut Transaction,
    bucket: Bucket,
    ids: &[Id],
) -> Result<Vec<Id>, StoreError> {
    let mut added = Vec::new();
    for chunk in ids.chunks(ROWS) {
        let rows = query::insert(
            "INSERT INTO revoked_tokens (bucket, id)",
            chunk.iter().map(|id| [bucket.0.into(), id.as_bytes().into()]),
            "ON CONFLICT (bucket, id) DO NOTHING RETURNING id",
        )
        .fetch_all(&mut *transaction)
        .await?;
        for row in &rows {
            added.push(id_from(row)?);
        }
    }
    Ok(added)
}

/// A register that has risen: its id, the instant before, and the instant now.
pub(crate) type Risen = (Id, Option<UnixMillis>, UnixMillis);

/// Raises registers, each named once; never lowers one. Returns those that have risen. Only for whoever holds the head's
/// lock: what is read here must not change before it is written.
pub(crate) async fn raise_watermarks(
    transaction: &mut Transaction,
    kind: IdKind,
    entries: &[(Id, UnixMillis)],
) -> Result<Vec<Risen>, StoreError> {
    let mut risen = Vec::new();
    for chunk in entries.chunks(ROWS) {
        let known = known_watermarks(transaction, kind, chunk).await?;
        let higher: Vec<Risen> = chunk
            .iter()
            .map(|(id, instant)| (*id, known.get(id).copied(), *instant))
            .filter(|(_, before, now)| before.is_none_or(|before| before < *now))
            .collect();
        if higher.is_empty() {
            continue;
        }
        query::insert(
            "INSERT INTO watermarks (kind, id, not_after)",
            higher.iter().map(|(id, _, now)| [(kind as i64).into(), id.as_bytes().into(), now.0.into()]),
            "ON CONFLICT (kind, id) DO UPDATE SET not_after = excluded.not_after \
             WHERE watermarks.not_after < excluded.not_after",
        )
        .execute(transaction)
        .await?;
        risen.extend(higher);
    }
    Ok(risen)
}

/// Ends scopes here ahead of the feed: what they cover is refused by this store from the commit on. Their watermarks follow
/// through the log, which alone decides what the feed's state is.
pub(crate) async fn end_scopes(
    transaction: &mut Transaction,
    kind: IdKind,
    entries: &[(Id, UnixMillis)],
) -> Result<(), StoreError> {
    for chunk in entries.chunks(ROWS) {
        query::insert(
            "INSERT INTO ended_scopes (kind, id, not_after)",
            chunk.iter().map(|(id, instant)| [(kind as i64).into(), id.as_bytes().into(), instant.0.into()]),
            "ON CONFLICT (kind, id) DO UPDATE SET not_after = excluded.not_after \
             WHERE ended_scopes.not_after < excluded.not_after",
        )
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

/// Forgets ended scopes whose watermarks have come through the log.
pub(crate) async fn purge_ended_scopes(store: &Store) -> Result<u64, StoreError> {
    query(
        "DELETE FROM ended_scopes WHERE EXISTS (SELECT 1 FROM watermarks WHERE watermarks.kind = ended_scopes.kind \
         AND watermarks.id = ended_scopes.id AND watermarks.not_after >= ended_scopes.not_after)",
    )
    .execute_alone(store)
    .await
}

async fn known_watermarks(
    transaction: &mut Transaction,
    kind: IdKind,
    entries: &[(Id, UnixMillis)],
) -> Result<HashMap<Id, UnixMillis>, StoreError> {
    let list = query::placeholders(2, entries.len());
    let text = format!("SELECT id, not_after FROM watermarks WHERE kind = $1 AND id IN {list}");
    let mut select = query(sqlx::AssertSqlSafe(text)).bind(kind as i64);
    for (id, _) in entries {
        select = select.bind(id.as_bytes());
    }
    let rows = select.fetch_all(transaction).await?;
    rows.iter().map(|row| Ok((id_from(row)?, UnixMillis(row.get("not_after")?)))).collect()
}

/// Whether one of `tokens` is revoked, in its own bucket or in the one of unknown expiries, or one of `scopes` by a watermark
/// that covers `issued_at`. A revoked key is dead whatever a token says of its time: who holds it can backdate.
pub(crate) async fn is_revoked(
    store: &Store,
    tokens: &[(Bucket, Id)],
    scopes: &[(IdKind, Id)],
    issued_at: UnixMillis,
) -> Result<bool, StoreError> {
    let (mut conditions, mut next) = (vec!["1 = 0".to_owned()], 2);
    for _ in tokens {
        let (bucket, id, unknown) = (next, next + 1, Bucket::UNKNOWN.0);
        conditions.push(format!(
            "EXISTS (SELECT 1 FROM revoked_tokens WHERE bucket IN (${bucket}, {unknown}) AND id = ${id})"
        ));
        next += 2;
    }
    for (kind, _) in scopes {
        let covers = if *kind == IdKind::Key { "" } else { " AND not_after >= $1" };
        let kind = *kind as i64;
        conditions.push(format!(
            "EXISTS (SELECT 1 FROM enforced_watermarks WHERE kind = {kind} AND id = ${next}{covers})"
        ));
        next += 1;
    }
    let sql = format!("SELECT 1 WHERE {}", conditions.join(" OR "));
    let mut look = query(sqlx::AssertSqlSafe(sql)).bind(issued_at.0);
    for (bucket, id) in tokens {
        look = look.bind(bucket.0).bind(id.as_bytes());
    }
    for (_, id) in scopes {
        look = look.bind(id.as_bytes());
    }
    Ok(look.fetch_optional(store).await?.is_some())
}

/// Forgets tokens of buckets before `before` (not the unknown one), at most `limit`, and the digests of all of them. Returns how
/// many tokens went.
pub(crate) async fn purge_tokens(store: &Store, before: Bucket, limit: u32) -> Result<u64, StoreError> {
    transact!(RowLocks: store, |transaction| -> Result<u64, StoreError> {
        super::feed_state::forget_buckets(transaction, before).await?;
        query(
            "DELETE FROM revoked_tokens WHERE (bucket, id) IN \
             (SELECT bucket, id FROM revoked_tokens WHERE bucket > $1 AND bucket < $2 LIMIT $3)",
        )
        .bind(Bucket::UNKNOWN.0)
        .bind(before.0)
        .bind(limit)
        .execute(transaction)
        .await
    })
}

/// Enforced tokens after `(bucket, id)` in ascending order, at most `limit`: the pages of a whole copy.
pub(crate) async fn tokens_after(
    transaction: &mut Transaction,
    after: Option<(Bucket, Id)>,
    limit: u32,
) -> Result<Vec<(Bucket, Id)>, StoreError> {
    let (bucket, id) =
        after.map_or((-1, vec![]), |(bucket, id)| (i64::from(bucket.0), id.as_bytes().to_vec()));
    query("SELECT bucket, id FROM revoked_tokens WHERE (bucket, id) > ($1, $2) ORDER BY bucket, id LIMIT $3")
        .bind(bucket)
        .bind(id)
        .bind(i64::from(limit))
        .fetch_all(&mut *transaction)
        .await?
        .iter()
        .map(|row| {
            let bucket = u32::try_from(row.get::<i64>("bucket")?).map_err(|e| corrupt("bucket", e))?;
            Ok((Bucket(bucket), id_from(row)?))
        })
        .collect()
}

/// Enforced tokens of one bucket after `after` in ascending order, at most `limit`.
pub(crate) async fn bucket_after(
    transaction: &mut Transaction,
    bucket: Bucket,
    after: Option<Id>,
    limit: u32,
) -> Result<Vec<Id>, StoreError> {
    let after = after.map_or(vec![], |id| id.as_bytes().to_vec());
    let rows = query("SELECT id FROM revoked_tokens WHERE bucket = $1 AND id > $2 ORDER BY id LIMIT $3")
        .bind(bucket.0)
        .bind(after)
        .bind(limit)
        .fetch_all(transaction)
        .await?;
    rows.iter().map(id_from).collect()
}

/// Registers of one kind after `after` in ascending order, at most `limit`.
pub(crate) async fn watermarks_after(
    transaction: &mut Transaction,
    kind: IdKind,
    after: Option<Id>,
    limit: u32,
) -> Result<Vec<(Id, UnixMillis)>, StoreError> {
    let after = after.map_or(vec![], |id| id.as_bytes().to_vec());
    let rows = query("SELECT id, not_after FROM watermarks WHERE kind = $1 AND id > $2 ORDER BY id LIMIT $3")
        .bind(kind as i64)
        .bind(after)
        .bind(limit)
        .fetch_all(transaction)
        .await?;
    rows.iter().map(|row| Ok((id_from(row)?, UnixMillis(row.get("not_after")?)))).collect()
}

fn id_from(row: &Row) -> Result<Id, StoreError> {
    let bytes: Vec<u8> = row.get("id")?;
    Ok(Id::from_bytes(bytes.try_into().map_err(|_| corrupt("id", "is not of 16 bytes"))?))
}
