//! Sees to it that JetStream holds exactly what the store holds: publishes in order, finds what the carrier lost, and sends
//! the same bytes again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::context::{PublishAckFuture, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, Republish, StorageType, Stream,
};
use async_nats::jetstream::{self, Context};
use atm_proto::change::{ChangeSet, Epoch};
use atm_proto::signature::{Domain, TrustedFeedKeys};
use atm_proto::subject::{REVISION_HEADER, STREAM};
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Carrier, is_connected};
use super::{Position, Shared, SnapshotError, count, epoch};
use crate::store::StoreError;
use crate::store::log::{self, StoredChangeSet};

/// Change sets of one read from the store.
const PAGE: u32 = 16;
/// How often what JetStream holds is compared with the store.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// How long JetStream may take for an answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Messages looked at for the last one of ours, where others have been published under our subject.
const LOOK_BACK: u64 = 256;

/// What JetStream holds at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail {
    /// Sequence of the stream's last message.
    sequence: u64,
    /// Our revision in it; 0 when it holds none of this epoch.
    revision: u64,
}

/// What keeps the relay from going on.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("jetstream: {0}")]
    JetStream(String),
    #[error("jetstream moved under us")]
    Moved,
    #[error(
        "jetstream holds another log of our feed key: does a control plane with another store publish here?"
    )]
    Foreign,
    #[error("the log cannot begin a new epoch: {0}")]
    Epoch(#[from] SnapshotError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn jetstream_error(error: impl std::fmt::Display) -> RelayError {
    RelayError::JetStream(error.to_string())
}

/// What the stream's last message of ours turned out to be.
enum LastSet {
    None,
    Ours(u64),
    /// A revision that our store never had, or with other bytes: the store was restored from an older copy.
    Ahead(Epoch),
    OtherEpoch,
}

struct Relay {
    shared: Arc<Shared>,
    client: Client,
    context: Context,
    tail: Option<Tail>,
    compared: Option<Instant>,
    /// The highest revision that JetStream has ever acknowledged to us in this epoch.
    acknowledged: Option<Position>,
}

pub(super) async fn run(shared: Arc<Shared>, client: Client) {
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER);
    let mut relay = Relay {
        shared: Arc::clone(&shared),
        client,
        context,
        tail: None,
        compared: None,
        acknowledged: None,
    };
    loop {
        if is_connected(&relay.client) {
            match relay.step().await {
                Ok(()) => {
                    shared.fleet.listening(true);
                    shared.set_carrier(Carrier::Connected);
                }
                Err(RelayError::Moved) => {
                    relay.tail = None;
                    // Whoever moved it is a replica at the same work, so the next look succeeds.
                    sleep(Duration::from_millis(5)).await;
                    continue;
                }
                Err(error) => {
                    relay.tail = None;
                    count(&shared.counters.publish_failures);
                    shared.set_carrier(Carrier::Degraded(error.to_string()));
                    sleep(Duration::from_millis(100)).await;
                }
            }
        } else {
            relay.tail = None;
            shared.fleet.listening(false);
        }
        let _ = timeout(COMPARE_EVERY, shared.sequenced.notified()).await;
        shared.fleet.forget_old();
    }
}

impl Relay {
    /// Compares if it is time, and publishes what is missing.
    async fn step(&mut self) -> Result<(), RelayError> {
        let due = self.compared.is_none_or(|at| at.elapsed() >= COMPARE_EVERY);
        let mut tail = match self.tail {
            Some(tail) if !due => tail,
            _ => self.compare().await?,
        };
        self.tail = Some(tail);
        loop {
            let position = *self.shared.position.borrow();
            if tail.revision >= position.revision {
                return Ok(());
            }
            let sets = log::sets_from(&self.shared.store, position.epoch, tail.revision + 1, PAGE).await?;
            if sets.is_empty() {
                return Ok(()); // a new epoch has begun in between
            }
            for set in sets {
                tail = self.publish(&set, tail).await?;
                self.tail = Some(tail);
                self.acknowledged(&set);
            }
        }
    }

    fn acknowledged(&mut self, set: &StoredChangeSet) {
        let again =
            self.acknowledged.is_some_and(|last| last.epoch == set.epoch && last.revision >= set.revision);
        count(&self.shared.counters.change_sets_published);
        if again {
            count(&self.shared.counters.change_sets_republished);
            tracing::warn!(revision = set.revision, "jetstream had lost a change set; published again");
        } else {
            self.acknowledged =
                Some(Position { epoch: set.epoch, revision: set.revision, digest: set.digest });
        }
        self.shared.published.send_replace(set.revision);
    }

    /// Publishes `set` right after `tail`, or learns that the tail is another.
    async fn publish(&self, set: &StoredChangeSet, tail: Tail) -> Result<Tail, RelayError> {
        let id = format!("{}:{}", set.epoch, set.revision);
        let ack = self.send(set, tail, &id).await?;
        if !ack.duplicate {
            return Ok(Tail { sequence: ack.sequence, revision: set.revision });
        }
        // JetStream remembers the id and holds no such message at its end: it was deleted within the duplicate window.
        // The expected sequence alone still makes it exactly once.
        let ack = self.send(set, tail, &format!("{id}:{}", tail.sequence + 1)).await?;
        if ack.duplicate {
            return Err(RelayError::Moved);
        }
        Ok(Tail { sequence: ack.sequence, revision: set.revision })
    }

    async fn send(
        &self,
        set: &StoredChangeSet,
        tail: Tail,
        id: &str,
    ) -> Result<jetstream::publish::PublishAck, RelayError> {
        let message = PublishMessage::build()
            .message_id(id)
            .expected_stream(STREAM)
            .expected_last_sequence(tail.sequence)
            .header(REVISION_HEADER, set.revision.to_string().as_str())
            .payload(set.signed.clone().into());
        let failed = |error: async_nats::jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => RelayError::Moved,
            _ => jetstream_error(error),
        };
        let ack: PublishAckFuture =
            self.context.send_publish(self.shared.subjects.feed(), message).await.map_err(failed)?;
        ack.await.map_err(failed)
    }

    /// What JetStream holds. Creates the stream where there is none; starts a new epoch where the store has fallen behind.
    async fn compare(&mut self) -> Result<Tail, RelayError> {
        let stream =
            self.context.get_or_create_stream(self.stream_config()).await.map_err(jetstream_error)?;
        let info = stream.get_info().await.map_err(jetstream_error)?;
        self.keep_configured(&info.config).await?;
        let state = info.state;
        let sequence = state.last_sequence;
        let revision = match self.last_set(&stream, state.first_sequence, sequence).await? {
            LastSet::None => 0,
            LastSet::Ours(revision) => revision,
            LastSet::Ahead(epoch) => {
                tracing::error!("jetstream is ahead of the store, which must be an older copy");
                epoch::begin(&self.shared, epoch).await?;
                self.acknowledged = None;
                0
            }
            LastSet::OtherEpoch => {
                let epoch = self.shared.position.borrow().epoch;
                if self.acknowledged.is_some_and(|last| last.epoch == epoch) {
                    return Err(RelayError::Foreign);
                }
                0
            }
        };
        self.prune(&stream, sequence, revision, state.first_sequence).await?;
        let oldest = revision.saturating_sub(sequence.saturating_sub(state.first_sequence)).max(1);
        self.shared.oldest.store(oldest, Ordering::Relaxed);
        self.shared.published.send_replace(revision);
        self.compared = Some(Instant::now());
        Ok(Tail { sequence, revision })
    }

    /// A stream that was made by another version, by hand or before a cluster grew, is brought to what this one needs.
    async fn keep_configured(&self, found: &Config) -> Result<(), RelayError> {
        let wanted = self.stream_config();
        let same = found.num_replicas == wanted.num_replicas
            && found.allow_direct
            && found.republish == wanted.republish
            && found.subjects == wanted.subjects
            && found.discard == wanted.discard;
        if !same {
            tracing::warn!(stream = STREAM, "the stream's configuration is brought up to date");
            self.context.update_stream(wanted).await.map_err(jetstream_error)?;
        }
        Ok(())
    }

    /// Removes from the stream what the store has pruned.
    async fn prune(
        &self,
        stream: &Stream,
        sequence: u64,
        revision: u64,
        first: u64,
    ) -> Result<(), RelayError> {
        let oldest = self.shared.pruned.load(Ordering::Relaxed);
        let behind = revision.saturating_sub(oldest);
        let keep = sequence.saturating_sub(behind);
        // One more message than a prune is worth would be the newest one, which must stay to be compared.
        if oldest == 0 || oldest >= revision || keep <= first {
            return Ok(());
        }
        stream.purge().sequence(keep).await.map_err(jetstream_error)?;
        Ok(())
    }

    /// The newest message that our feed key signed, from `last` back.
    async fn last_set(&self, stream: &Stream, first: u64, last: u64) -> Result<LastSet, RelayError> {
        let mut foreign = false;
        let trusted = TrustedFeedKeys::new(self.shared.feed_keys());
        let lowest = first.max(last.saturating_sub(LOOK_BACK)).max(1);
        for sequence in (lowest..=last).rev() {
            let message = match stream.get_raw_message(sequence).await {
                Ok(message) => message,
                Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => continue,
                Err(error) => return Err(jetstream_error(error)),
            };
            let Ok(payload) = trusted.verify(Domain::ChangeSet, &message.payload) else {
                foreign = true;
                tracing::error!(sequence, "the stream holds a message that our feed key did not sign");
                continue;
            };
            let set = ChangeSet::decode(&payload).map_err(jetstream_error)?;
            return self.judge(&set, &message.payload).await;
        }
        // A flood of others' messages must not make us send the whole log again and again.
        let known = self
            .acknowledged
            .filter(|_| foreign)
            .filter(|last| last.epoch == self.shared.position.borrow().epoch);
        Ok(known.map_or(LastSet::None, |last| LastSet::Ours(last.revision)))
    }

    async fn judge(&self, set: &ChangeSet, signed: &[u8]) -> Result<LastSet, RelayError> {
        let head = log::head(&self.shared.store).await?;
        if set.epoch != head.epoch {
            return Ok(LastSet::OtherEpoch);
        }
        let stored = log::sets_from(&self.shared.store, set.epoch, set.revision, 1).await?;
        let ours = match stored.first() {
            Some(ours) if ours.revision == set.revision => ours.signed == signed,
            // Pruned here while NATS was away: what JetStream has not got by now, readers find in a snapshot.
            _ => set.revision <= head.revision,
        };
        Ok(if ours { LastSet::Ours(set.revision) } else { LastSet::Ahead(set.epoch) })
    }

    fn stream_config(&self) -> Config {
        let subjects = &self.shared.subjects;
        Config {
            name: STREAM.to_owned(),
            subjects: vec![subjects.feed()],
            storage: StorageType::File,
            discard: DiscardPolicy::Old,
            allow_direct: true,
            num_replicas: self.shared.settings.replicas,
            republish: Some(Republish {
                source: subjects.feed(),
                destination: subjects.live(),
                headers_only: false,
            }),
            ..Config::default()
        }
    }
}
