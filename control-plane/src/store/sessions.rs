//! Sessions (token families): one row each.

use atm_core::id::{Id, IdKind};
use atm_core::time::UnixMillis;

use super::query::{Row, placeholders, query};
use super::{Store, StoreError, Transaction, corrupt, from_sql, to_sql};
use crate::sessions::{Session, SessionDetails, SessionStatus};

/// What ends a session from outside its row, beside its own status and times: watermarks over it, its subject, client, realm
/// or issuer, and a disabled subject. `$A` is the session's [`Id`], `$B` the client's, `$C` the realm's, `$D` the issuer's.
macro_rules! not_revoked {
    ($a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "NOT EXISTS (SELECT 1 FROM enforced_watermarks WHERE not_after >= sessions.opened_at AND (",
            "(kind = 1 AND id = ",
            $a,
            ") OR (kind = 2 AND id = sessions.subject_id) OR ",
            "(kind = 3 AND id = ",
            $b,
            ") OR (kind = 4 AND id = ",
            $c,
            ") OR (kind = 5 AND id = ",
            $d,
            "))) ",
            "AND NOT EXISTS (SELECT 1 FROM disabled_subjects WHERE disabled_subjects.realm = sessions.realm ",
            "AND disabled_subjects.subject = sessions.subject)"
        )
    };
}

/// What revocations name a session's scopes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scopes {
    pub(crate) session: Id,
    pub(crate) client: Id,
    pub(crate) realm: Id,
    pub(crate) issuer: Id,
}

impl Scopes {
    pub(crate) fn of(issuer: &str, realm: &str, client_id: &str, session: &str) -> Self {
        Self {
            session: Id::of(IdKind::Session, issuer, session),
            client: Id::of(IdKind::Client, issuer, client_id),
            realm: Id::of(IdKind::Realm, "", realm),
            issuer: Id::of(IdKind::Issuer, "", issuer),
        }
    }
}

/// A refresh that is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refresh<'a> {
    pub(crate) id: &'a str,
    pub(crate) generation: u64,
    pub(crate) realm: &'a str,
    pub(crate) client_id: &'a str,
    /// What the request has proved to hold, as in `bound_to`; empty where it has not.
    pub(crate) proofs: [&'a str; 2],
    pub(crate) now: UnixMillis,
    /// Since when a rotation is young enough for its predecessor to be taken once more.
    pub(crate) grace_since: UnixMillis,
    /// At the latest; a session that was opened with a shorter idle time keeps that.
    pub(crate) idle_expires_at: UnixMillis,
}

/// Opens a session, unless its subject is disabled or its client is not active. Returns whether it did.
pub(crate) async fn insert(
    store: &Store,
    session: &Session,
    subject_id: Id,
    client_key: &str,
) -> Result<bool, StoreError> {
    let inserted = query(
        "INSERT INTO sessions (id, realm, client_id, subject, subject_id, details, bound_to, generation, status, \
         opened_at, refreshed_at, idle_expires_at, expires_at) \
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 \
         WHERE EXISTS (SELECT 1 FROM clients WHERE client_id = $14 AND status = 'active') \
         AND NOT EXISTS (SELECT 1 FROM disabled_subjects WHERE realm = $2 AND subject = $4)",
    )
    .bind(&session.id)
    .bind(&session.realm)
    .bind(&session.client_id)
    .bind(&session.subject)
    .bind(subject_id.as_bytes())
    .bind(details(session)?)
    .bind(&session.bound_to)
    .bind(to_sql(session.generation))
    .bind(session.status.as_str())
    .bind(session.opened_at)
    .bind(session.refreshed_at)
    .bind(session.idle_expires_at)
    .bind(session.expires_at)
    .bind(client_key)
    .execute_alone(store)
    .await?;
    Ok(inserted > 0)
}

/// Rotates the session, or finds that it was rotated from the same generation within the grace: in both cases the successor is
/// the generation that follows. One statement, so whatever comes at the same time comes before or after it, at whichever
/// replica; a revocation among them. None: not to be refreshed; [`get`] shows why.
pub(crate) async fn refresh(
    store: &Store,
    refresh: &Refresh<'_>,
    scopes: Scopes,
) -> Result<Option<Session>, StoreError> {
    const SQL: &str = concat!(
        "UPDATE sessions SET \
         refreshed_at = CASE WHEN generation = $2 THEN $3 ELSE refreshed_at END, \
         idle_expires_at = CASE WHEN generation <> $2 THEN idle_expires_at \
         WHEN idle_expires_at - refreshed_at < $4 - $3 THEN $3 + idle_expires_at - refreshed_at ELSE $4 END, \
         generation = $2 + 1 \
         WHERE id = $1 AND (generation = $2 OR (generation = $2 + 1 AND refreshed_at >= $5)) \
         AND status = 'active' AND expires_at > $3 AND idle_expires_at > $3 \
         AND realm = $6 AND client_id = $7 AND (bound_to = '' OR bound_to = $8 OR bound_to = $9) AND ",
        not_revoked!("$10", "$11", "$12", "$13"),
        " RETURNING id, realm, client_id, subject, details, bound_to, generation, status, opened_at, \
         refreshed_at, idle_expires_at, expires_at, ended_at"
    );
    let row = query(SQL)
        .bind(refresh.id)
        .bind(to_sql(refresh.generation))
        .bind(refresh.now.0)
        .bind(refresh.idle_expires_at.0)
        .bind(refresh.grace_since.0)
        .bind(refresh.realm)
        .bind(refresh.client_id)
        .bind(refresh.proofs[0])
        .bind(refresh.proofs[1])
        .bind(scopes.session.as_bytes())
        .bind(scopes.client.as_bytes())
        .bind(scopes.realm.as_bytes())
        .bind(scopes.issuer.as_bytes())
        .fetch_alone(store)
        .await?;
    row.into_iter().next().map(|row| session_from(&row)).transpose()
}

/// The session, and whether something outside its row has ended it.
pub(crate) async fn get(store: &Store, id: &str) -> Result<Option<Session>, StoreError> {
    query("SELECT id, realm, client_id, subject, details, bound_to, generation, status, opened_at, refreshed_at, \
           idle_expires_at, expires_at, ended_at FROM sessions WHERE id = $1")
        .bind(id)
        .fetch_optional(store)
        .await?
        .map(|row| session_from(&row))
        .transpose()
}

/// Whether a watermark or a disabled subject has ended the session.
pub(crate) async fn is_revoked(store: &Store, id: &str, scopes: Scopes) -> Result<bool, StoreError> {
    const SQL: &str =
        concat!("SELECT id FROM sessions WHERE id = $1 AND ", not_revoked!("$2", "$3", "$4", "$5"));
    let alive = query(SQL)
        .bind(id)
        .bind(scopes.session.as_bytes())
        .bind(scopes.client.as_bytes())
        .bind(scopes.realm.as_bytes())
        .bind(scopes.issuer.as_bytes())
        .fetch_optional(store)
        .await?;
    Ok(alive.is_none())
}

/// The subject's sessions after `after`, the ended ones among them, at most `limit`.
pub(crate) async fn of_subject(
    store: &Store,
    subject_id: Id,
    after: &str,
    limit: u32,
) -> Result<Vec<Session>, StoreError> {
    query("SELECT id, realm, client_id, subject, details, bound_to, generation, status, opened_at, refreshed_at, \
           idle_expires_at, expires_at, ended_at FROM sessions WHERE subject_id = $1 AND id > $2 \
           ORDER BY id LIMIT $3")
        .bind(subject_id.as_bytes())
        .bind(after)
        .bind(limit)
        .fetch_all(store)
        .await?
        .iter()
        .map(session_from)
        .collect()
}

/// Ends one session. Locks its row, so that a refresh under way has either committed before or will find it ended.
pub(crate) async fn end(
    transaction: &mut Transaction,
    id: &str,
    status: SessionStatus,
    now: UnixMillis,
) -> Result<bool, StoreError> {
    let ended = query("UPDATE sessions SET status = $2, ended_at = $3 WHERE id = $1 AND status = 'active'")
        .bind(id)
        .bind(status.as_str())
        .bind(now.0)
        .execute(transaction)
        .await?;
    Ok(ended > 0)
}

/// As [`end`], every session of the realm that is named.
pub(crate) async fn end_named(
    transaction: &mut Transaction,
    realm: &str,
    ids: &[&str],
    now: UnixMillis,
) -> Result<(), StoreError> {
    for chunk in ids.chunks(500) {
        let list = placeholders(3, chunk.len());
        let sql = format!(
            "UPDATE sessions SET status = 'ended', ended_at = $1 WHERE status = 'active' AND realm = $2 AND id IN {list}"
        );
        let update = query(sqlx::AssertSqlSafe(sql)).bind(now.0).bind(realm);
        chunk.iter().fold(update, |update, id| update.bind(*id)).execute(transaction).await?;
    }
    Ok(())
}

/// As [`end`], all sessions of a subject.
pub(crate) async fn end_of_subject(
    transaction: &mut Transaction,
    subject_id: Id,
    now: UnixMillis,
) -> Result<u64, StoreError> {
    query("UPDATE sessions SET status = 'ended', ended_at = $2 WHERE subject_id = $1 AND status = 'active'")
        .bind(subject_id.as_bytes())
        .bind(now.0)
        .execute(transaction)
        .await
}

fn details(session: &Session) -> Result<String, StoreError> {
    serde_json::to_string(&session.details).map_err(|error| corrupt("session's details", error))
}

fn session_from(row: &Row) -> Result<Session, StoreError> {
    let (details, status): (String, String) = (row.get("details")?, row.get("status")?);
    let details: SessionDetails =
        serde_json::from_str(&details).map_err(|error| corrupt("session's details", error))?;
    Ok(Session {
        id: row.get("id")?,
        realm: row.get("realm")?,
        client_id: row.get("client_id")?,
        subject: row.get("subject")?,
        details,
        bound_to: row.get("bound_to")?,
        generation: from_sql("generation", row.get("generation")?)?,
        status: SessionStatus::parse(&status).ok_or_else(|| corrupt("session status", status))?,
        opened_at: row.get("opened_at")?,
        refreshed_at: row.get("refreshed_at")?,
        idle_expires_at: row.get("idle_expires_at")?,
        expires_at: row.get("expires_at")?,
        ended_at: row.get("ended_at")?,
    })
}
