//! The revocation engine: makes selectors true in the store and gives them to the feed, in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_core::token::AuthenticToken;
use atm_proto::change::Change;
use serde::Serialize;
use serde_json::Value;

use crate::audit::{Action, Actor, Audit, Event};
use crate::clock::IssueClock;
use crate::feed::{FeedError, FeedHandle};
use crate::keys::{Compromised, Keys, KeysError, Signer};
use crate::registry::FieldError;
use crate::secret;
use crate::store::outbox::{self, Ticket};
use crate::store::{Store, StoreError, Transaction, enforcement, sessions, transact};

mod batch;
mod order;
mod preview;
mod schedule;
mod security_event;
mod selector;
#[cfg(test)]
mod tests;

pub use batch::{BatchProgress, MAX_PART};
pub use order::Order;
pub use preview::{IssuedTokens, Preview};
pub use schedule::{MAX_SCHEDULED_SELECTORS, ScheduleStatus, Scheduled};
pub use security_event::{MEDIA_TYPE, SecurityEventError, Taken, Transmitters};
pub use selector::Selector;

/// Selectors that one call may name.
pub const MAX_SELECTORS: usize = 100_000;
/// Ids that one change carries, so that change sets stay well below NATS's message limit.
const IDS_A_CHANGE: usize = 20_000;
/// As [`IDS_A_CHANGE`]; an entry holds an instant too.
const WATERMARKS_A_CHANGE: usize = 10_000;
/// Selectors of one call from which on it gives way to others.
const BULK: usize = 1_000;
/// Selectors of one call up to which each has an audit event of its own.
const RECORDED_ONE_BY_ONE: usize = 20;

/// The outcome of a revocation call. It is durable and on its way: every sidecar refuses from `revision` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Revoked {
    /// The feed's revision that holds all of it.
    pub revision: u64,
    /// How many selectors were put in force.
    pub revoked: usize,
}

/// What operators see of past calls: one record a call and kind of selector. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevocationRecord {
    /// Random.
    pub id: String,
    /// `token`, `session`, `subject`, `client`, `realm`, `issuer` or `key`.
    pub kind: String,
    /// The value named; the first one of several.
    pub value: String,
    /// The token's issuer, where one was named.
    pub issuer: Option<String>,
    /// How many values the call named.
    pub number: u64,
    /// What was issued until then is revoked.
    pub not_after: i64,
    /// As given by the caller.
    pub reason: Option<String>,
    /// Who called.
    pub actor: String,
    /// When.
    pub created_at: i64,
}

/// Which past calls are listed. Everything given must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationFilter {
    /// `token`, `session`, `subject`, `client`, `realm`, `issuer` or `key`.
    pub kind: Option<String>,
    /// The value named; of several, the first.
    pub value: Option<String>,
    /// Who called.
    pub actor: Option<String>,
    /// The whole reason.
    pub reason: Option<String>,
    /// Not before, in milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
    /// Not after.
    pub until_ms: Option<i64>,
}

/// Why nothing was revoked, or why it is not known to be in the feed.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// Selectors that cannot be accepted; nothing of the call was done.
    #[error("{} selectors cannot be accepted", .0.len())]
    Invalid(Vec<FieldError>),
    /// The store failed; nothing was done.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Our own keys cannot be read or changed; nothing was done.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Committed, not sequenced yet; the feed takes it up as soon as the store lets it.
    #[error(transparent)]
    Feed(#[from] FeedError),
}

/// The engine; clones share everything.
#[derive(Debug, Clone)]
pub struct Revocations {
    store: Store,
    feed: FeedHandle,
    clock: Arc<IssueClock>,
    keys: Keys,
    audit: Audit,
    default_issuer: Arc<str>,
}

/// What an order needs before its transaction.
struct Prepared {
    watermark: UnixMillis,
    records: Vec<RevocationRecord>,
    /// Takes over where the active key is revoked.
    successor: Option<Signer>,
    /// The file that it is a part of.
    batch: Option<String>,
}

/// What an order came to in its transaction.
struct Applied {
    /// Of its last change.
    ticket: Ticket,
    /// Our own keys among what it named.
    keys: Option<Compromised>,
}

impl Prepared {
    /// One record for all parts of the file `batch`.
    fn recorded_as(mut self, batch: &str) -> Self {
        for record in &mut self.records {
            record.id = format!("{batch}:{}", record.kind);
        }
        self.batch = Some(batch.to_owned());
        self
    }
}

impl Revocations {
    /// The engine over `store`. Selectors without an issuer mean `default_issuer`.
    pub fn new(
        store: Store,
        feed: FeedHandle,
        clock: Arc<IssueClock>,
        keys: Keys,
        audit: Audit,
        default_issuer: &str,
    ) -> Self {
        Self { store, feed, clock, keys, audit, default_issuer: default_issuer.into() }
    }

    /// Revokes all of `selectors` or none, 1 to [`MAX_SELECTORS`]. Returns when they are in the log; NATS need not be
    /// there.
    pub async fn revoke(
        &self,
        selectors: &[Selector],
        actor: &str,
        reason: Option<&str>,
    ) -> Result<Revoked, RevocationError> {
        self.carry_out_order(Order { selectors, before: None, actor, reason }).await
    }

    /// As [`Self::revoke`], also for «everything before».
    pub async fn carry_out_order(&self, order: Order<'_>) -> Result<Revoked, RevocationError> {
        self.check(&order)?;
        let prepared = self.prepare(&order).await?;
        let applied = transact!(self.store, |transaction| -> Result<Applied, RevocationError> {
            self.apply(transaction, &order, &prepared).await
        })?;
        self.concluded(&order, &prepared, &applied, None).await
    }

    /// Our own issuer.
    fn issuer(&self) -> &str {
        &self.default_issuer
    }

    /// What is slow or must not be done twice.
    async fn prepare(&self, order: &Order<'_>) -> Result<Prepared, RevocationError> {
        // Before the watermark is taken: a grant under way has then either read the store before, and took its instant before
        // that, or finds what it stands on ended. Of «everything before» the watermark alone ends sessions: later ones live.
        if order.before.is_none() {
            self.end_sessions(order.selectors).await?;
        }
        let kids: Vec<&str> = kids(order.selectors).collect();
        let successor = if kids.is_empty() { None } else { self.keys.successor_of(&kids).await? };
        if order.selectors.len() >= BULK {
            self.store.room().await;
        }
        let now = self.clock.revoke().await?;
        let watermark = order.before.map_or(now, |before| before.min(now));
        let records = records(order, watermark, self.clock.wall())?;
        Ok(Prepared { watermark, records, successor, batch: None })
    }

    /// Makes the order true in `transaction`.
    async fn apply(
        &self,
        transaction: &mut Transaction,
        order: &Order<'_>,
        prepared: &Prepared,
    ) -> Result<Applied, RevocationError> {
        let ticket = self.enforce(transaction, order.selectors, prepared.watermark).await?;
        for record in &prepared.records {
            enforcement::record(transaction, self.keys.realm(), record).await?;
        }
        let kids: Vec<&str> = kids(order.selectors).collect();
        let keys = if kids.is_empty() {
            None
        } else {
            self.keys.compromise(transaction, &kids, prepared.successor.as_ref()).await?
        };
        let ticket = keys.as_ref().map_or(ticket, |keys| keys.ticket.clone());
        Ok(Applied { ticket, keys })
    }

    /// What follows the commit: the record of it, our own keys, and the feed's revision.
    async fn concluded(
        &self,
        order: &Order<'_>,
        prepared: &Prepared,
        applied: &Applied,
        actor: Option<Actor>,
    ) -> Result<Revoked, RevocationError> {
        for event in events(order, prepared, self.keys.realm()) {
            let event = event.detail("on_behalf_of", order.actor);
            self.audit.record(match &actor {
                Some(actor) => event.by(actor.clone()),
                None => event,
            });
        }
        self.keys.concluded(applied.keys.as_ref(), prepared.successor.as_ref()).await;
        let revision = self.feed.sequenced(&applied.ticket).await?;
        Ok(Revoked { revision, revoked: order.selectors.len() })
    }

    /// Makes the store refuse what the scopes cover, ahead of the feed: no refresh and no exchange begins any more with what was
    /// issued until now. Sessions that are named, by themselves or by their subject, end in their rows, too. Should what follows
    /// fail, the next call of the same completes it.
    async fn end_sessions(&self, selectors: &[Selector]) -> Result<(), StoreError> {
        let named: Vec<&str> = selectors
            .iter()
            .filter_map(|selector| match selector {
                Selector::Session(id) => Some(id.as_str()),
                _ => None,
            })
            .collect();
        let subjects: Vec<Id> = selectors
            .iter()
            .filter(|selector| matches!(selector, Selector::Subject(_)))
            .map(|selector| selector.id(&self.default_issuer))
            .collect();
        let scopes: Vec<(IdKind, Id)> = selectors
            .iter()
            .filter(|selector| !matches!(selector, Selector::Token { .. } | Selector::Key(_)))
            .map(|selector| (selector.kind(), selector.id(&self.default_issuer)))
            .collect();
        if scopes.is_empty() {
            return Ok(());
        }
        let (now, until) = (self.clock.wall(), self.clock.revoke().await?);
        transact!(self.store, |transaction| -> Result<(), StoreError> {
            for kind in IdKind::ALL {
                let of_kind = scopes.iter().filter(|(scope, _)| *scope == kind);
                let entries: BTreeMap<Id, UnixMillis> = of_kind.map(|(_, id)| (*id, until)).collect();
                let entries: Vec<_> = entries.into_iter().collect();
                enforcement::end_scopes(transaction, kind, &entries).await?;
            }
            sessions::end_named(transaction, self.keys.realm(), &named, now).await?;
            for subject in &subjects {
                sessions::end_of_subject(transaction, *subject, now).await?;
            }
            Ok(())
        })
    }

    /// The realm's past calls that fit, the newest first, behind `after` (instant and id), at most `limit`.
    pub async fn list(
        &self,
        filter: &RevocationFilter,
        after: Option<(i64, &str)>,
        limit: u32,
    ) -> Result<Vec<RevocationRecord>, StoreError> {
        enforcement::list(&self.store, self.keys.realm(), filter, after, limit).await
    }

    /// Whether the token is revoked by itself or by any scope it belongs to; for introspection (RFC 7662).
    pub async fn is_revoked(&self, token: &AuthenticToken) -> Result<bool, StoreError> {
        let ids = &token.ids;
        let own = ids.token.map(|id| (ids.bucket, id));
        let tokens: Vec<(Bucket, Id)> = own.into_iter().chain(ids.ancestors.iter().copied()).collect();
        let kinds = [
            (IdKind::Session, ids.session.as_slice()),
            (IdKind::Client, ids.client.as_slice()),
            (IdKind::Realm, ids.realm.as_slice()),
            (IdKind::Issuer, std::slice::from_ref(&ids.issuer)),
            (IdKind::Key, ids.key.as_slice()),
            (IdKind::Subject, ids.subjects.as_slice()),
        ];
        let scopes: Vec<(IdKind, Id)> =
            kinds.into_iter().flat_map(|(kind, ids)| ids.iter().map(move |id| (kind, *id))).collect();
        enforcement::is_revoked(&self.store, &tokens, &scopes, token.claims.issued_at).await
    }

    /// The feed's newest revision.
    pub fn position(&self) -> u64 {
        self.feed.position().revision
    }

    /// Enqueues the changes, which the sequencer puts in force as it gives them their revisions. The ticket is the last one's.
    async fn enforce(
        &self,
        transaction: &mut Transaction,
        selectors: &[Selector],
        watermark: UnixMillis,
    ) -> Result<Ticket, RevocationError> {
        let now = self.clock.wall();
        let mut tokens: BTreeMap<u32, BTreeSet<Id>> = BTreeMap::new();
        let mut scopes: BTreeMap<u8, (IdKind, BTreeSet<Id>)> = BTreeMap::new();
        for selector in selectors {
            let id = selector.id(&self.default_issuer);
            if let Selector::Token { expires_at, .. } = selector {
                let bucket = expires_at.map_or(Bucket::UNKNOWN, Bucket::of_expiry);
                tokens.entry(bucket.0).or_default().insert(id);
            } else {
                let kind = selector.kind();
                scopes.entry(kind as u8).or_insert_with(|| (kind, BTreeSet::new())).1.insert(id);
            }
        }
        let mut changes = Vec::new();
        for (bucket, ids) in tokens {
            let (bucket, ids) = (Bucket(bucket), Vec::from_iter(ids));
            let chunks = ids.chunks(IDS_A_CHANGE);
            changes.extend(chunks.map(|ids| Change::RevokedTokens { bucket, ids: ids.to_vec() }));
        }
        for (kind, ids) in scopes.into_values() {
            let entries: Vec<_> = ids.into_iter().map(|id| (id, watermark)).collect();
            let chunks = entries.chunks(WATERMARKS_A_CHANGE);
            changes.extend(chunks.map(|entries| Change::Watermarks { kind, entries: entries.to_vec() }));
        }
        Ok(outbox::enqueue_all(transaction, &changes, now).await?)
    }
}

/// The kids among `selectors`.
fn kids(selectors: &[Selector]) -> impl Iterator<Item = &str> {
    selectors.iter().filter_map(|selector| match selector {
        Selector::Key(kid) => Some(kid.as_str()),
        _ => None,
    })
}

/// What is recorded of an order: an event for each of a few selectors, one for many.
fn events(order: &Order<'_>, prepared: &Prepared, realm: &str) -> Vec<Event> {
    let event = || {
        let event = Event::of(Action::Revoked).realm(realm).detail("not_after_ms", prepared.watermark.0);
        let reason = order.reason.into_iter();
        let event = reason.fold(event, |event, reason| event.detail("why", reason));
        prepared.batch.iter().fold(event, |event, batch| event.detail("batch", batch.as_str()))
    };
    if order.selectors.len() > RECORDED_ONE_BY_ONE {
        let kinds =
            prepared.records.iter().map(|record| (record.kind.clone(), record.number.into())).collect();
        return vec![event().detail("number", order.selectors.len()).detail("kinds", Value::Object(kinds))];
    }
    let about = |selector: &Selector| {
        let (event, value) = (event().detail("kind", selector.kind_name()), selector.value());
        match selector {
            Selector::Token { issuer, .. } => issuer.iter().fold(event.token(value), Event::issuer),
            Selector::Session(_) => event.session(value),
            Selector::Subject(_) => event.subject(value),
            Selector::Client(_) => event.client(value),
            Selector::Realm(_) => event.realm(value),
            Selector::Issuer(_) => event.issuer(value),
            Selector::Key(_) => event.key(value),
        }
    };
    order.selectors.iter().map(about).collect()
}

fn records(
    order: &Order<'_>,
    watermark: UnixMillis,
    now: UnixMillis,
) -> Result<Vec<RevocationRecord>, StoreError> {
    let Order { selectors, actor, reason, .. } = *order;
    let mut by_kind: BTreeMap<&'static str, (u64, &Selector)> = BTreeMap::new();
    for selector in selectors {
        by_kind.entry(selector.kind_name()).or_insert((0, selector)).0 += 1;
    }
    by_kind
        .into_iter()
        .map(|(kind, (number, first))| {
            Ok(RevocationRecord {
                id: secret::random_id()?,
                kind: kind.to_owned(),
                value: first.value().to_owned(),
                issuer: match first {
                    Selector::Token { issuer, .. } => issuer.clone(),
                    _ => None,
                },
                number,
                not_after: watermark.0,
                reason: reason.map(ToOwned::to_owned),
                actor: actor.to_owned(),
                created_at: now.0,
            })
        })
        .collect()
}
