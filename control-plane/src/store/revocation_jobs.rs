//! Revocations to come, and the parts of files that are in force.

use atm_core::time::UnixMillis;

use super::outbox::Ticket;
use super::{Row, Store, StoreError, Transaction, corrupt, from_sql, query, to_sql};
use crate::revocation::{ScheduleStatus, Scheduled};

const SCHEDULED: &str = "id, at_ms, selectors, before_ms, reason, actor, status, created_at, settled_at";

/// A part of a file that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: u64,
    pub(crate) ticket: Ticket,
    /// None: not known yet, the ticket tells.
    pub(crate) revision: Option<u64>,
}

pub(crate) async fn schedule(store: &Store, scheduled: &Scheduled) -> Result<(), StoreError> {
    let selectors =
        serde_json::to_string(&scheduled.selectors).map_err(|error| corrupt("selectors", error))?;
    query(
        "INSERT INTO scheduled_revocations (id, at_ms, selectors, before_ms, reason, actor, status, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(&scheduled.id)
    .bind(scheduled.at_ms)
    .bind(selectors)
    .bind(scheduled.before_ms)
    .bind(&scheduled.reason)
    .bind(&scheduled.actor)
    .bind(scheduled.status.as_str())
    .bind(scheduled.created_at)
    .execute_alone(store)
    .await?;
    Ok(())
}

/// Those of `status`, the next first, behind `after` (instant and id).
pub(crate) async fn scheduled(
    store: &Store,
    status: ScheduleStatus,
    after: Option<(i64, &str)>,
    limit: u32,
) -> Result<Vec<Scheduled>, StoreError> {
    scheduled_rows(store, status, after, limit).await?.iter().map(scheduled_from).collect()
}

async fn scheduled_rows(
    store: &Store,
    status: ScheduleStatus,
    after: Option<(i64, &str)>,
    limit: u32,
) -> Result<Vec<Row>, StoreError> {
    let (at, id) = after.unwrap_or((i64::MIN, ""));
    query(sqlx::AssertSqlSafe(format!(
        "SELECT {SCHEDULED} FROM scheduled_revocations WHERE status = $1 AND (at_ms, id) > ($2, $3) \
         ORDER BY at_ms, id LIMIT $4"
    )))
    .bind(status.as_str())
    .bind(at)
    .bind(id)
    .bind(limit)
    .fetch_all(store)
    .await
}

/// Those that are due, the oldest first, behind `after` (instant and id). One that cannot be read, because a later version
/// scheduled it, is left to that version.
pub(crate) async fn due(
    store: &Store,
    now: UnixMillis,
    after: Option<(i64, &str)>,
    limit: u32,
) -> Result<Vec<Scheduled>, StoreError> {
    let rows = scheduled_rows(store, ScheduleStatus::Pending, after, limit).await?;
    let readable = rows.iter().filter_map(|row| {
        let read = scheduled_from(row);
        read.inspect_err(|error| tracing::error!(%error, "a scheduled revocation is not carried out here"))
            .ok()
    });
    Ok(readable.filter(|scheduled| scheduled.at_ms <= now.0).collect())
}

/// The one with this id, locked until the transaction ends: two replicas do not carry it out both.
pub(crate) async fn locked(transaction: &mut Transaction, id: &str) -> Result<Option<Scheduled>, StoreError> {
    query(sqlx::AssertSqlSafe(format!("SELECT {SCHEDULED} FROM scheduled_revocations WHERE id = $1")))
        .bind(id)
        .for_update()
        .fetch_optional(&mut *transaction)
        .await?
        .map(|row| scheduled_from(&row))
        .transpose()
}

/// Ends a pending one.
pub(crate) async fn settle(
    transaction: &mut Transaction,
    id: &str,
    status: ScheduleStatus,
    ticket: Option<&Ticket>,
    now: UnixMillis,
) -> Result<(), StoreError> {
    query("UPDATE scheduled_revocations SET status = $2, ticket = $3, settled_at = $4 WHERE id = $1")
        .bind(id)
        .bind(status.as_str())
        .bind(ticket.map(Ticket::as_str))
        .bind(now.0)
        .execute(transaction)
        .await?;
    Ok(())
}

pub(crate) async fn part(
    transaction: &mut Transaction,
    batch: &str,
    part: u64,
) -> Result<Option<Part>, StoreError> {
    query("SELECT number, ticket, revision FROM revocation_batches WHERE batch = $1 AND part = $2")
        .bind(batch)
        .bind(to_sql(part))
        .fetch_optional(&mut *transaction)
        .await?
        .map(|row| {
            Ok(Part {
                number: from_sql("number", row.get("number")?)?,
                ticket: Ticket::from_text(row.get("ticket")?),
                revision: row
                    .get::<Option<i64>>("revision")?
                    .map(|at| from_sql("revision", at))
                    .transpose()?,
            })
        })
        .transpose()
}

pub(crate) async fn add_part(
    transaction: &mut Transaction,
    batch: &str,
    part: u64,
    number: u64,
    ticket: &Ticket,
    now: UnixMillis,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO revocation_batches (batch, part, number, ticket, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(batch)
    .bind(to_sql(part))
    .bind(to_sql(number))
    .bind(ticket.as_str())
    .bind(now.0)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Notes the revision of a part: its ticket is forgotten after a while.
pub(crate) async fn part_sequenced(
    store: &Store,
    batch: &str,
    part: u64,
    revision: u64,
) -> Result<(), StoreError> {
    query("UPDATE revocation_batches SET revision = $3 WHERE batch = $1 AND part = $2")
        .bind(batch)
        .bind(to_sql(part))
        .bind(to_sql(revision))
        .execute_alone(store)
        .await?;
    Ok(())
}

/// How far a batch is: parts, values in them, the first part that is missing, and the highest revision.
pub(crate) async fn batch(store: &Store, batch: &str) -> Result<(u64, u64, u64, Option<u64>), StoreError> {
    let row = query(
        "SELECT COUNT(*) AS parts, CAST(COALESCE(SUM(number), 0) AS BIGINT) AS number, MAX(revision) AS revision \
         FROM revocation_batches WHERE batch = $1",
    )
    .bind(batch)
    .fetch_one(store)
    .await?;
    // The first one behind which none follows; parts may have come in any order.
    let missing = query(
        "SELECT MIN(b.part) + 1 AS part FROM revocation_batches b WHERE b.batch = $1 AND NOT EXISTS \
         (SELECT 1 FROM revocation_batches n WHERE n.batch = b.batch AND n.part = b.part + 1)",
    )
    .bind(batch)
    .fetch_one(store)
    .await?;
    let first = query("SELECT 1 AS found FROM revocation_batches WHERE batch = $1 AND part = 0")
        .bind(batch)
        .fetch_optional(store)
        .await?;
    let next = match first {
        Some(_) => missing.get::<Option<i64>>("part")?.unwrap_or(0),
        None => 0,
    };
    Ok((
        from_sql("parts", row.get("parts")?)?,
        from_sql("number", row.get("number")?)?,
        from_sql("part", next)?,
        row.get::<Option<i64>>("revision")?.map(|revision| from_sql("revision", revision)).transpose()?,
    ))
}

/// Forgets parts from before `before`, at most `limit`.
pub(crate) async fn purge_parts(store: &Store, before: UnixMillis, limit: u32) -> Result<u64, StoreError> {
    query(
        "DELETE FROM revocation_batches WHERE (batch, part) IN (SELECT batch, part FROM revocation_batches \
         WHERE created_at < $1 LIMIT $2)",
    )
    .bind(before.0)
    .bind(limit)
    .execute_alone(store)
    .await
}

fn scheduled_from(row: &Row) -> Result<Scheduled, StoreError> {
    let status: String = row.get("status")?;
    let selectors: String = row.get("selectors")?;
    Ok(Scheduled {
        id: row.get("id")?,
        at_ms: row.get("at_ms")?,
        selectors: serde_json::from_str(&selectors).map_err(|error| corrupt("selectors", error))?,
        before_ms: row.get("before_ms")?,
        reason: row.get("reason")?,
        actor: row.get("actor")?,
        status: ScheduleStatus::parse(&status).ok_or_else(|| corrupt("schedule status", &status))?,
        created_at: row.get("created_at")?,
        settled_at: row.get("settled_at")?,
    })
}
