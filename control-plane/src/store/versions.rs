//! Tells copies in memory that another replica has changed what they were made from.
//!
//! Whoever changes something that is copied calls [`bump`] in the same transaction. Whoever holds a copy notes
//! [`Store::version`] **before** it reads, and reads again when the version has moved. A replica learns of the others' versions
//! with every instant of the issue clock, so that no token is issued from a copy that was stale when its request came, and
//! by looking in [`FOLLOW_EVERY`]. A new topic needs its row: `INSERT INTO versions` in a migration.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::{Row, Store, StoreError, Transaction, from_sql, query};

/// How often a replica that issues nothing looks at what the others have changed.
pub(crate) const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// What copies are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    /// Our signing keys and their states.
    SigningKeys,
    /// Clients and their secrets.
    Clients,
    /// Realms beside the default one.
    Realms,
}

const TOPICS: [Topic; 3] = [Topic::SigningKeys, Topic::Clients, Topic::Realms];

impl Topic {
    /// Its row in the table `versions`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::SigningKeys => "signing_keys",
            Self::Clients => "clients",
            Self::Realms => "realms",
        }
    }
}

/// The newest versions that this process knows of.
#[derive(Debug, Default)]
pub(super) struct Known {
    versions: [AtomicU64; TOPICS.len()],
    changed: watch::Sender<()>,
}

impl Known {
    pub(super) fn note(&self, topic: Topic, version: u64) {
        let is_new = self.versions[topic as usize].fetch_max(version, Ordering::SeqCst) < version;
        if is_new && topic == Topic::SigningKeys {
            self.changed.send_replace(());
        }
    }

    /// Takes over what `rows` with columns `topic` and `version` say.
    pub(super) fn note_all(&self, rows: &[Row]) -> Result<(), StoreError> {
        for row in rows {
            let name: String = row.get("topic")?;
            let version = from_sql("version", row.get("version")?)?;
            // Topics of a later version are copied by nobody here.
            if let Some(topic) = TOPICS.into_iter().find(|topic| topic.as_str() == name) {
                self.note(topic, version);
            }
        }
        Ok(())
    }
}

/// Says that what belongs to `topic` changes with this transaction.
pub(crate) async fn bump(transaction: &mut Transaction, topic: Topic) -> Result<(), StoreError> {
    let row = query("UPDATE versions SET version = version + 1 WHERE topic = $1 RETURNING version")
        .bind(topic.as_str())
        .fetch_one(&mut *transaction)
        .await?;
    transaction.bumps(topic, from_sql("version", row.get("version")?)?);
    Ok(())
}

impl Store {
    /// The newest version of `topic` that this process knows of.
    pub(crate) fn version(&self, topic: Topic) -> u64 {
        self.0.versions.versions[topic as usize].load(Ordering::SeqCst)
    }

    /// Is told of every version of the signing keys that becomes known here, because their tasks wait for it. Other copies are
    /// compared with the newest version when they are needed.
    pub(crate) fn versions_changed(&self) -> watch::Receiver<()> {
        self.0.versions.changed.subscribe()
    }

    /// Learns what other replicas have changed.
    pub(crate) async fn look_at_versions(&self) -> Result<(), StoreError> {
        let rows = query("SELECT topic, version FROM versions").fetch_all(self).await?;
        self.0.versions.note_all(&rows)
    }

    /// Looks again and again, for replicas that issue nothing. Does nothing on a store of one process.
    pub(crate) async fn follow_versions(self) {
        let mut ticks = tokio::time::interval(FOLLOW_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.is_shared()
                && let Err(error) = self.look_at_versions().await
            {
                tracing::warn!(%error, "what other replicas change is not seen now; trying again");
            }
        }
    }
}
