//! What should not happen, told as typed events: found in what sidecars record of their decisions and in what is recorded here.
//!
//! Every detector's memory is bounded. Replicas see the same records; one of them tells, so that nothing is told twice. Permits
//! reach us as a sample, so «one token at many sidecars» is found when enough of its uses were sampled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::audit::{Action, Actor, Audit, Event};
use crate::clock::wall_now;
use crate::feed::FeedHandle;

mod detectors;

use detectors::Detectors;

/// How often is looked whether this replica is the one that tells.
const TELLER_EVERY: Duration = Duration::from_secs(10);
/// Bytes of one record at most.
const MAX_RECORD: usize = 64 * 1024;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnomalyKind {
    /// A refresh token that was used came again: it was stolen, or its client is broken.
    RefreshReuse,
    /// A token that was revoked is still being presented.
    RevokedTokenPresented,
    /// One token was used at more sidecars within a minute than a caller can talk to.
    TokenSpread,
    /// A client is denied many times more often than before.
    DenialSpike,
    /// A proof of possession was used twice.
    ProofReplay,
}

impl AnomalyKind {
    /// Every kind; each is a counter.
    pub const ALL: [Self; 5] = [
        Self::RefreshReuse,
        Self::RevokedTokenPresented,
        Self::TokenSpread,
        Self::DenialSpike,
        Self::ProofReplay,
    ];

    /// The name in events and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RefreshReuse => "refresh_reuse",
            Self::RevokedTokenPresented => "revoked_token_presented",
            Self::TokenSpread => "token_spread",
            Self::DenialSpike => "denial_spike",
            Self::ProofReplay => "proof_replay",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    /// What.
    pub kind: AnomalyKind,
    /// The token's `jti`, where it is about one.
    pub token: Option<String>,
    /// The client, as far as it is known.
    pub client: Option<String>,
    /// The subject, as far as it is known.
    pub subject: Option<String>,
    /// How many: sidecars, denials.
    pub number: u64,
    /// The decision's reason, where there is one.
    pub reason: Option<String>,
}

/// Counts and tells; clones share everything.
#[derive(Debug, Clone)]
pub struct Anomalies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    audit: Audit,
    detectors: Mutex<Detectors>,
    counts: [AtomicU64; AnomalyKind::ALL.len()],
}

impl Anomalies {
    /// Findings go into `audit`.
    pub fn new(audit: Audit) -> Self {
        Self(Arc::new(Inner { audit, detectors: Mutex::default(), counts: Default::default() }))
    }

    /// Tells of one that was found elsewhere.
    pub fn found(&self, anomaly: &Anomaly) {
        self.0.counts[anomaly.kind as usize].fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            kind = anomaly.kind.as_str(),
            token = anomaly.token,
            client = anomaly.client,
            number = anomaly.number,
            "anomaly"
        );
        let event = Event::of(Action::Anomaly).by(Actor::system()).detail("kind", anomaly.kind.as_str());
        let event = event.detail("number", anomaly.number);
        let event = anomaly.token.iter().fold(event, Event::token);
        let event = anomaly.client.iter().fold(event, Event::client);
        let event = anomaly.subject.iter().fold(event, Event::subject);
        self.0.audit.record(
            anomaly.reason.iter().fold(event, |event, reason| event.detail("reason", reason.as_str())),
        );
    }

    /// How many of each kind were found since the start.
    pub fn counts(&self) -> [(AnomalyKind, u64); AnomalyKind::ALL.len()] {
        AnomalyKind::ALL.map(|kind| (kind, self.0.counts[kind as usize].load(Ordering::Relaxed)))
    }

    /// Looks at what sidecars record until `stop`.
    pub async fn run(self, feed: FeedHandle, stop: CancellationToken) {
        let work = async {
            loop {
                match feed.client().subscribe(feed.subjects().audit()).await {
                    Ok(records) => self.follow(records).await,
                    Err(error) => {
                        tracing::warn!(%error, "cannot follow the decisions of sidecars; trying again");
                    }
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        stop.run_until_cancelled(work).await;
    }

    async fn follow(&self, mut records: async_nats::Subscriber) {
        let (mut tells, mut asked) = (false, None::<tokio::time::Instant>);
        while let Some(message) = records.next().await {
            if asked.is_none_or(|asked| asked.elapsed() >= TELLER_EVERY) {
                tells = self.tells().await;
                asked = Some(tokio::time::Instant::now());
            }
            if message.payload.len() > MAX_RECORD {
                continue;
            }
            for line in message.payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let Ok(record) = serde_json::from_slice::<Value>(line) else { continue };
                for anomaly in self.look(&record) {
                    if tells {
                        self.found(&anomaly);
                    }
                }
            }
        }
    }

    /// What `record` shows.
    fn look(&self, record: &Value) -> Vec<Anomaly> {
        // Nothing panics under the lock, and numbers stay numbers.
        let mut detectors = self.0.detectors.lock().unwrap_or_else(PoisonError::into_inner);
        detectors.look(record, wall_now())
    }

    /// Of the replicas that live, the one whose chain is the oldest tells.
    async fn tells(&self) -> bool {
        // Where the store does not say so: twice is better than never.
        self.0.audit.is_oldest_alive().await.unwrap_or(true)
    }
}
