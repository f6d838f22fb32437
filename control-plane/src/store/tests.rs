//! The store's contract: what every engine of it must do. Each test here runs on the embedded store and on a real PostgreSQL.

use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_proto::change::{Change, Digest};
use tempfile::TempDir;

use super::*;
use crate::store::log::StoredChangeSet;
use crate::store::outbox::Ticket;

mod audit_chains;
mod clock;
mod concurrency;
mod feed;
mod group;
mod jobs;
mod oauth;
mod opening;
mod plans;
mod purge;
mod reach;
mod realm_retention;
mod sealing;

/// Where a test's store is.
pub(crate) struct Place {
    settings: StoreSettings,
    /// Deleted when dropped.
    directory: TempDir,
}

impl Place {
    pub(crate) fn embedded() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { settings: StoreSettings::Embedded(directory.path().join("atm.db")), directory }
    }

    pub(crate) async fn postgres() -> Self {
        let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
        let settings = StoreSettings::Postgres(postgres_settings(url));
        Self { settings, directory: tempfile::tempdir().unwrap() }
    }

    /// Opens it, once more on PostgreSQL, or anew.
    pub(crate) async fn open(&self) -> Store {
        Store::open(&self.settings).await.unwrap()
    }
}

pub(crate) fn postgres_settings(url: String) -> PostgresSettings {
    PostgresSettings {
        url,
        password: None,
        tls: Some(PostgresTls::Disable),
        ca_certificate: None,
        client_certificate: None,
        max_connections: 8,
        acquire_timeout: std::time::Duration::from_secs(10),
        statement_timeout: std::time::Duration::from_secs(10),
    }
}

/// Runs each of the functions on both engines.
macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::store::tests::Place::embedded()).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::store::tests::Place::postgres().await).await;
            })+
        }
    };
}
pub(crate) use contract;

fn id(number: u32) -> Id {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

fn tokens(number: u32) -> Change {
    Change::RevokedTokens { bucket: Bucket(9), ids: vec![id(number)] }
}

/// Whether the token is revoked by itself.
async fn is_token_revoked(store: &Store, bucket: u32, id: Id) -> bool {
    enforcement::is_revoked(store, &[(Bucket(bucket), id)], &[], UnixMillis(0)).await.unwrap()
}

/// Enqueues in a transaction of its own.
async fn enqueued(store: &Store, change: &Change, at: i64) -> Ticket {
    transact!(store, |transaction| -> Result<Ticket, StoreError> {
        outbox::enqueue(transaction, change, UnixMillis(at)).await
    })
    .unwrap()
}

/// The tokens that are revoked by `changes`.
fn revoked(changes: &[Change]) -> Vec<Id> {
    let ids = changes.iter().map(|change| match change {
        Change::RevokedTokens { ids, .. } => &ids[..],
        other => panic!("{other:?}"),
    });
    ids.collect::<Vec<_>>().concat()
}

/// Sequences what is there, as the feed does, one set of everything. Returns the rows.
async fn sequenced(store: &Store) -> Vec<Change> {
    transact!(RowLocks: store, |transaction| -> Result<Vec<Change>, StoreError> {
        let head = log::locked_head(transaction).await?;
        let rows = outbox::unsequenced(transaction, 10_000, usize::MAX).await?.rows;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let revision = head.revision + 1;
        let digest = Digest::of(&revision.to_be_bytes());
        let set = StoredChangeSet { epoch: head.epoch, revision, digest, signed: vec![1] };
        log::append(transaction, &set, UnixMillis(0)).await?;
        let ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
        outbox::mark_sequenced(transaction, &ids, head.epoch, revision).await?;
        Ok(rows.into_iter().map(|row| row.change).collect())
    })
    .unwrap()
}
