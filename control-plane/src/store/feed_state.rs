//! What the log has come to at its head: single tokens, watermarks, key sets, policies, and their digests.
//!
//! Only the sequencer writes here, under the head's lock and in the transaction that moves the head. So a reader that sees
//! the head in the same transaction sees exactly the state at that revision.

use std::collections::BTreeMap;

use atm_core::id::{Id, IdKind};
use atm_core::revocation::{Bucket, Part, SetDigest};
use atm_core::time::UnixMillis;
use atm_proto::change::Change;
use atm_proto::digests::StateDigests;

use super::log::{self, Head};
use super::{Row, Store, StoreError, Transaction, corrupt, enforcement, from_sql, query, to_sql, transact};

/// The name of the policy set among the values; issuers' names are longer.
const POLICIES: &str = "policies";

/// Puts `changes` in force, in order.
pub(crate) async fn apply(transaction: &mut Transaction, changes: &[Change]) -> Result<(), StoreError> {
    let mut deltas = Deltas::default();
    for change in changes {
        match change {
            Change::RevokedTokens { bucket, ids } => {
                let added = enforcement::add_tokens(transaction, *bucket, ids).await?;
                let digest = deltas.of(Part::Tokens(*bucket));
                *digest = digest.joined(SetDigest::of_tokens(&added));
            }
            Change::Watermarks { kind, entries } => {
                let risen = enforcement::raise_watermarks(transaction, *kind, entries).await?;
                let digest = deltas.of(Part::Watermarks(*kind));
                for (id, before, now) in risen {
                    if let Some(before) = before {
                        digest.remove_watermark(&id, before);
                    }
                    digest.add_watermark(&id, now);
                }
            }
            Change::IssuerKeys { issuer, keys, .. } if keys.is_empty() => {
                query("DELETE FROM feed_values WHERE name = $1")
                    .bind(issuer_name(issuer))
                    .execute(transaction)
                    .await?;
            }
            Change::IssuerKeys { issuer, .. } => set_value(transaction, &issuer_name(issuer), change).await?,
            Change::Policies { .. } => set_value(transaction, POLICIES, change).await?,
        }
    }
    deltas.write(transaction).await
}

/// What each part's digest is to change by. Sums wrap, so that a delta may be negative.
#[derive(Default)]
struct Deltas(BTreeMap<Part, SetDigest>);

impl Deltas {
    fn of(&mut self, part: Part) -> &mut SetDigest {
        self.0.entry(part).or_default()
    }

    async fn write(self, transaction: &mut Transaction) -> Result<(), StoreError> {
        for (part, delta) in self.0 {
            if delta == SetDigest::EMPTY {
                continue;
            }
            let (kind, bucket) = columns(part);
            let row = query("SELECT kind, bucket, digest FROM feed_digests WHERE kind = $1 AND bucket = $2")
                .bind(kind)
                .bind(bucket)
                .fetch_optional(&mut *transaction)
                .await?;
            let before =
                row.as_ref().map(digest_from).transpose()?.map_or(SetDigest::EMPTY, |(_, digest)| digest);
            write_digest(transaction, part, before.joined(delta)).await?;
        }
        Ok(())
    }
}

fn columns(part: Part) -> (i64, i64) {
    match part {
        Part::Tokens(bucket) => (IdKind::Token as i64, i64::from(bucket.0)),
        Part::Watermarks(kind) => (kind as i64, 0),
    }
}

async fn write_digest(
    transaction: &mut Transaction,
    part: Part,
    digest: SetDigest,
) -> Result<(), StoreError> {
    let (kind, bucket) = columns(part);
    query(
        "INSERT INTO feed_digests (kind, bucket, digest) VALUES ($1, $2, $3) \
         ON CONFLICT (kind, bucket) DO UPDATE SET digest = excluded.digest",
    )
    .bind(kind)
    .bind(bucket)
    .bind(digest.to_bytes().to_vec())
    .execute(transaction)
    .await?;
    Ok(())
}

fn issuer_name(issuer: &str) -> String {
    format!("issuer:{issuer}")
}

async fn set_value(transaction: &mut Transaction, name: &str, change: &Change) -> Result<(), StoreError> {
    query(
        "INSERT INTO feed_values (name, change) VALUES ($1, $2) \
         ON CONFLICT (name) DO UPDATE SET change = excluded.change",
    )
    .bind(name)
    .bind(change.encode())
    .execute(transaction)
    .await?;
    Ok(())
}

/// The key sets and the policy set in force, by name.
pub(crate) async fn values(transaction: &mut Transaction) -> Result<Vec<Change>, StoreError> {
    query("SELECT change FROM feed_values ORDER BY name")
        .fetch_all(&mut *transaction)
        .await?
        .iter()
        .map(|row| {
            let bytes: Vec<u8> = row.get("change")?;
            Change::decode(&bytes).map_err(|error| corrupt("value of the feed", error))
        })
        .collect()
}

/// The head, and what there is at it, as of one instant.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) head: Head,
    /// Of the state at the head.
    pub(crate) digests: StateDigests,
    /// Revision of the newest snapshot of the head's epoch; 0 for none.
    pub(crate) snapshot: u64,
}

/// How the log stands.
pub(crate) async fn standing(store: &Store) -> Result<Standing, StoreError> {
    let mut transaction = store.begin_read().await?;
    let head = log::head(&mut transaction).await?;
    let digests = digests(&mut transaction).await?;
    let newest: Option<i64> = query("SELECT MAX(revision) AS newest FROM snapshots WHERE epoch = $1")
        .bind(head.epoch.as_bytes())
        .fetch_one(&mut transaction)
        .await?
        .get("newest")?;
    transaction.commit().await?;
    let snapshot = newest.map(|revision| from_sql("revision", revision)).transpose()?.unwrap_or(0);
    Ok(Standing { head, digests, snapshot })
}

/// The digests of all parts, as of the transaction.
pub(crate) async fn digests(transaction: &mut Transaction) -> Result<StateDigests, StoreError> {
    query("SELECT kind, bucket, digest FROM feed_digests")
        .fetch_all(&mut *transaction)
        .await?
        .iter()
        .map(digest_from)
        .collect()
}

fn digest_from(row: &Row) -> Result<(Part, SetDigest), StoreError> {
    let kind = u8::try_from(row.get::<i64>("kind")?)
        .ok()
        .and_then(IdKind::from_number)
        .ok_or_else(|| corrupt("digest", "has a kind that is not known"))?;
    let bucket = u32::try_from(row.get::<i64>("bucket")?).map_err(|error| corrupt("bucket", error))?;
    let digest: Vec<u8> = row.get("digest")?;
    let digest = digest.try_into().map_err(|_| corrupt("digest", "is not of 24 bytes"))?;
    let part = if kind == IdKind::Token { Part::Tokens(Bucket(bucket)) } else { Part::Watermarks(kind) };
    Ok((part, SetDigest::from_bytes(&digest)))
}

/// Computes all digests from what the tables hold, a page at a time.
pub(crate) async fn computed_digests(transaction: &mut Transaction) -> Result<StateDigests, StoreError> {
    let mut digests = StateDigests::default();
    let mut after: Option<(Bucket, Id)> = None;
    loop {
        let page = enforcement::tokens_after(transaction, after, 20_000).await?;
        let Some(last) = page.last() else { break };
        after = Some(*last);
        for tokens in page.chunk_by(|a, b| a.0 == b.0) {
            let digest = SetDigest::of_tokens(tokens.iter().map(|(_, id)| id));
            digests.join(Part::Tokens(tokens[0].0), digest); // chunks are never empty
        }
    }
    for kind in IdKind::ALL {
        let mut after: Option<Id> = None;
        loop {
            let page = enforcement::watermarks_after(transaction, kind, after, 20_000).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let mut digest = SetDigest::EMPTY;
            for (id, instant) in &page {
                digest.add_watermark(id, *instant);
            }
            digests.join(Part::Watermarks(kind), digest);
        }
    }
    Ok(digests)
}

/// A store of a version before digests is brought up to date: they are computed, and the values are folded out of the log,
/// which was never pruned then.
pub(crate) async fn ensure(store: &Store) -> Result<(), StoreError> {
    let known =
        query("SELECT (SELECT COUNT(*) FROM feed_digests) + (SELECT COUNT(*) FROM feed_values) AS known")
            .fetch_one(store)
            .await?
            .get::<i64>("known")?;
    if known > 0 || log::head(store).await?.revision == 0 {
        return Ok(());
    }
    transact!(RowLocks: store, |transaction| -> Result<(), StoreError> {
        let head = log::locked_head(transaction).await?;
        let mut next = 1;
        loop {
            let page = log::sets_from(store, head.epoch, next, 16).await?;
            let Some(last) = page.last() else { break };
            next = last.revision + 1;
            for set in page {
                for change in set.changes()? {
                    if matches!(change, Change::IssuerKeys { .. } | Change::Policies { .. }) {
                        apply(transaction, std::slice::from_ref(&change)).await?;
                    }
                }
            }
        }
        for (part, digest) in computed_digests(transaction).await?.iter() {
            write_digest(transaction, part, digest).await?;
        }
        Ok(())
    })
}

/// Forgets the digests of token buckets before `oldest`, with which the tokens go.
pub(crate) async fn forget_buckets(transaction: &mut Transaction, oldest: Bucket) -> Result<(), StoreError> {
    query("DELETE FROM feed_digests WHERE kind = $1 AND bucket > $2 AND bucket < $3")
        .bind(IdKind::Token as i64)
        .bind(i64::from(Bucket::UNKNOWN.0))
        .bind(i64::from(oldest.0))
        .execute(transaction)
        .await?;
    Ok(())
}

/// One signed manifest as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredSnapshot {
    pub(crate) revision: u64,
    /// The encoded `Signed` envelope.
    pub(crate) manifest: Vec<u8>,
    pub(crate) created_at: UnixMillis,
}

/// Keeps a manifest; the last one of a revision counts.
pub(crate) async fn add_snapshot(
    transaction: &mut Transaction,
    head: &Head,
    manifest: &[u8],
    now: UnixMillis,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO snapshots (epoch, revision, manifest, created_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (epoch, revision) DO UPDATE SET manifest = excluded.manifest, created_at = excluded.created_at",
    )
    .bind(head.epoch.as_bytes())
    .bind(to_sql(head.revision))
    .bind(manifest.to_vec())
    .bind(now.0)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The newest snapshot of whatever epoch.
pub(crate) async fn newest_snapshot(store: &Store) -> Result<Option<StoredSnapshot>, StoreError> {
    query("SELECT revision, manifest, created_at FROM snapshots ORDER BY created_at DESC LIMIT 1")
        .fetch_optional(store)
        .await?
        .as_ref()
        .map(snapshot_from)
        .transpose()
}

/// The snapshots of the epoch, the newest first.
pub(crate) async fn snapshots(
    store: &Store,
    epoch: atm_proto::change::Epoch,
) -> Result<Vec<StoredSnapshot>, StoreError> {
    query("SELECT revision, manifest, created_at FROM snapshots WHERE epoch = $1 ORDER BY revision DESC")
        .bind(epoch.as_bytes())
        .fetch_all(store)
        .await?
        .iter()
        .map(snapshot_from)
        .collect()
}

fn snapshot_from(row: &Row) -> Result<StoredSnapshot, StoreError> {
    Ok(StoredSnapshot {
        revision: from_sql("revision", row.get("revision")?)?,
        manifest: row.get("manifest")?,
        created_at: UnixMillis(row.get("created_at")?),
    })
}

/// Forgets the snapshots before `revision`, and those of other epochs.
pub(crate) async fn forget_snapshots(
    store: &Store,
    epoch: atm_proto::change::Epoch,
    revision: u64,
) -> Result<(), StoreError> {
    query("DELETE FROM snapshots WHERE epoch <> $1 OR revision < $2")
        .bind(epoch.as_bytes())
        .bind(to_sql(revision))
        .execute_alone(store)
        .await?;
    Ok(())
}

/// Takes or extends the lease `name` for `holder`; false while another holds it.
pub(crate) async fn take_lease(
    store: &Store,
    name: &str,
    holder: &str,
    now: UnixMillis,
    until: UnixMillis,
) -> Result<bool, StoreError> {
    let done = query(
        "INSERT INTO feed_leases (name, holder, until) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE \
         SET holder = excluded.holder, until = excluded.until \
         WHERE feed_leases.holder = excluded.holder OR feed_leases.until < $4",
    )
    .bind(name)
    .bind(holder)
    .bind(until.0)
    .bind(now.0)
    .execute_alone(store)
    .await?;
    Ok(done > 0)
}

/// All rotations of feed keys, signed, the oldest first.
pub(crate) async fn rotations(store: &Store) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    query("SELECT number, signed FROM feed_rotations ORDER BY number")
        .fetch_all(store)
        .await?
        .iter()
        .map(|row| Ok((from_sql("number", row.get("number")?)?, row.get("signed")?)))
        .collect()
}

/// Keeps the next rotation. Fails with [`StoreError::Exists`] where another process was faster.
pub(crate) async fn add_rotation(
    store: &Store,
    number: u64,
    signed: &[u8],
    now: UnixMillis,
) -> Result<(), StoreError> {
    query("INSERT INTO feed_rotations (number, signed, created_at) VALUES ($1, $2, $3)")
        .bind(to_sql(number))
        .bind(signed.to_vec())
        .bind(now.0)
        .execute_alone(store)
        .await?;
    Ok(())
}
