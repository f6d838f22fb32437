//! How much a revocation would hit.

use atm_core::id::{Id, IdKind};
use atm_core::time::UnixMillis;

use super::query::Query;
use super::{Store, StoreError, clients, from_sql, query};
use crate::realms::{self, DEFAULT_REALM};
use crate::revocation::Selector;

/// Numbers of what is in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) sessions: u64,
    pub(crate) api_keys: u64,
    pub(crate) clients: u64,
    pub(crate) signing_keys: u64,
}

/// Where the revocation is asked for: ids that say no more are of that realm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Home<'a> {
    pub(crate) realm: &'a str,
    pub(crate) issuer: &'a str,
}

impl<'a> Home<'a> {
    /// The realm of an issuer as seen from here: this one's, or from the default realm that of another one.
    fn realm_of(self, issuer: &'a str) -> Option<&'a str> {
        if issuer == self.issuer {
            return Some(self.realm);
        }
        realms::name_in(self.issuer, issuer).filter(|_| self.realm == DEFAULT_REALM)
    }
}

/// Counts what there was at `not_after` and is in force `now`.
#[derive(Clone, Copy)]
struct Count<'a> {
    store: &'a Store,
    not_after: UnixMillis,
    now: UnixMillis,
}

/// What `selector` would hit of what was there at `not_after`, as of `now`.
pub(crate) async fn of(
    store: &Store,
    selector: &Selector,
    home: Home<'_>,
    not_after: UnixMillis,
    now: UnixMillis,
) -> Result<Reach, StoreError> {
    let count = Count { store, not_after, now };
    let mut reach = Reach::default();
    match selector {
        Selector::Token { jti, issuer, .. } if issuer.as_deref().is_none_or(|named| named == home.issuer) => {
            reach.api_keys = count.api_keys(home.realm, Some(("id", jti))).await?;
        }
        Selector::Token { .. } => {}
        Selector::Session(id) => {
            reach.sessions =
                count.sessions("realm = $3 AND id = $4", |query| query.bind(home.realm).bind(id)).await?;
        }
        Selector::Subject(subject) => {
            let id = Id::of(IdKind::Subject, home.issuer, subject).as_bytes().to_vec();
            reach.sessions = count.sessions("subject_id = $3", |query| query.bind(id)).await?;
            reach.api_keys = count.api_keys(home.realm, Some(("subject", subject))).await?;
        }
        Selector::Client(client) => {
            reach.sessions = count
                .sessions("realm = $3 AND client_id = $4", |query| query.bind(home.realm).bind(client))
                .await?;
            reach.clients = count.clients(home.realm, Some(client)).await?;
        }
        Selector::Key(kid) => {
            let row = query(
                "SELECT COUNT(*) AS number FROM signing_keys WHERE kid = $1 AND issuer = $2 \
                 AND state IN ('pending', 'active', 'retiring')",
            );
            reach.signing_keys = number(row.bind(kid).bind(home.issuer), store).await?;
        }
        Selector::Realm(realm) => reach = count.whole(realm).await?,
        Selector::Issuer(issuer) => {
            if let Some(realm) = home.realm_of(issuer) {
                reach = count.whole(realm).await?;
            }
        }
    }
    Ok(reach)
}

impl Count<'_> {
    /// Everything of a realm.
    async fn whole(self, realm: &str) -> Result<Reach, StoreError> {
        Ok(Reach {
            sessions: self.sessions("realm = $3", |query| query.bind(realm)).await?,
            api_keys: self.api_keys(realm, None).await?,
            clients: self.clients(realm, None).await?,
            signing_keys: 0,
        })
    }

    /// Sessions that are open; the condition's parameters begin at `$3`.
    async fn sessions<'q>(
        self,
        condition: &str,
        bind: impl FnOnce(Query<'q>) -> Query<'q>,
    ) -> Result<u64, StoreError> {
        let open = query(sqlx::AssertSqlSafe(format!(
            "SELECT COUNT(*) AS number FROM sessions WHERE status = 'active' AND opened_at <= $1 \
             AND expires_at > $2 AND idle_expires_at > $2 AND {condition}"
        )));
        number(bind(open.bind(self.not_after.0).bind(self.now.0)), self.store).await
    }

    /// API keys, all or with this value in the column. They are the default realm's.
    async fn api_keys(self, realm: &str, having: Option<(&str, &str)>) -> Result<u64, StoreError> {
        if realm != DEFAULT_REALM {
            return Ok(0);
        }
        // A key's end is in seconds, as in a token.
        let all = "SELECT COUNT(*) AS number FROM api_keys WHERE status = 'active' AND created_at <= $1 AND expires_at > $2";
        let counted = match having {
            Some((column, value)) => query(sqlx::AssertSqlSafe(format!("{all} AND {column} = $3")))
                .bind(self.not_after.0)
                .bind(self.now.seconds())
                .bind(value),
            None => query(all).bind(self.not_after.0).bind(self.now.seconds()),
        };
        number(counted, self.store).await
    }

    /// Clients of the realm, all or the one of this id.
    async fn clients(self, realm: &str, id: Option<&str>) -> Result<u64, StoreError> {
        let all = "SELECT COUNT(*) AS number FROM clients WHERE realm = $1";
        let counted = match id {
            Some(id) => query(sqlx::AssertSqlSafe(format!("{all} AND client_id = $2")))
                .bind(realm)
                .bind(clients::key(realm, id).into_owned()),
            None => query(all).bind(realm),
        };
        number(counted, self.store).await
    }
}

async fn number(counted: Query<'_>, store: &Store) -> Result<u64, StoreError> {
    from_sql("number", counted.fetch_one(store).await?.get("number")?)
}
