//! How much a revocation would hit.

use atm_core::id::{Id, IdKind};
use atm_core::time::UnixMillis;

use super::{Store, StoreError, from_sql, query};
use crate::revocation::Selector;

/// Numbers of what is in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) sessions: u64,
    pub(crate) api_keys: u64,
    pub(crate) clients: u64,
    pub(crate) signing_keys: u64,
}

/// What `selector` would hit of what was there at `not_after`, as of `now`. `issuer` is our own.
pub(crate) async fn of(
    store: &Store,
    selector: &Selector,
    issuer: &str,
    not_after: UnixMillis,
    now: UnixMillis,
) -> Result<Reach, StoreError> {
    // A key's end is in seconds, as in a token.
    let api_keys = "SELECT COUNT(*) AS number FROM api_keys WHERE status = 'active' AND created_at <= $1 AND expires_at > $2";
    let mut reach =
        Reach { sessions: sessions(store, selector, issuer, not_after, now).await?, ..Reach::default() };
    match selector {
        Selector::Subject(subject) => {
            let of_subject = format!("{api_keys} AND subject = $3");
            let query =
                query(sqlx::AssertSqlSafe(of_subject)).bind(not_after.0).bind(now.seconds()).bind(subject);
            reach.api_keys = number(&query.fetch_one(store).await?)?;
        }
        Selector::Token { jti, .. } => {
            let by_id = format!("{api_keys} AND id = $3");
            let query = query(sqlx::AssertSqlSafe(by_id)).bind(not_after.0).bind(now.seconds()).bind(jti);
            reach.api_keys = number(&query.fetch_one(store).await?)?;
        }
        Selector::Client(client) => {
            let query = query("SELECT COUNT(*) AS number FROM clients WHERE client_id = $1").bind(client);
            reach.clients = number(&query.fetch_one(store).await?)?;
        }
        Selector::Key(kid) => {
            let query = query(
                "SELECT COUNT(*) AS number FROM signing_keys WHERE kid = $1 AND state IN ('pending', 'active', 'retiring')",
            )
            .bind(kid);
            reach.signing_keys = number(&query.fetch_one(store).await?)?;
        }
        Selector::Issuer(named) if named != issuer => {}
        Selector::Issuer(_) | Selector::Realm(_) => {
            reach.api_keys =
                number(&query(api_keys).bind(not_after.0).bind(now.seconds()).fetch_one(store).await?)?;
            reach.clients = number(&query("SELECT COUNT(*) AS number FROM clients").fetch_one(store).await?)?;
        }
        Selector::Session(_) => {}
    }
    Ok(reach)
}

/// Sessions that are open, were opened by `not_after`, and belong to what is named.
async fn sessions(
    store: &Store,
    selector: &Selector,
    issuer: &str,
    not_after: UnixMillis,
    now: UnixMillis,
) -> Result<u64, StoreError> {
    const OPEN: &str = "SELECT COUNT(*) AS number FROM sessions WHERE status = 'active' AND opened_at <= $1 \
                        AND expires_at > $2 AND idle_expires_at > $2";
    let of = |condition: &str| query(sqlx::AssertSqlSafe(format!("{OPEN} AND {condition}")));
    let open = match selector {
        Selector::Session(id) => of("id = $3").bind(not_after.0).bind(now.0).bind(id),
        Selector::Subject(subject) => {
            let id = Id::of(IdKind::Subject, issuer, subject);
            let of_subject = of("subject_id = $3").bind(not_after.0).bind(now.0);
            return number(&of_subject.bind(id.as_bytes().to_vec()).fetch_one(store).await?);
        }
        Selector::Client(client) => of("client_id = $3").bind(not_after.0).bind(now.0).bind(client),
        Selector::Realm(realm) => of("realm = $3").bind(not_after.0).bind(now.0).bind(realm),
        Selector::Issuer(named) if named == issuer => query(OPEN).bind(not_after.0).bind(now.0),
        Selector::Issuer(_) | Selector::Key(_) | Selector::Token { .. } => return Ok(0),
    };
    number(&open.fetch_one(store).await?)
}

fn number(row: &super::Row) -> Result<u64, StoreError> {
    from_sql("number", row.get("number")?)
}
