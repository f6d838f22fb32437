//! A simulated fleet: thousands of subscribers in one process that follow the feed as sidecars do. Each has a connection of its
//! own, verifies every signature, takes revisions in order only, asks for what it misses, and reports what it has.
//!
//! What a simulated sidecar leaves out is the store and decisions: it measures the feed and NATS, not RocksDB.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use atm_proto::change::{ChangeSet, Digest, Epoch, Heartbeat};
use atm_proto::report::{ResyncReply, ResyncRequest, SidecarReport};
use atm_proto::signature::{Domain, TrustedFeedKeys};
use atm_proto::subject::Subjects;
use futures::StreamExt;
use prost::Message;
use tokio::task::JoinHandle;

/// How long a heartbeat may be ahead before a subscriber asks.
const LAG_BEFORE_ASKING: Duration = Duration::from_millis(200);
/// Time between reports while nothing advances.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// How the fleet behaves.
#[derive(Debug, Clone)]
pub struct FleetSettings {
    /// Where NATS is.
    pub nats_url: String,
    /// The realms that share the log.
    pub realm_group: String,
    /// Whom to believe.
    pub trusted: TrustedFeedKeys,
    /// How many subscribers.
    pub subscribers: usize,
    /// Of so many live messages a subscriber loses one, in its turn; 0 for none.
    pub lose_one_of: u64,
    /// Time that every message takes to a subscriber beyond what NATS takes.
    pub delay: Duration,
}

/// What the fleet has counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Live change sets and heartbeats that came.
    pub messages: AtomicU64,
    /// Bytes of these.
    pub bytes: AtomicU64,
    /// Messages thrown away on purpose.
    pub lost: AtomicU64,
    /// Requests for missing revisions.
    pub resyncs: AtomicU64,
    /// Change sets that were not signed by a trusted key, or out of their chain.
    pub violations: AtomicU64,
}

/// When each subscriber had each revision.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<Vec<Option<Instant>>>>);

/// A running fleet.
#[derive(Debug)]
pub struct SimulatedFleet {
    settings: Arc<FleetSettings>,
    log: Arc<Log>,
    /// What was counted.
    pub counters: Arc<Counters>,
    online: Vec<Arc<AtomicBool>>,
    tasks: Vec<JoinHandle<()>>,
}

impl SimulatedFleet {
    /// Starts all subscribers and waits until each has subscribed.
    pub async fn start(settings: FleetSettings) -> Self {
        let settings = Arc::new(settings);
        let log = Arc::new(Log(Mutex::new(vec![Vec::new(); settings.subscribers])));
        let counters = Arc::new(Counters::default());
        let mut fleet =
            Self { settings: Arc::clone(&settings), log, counters, online: Vec::new(), tasks: Vec::new() };
        for number in 0..settings.subscribers {
            let online = Arc::new(AtomicBool::new(true));
            let subscriber = Simulated::connect(number, &fleet, Arc::clone(&online)).await;
            fleet.online.push(online);
            fleet.tasks.push(tokio::spawn(subscriber.run()));
        }
        fleet
    }

    /// Cuts a subscriber off, or lets it hear again.
    pub fn set_online(&self, subscriber: usize, online: bool) {
        self.online[subscriber].store(online, Ordering::Relaxed);
    }

    /// Waits until all subscribers that are online have `revision`; gives the time from `since` until each had it.
    pub async fn until_applied(
        &self,
        revision: u64,
        since: Instant,
        limit: Duration,
    ) -> Option<Vec<Duration>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(times) = self.applied(revision, since) {
                return Some(times);
            }
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn applied(&self, revision: u64, since: Instant) -> Option<Vec<Duration>> {
        let log = self.log.0.lock().expect("nobody panics with the lock");
        let at = usize::try_from(revision).expect("a small number");
        self.online
            .iter()
            .zip(log.iter())
            .filter(|(online, _)| online.load(Ordering::Relaxed))
            .map(|(_, revisions)| {
                // Whoever had a later one first had this one by then.
                revisions.get(at..)?.iter().flatten().min().map(|at| at.saturating_duration_since(since))
            })
            .collect()
    }

    /// Ends all subscribers.
    pub fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for SimulatedFleet {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Simulated {
    number: usize,
    id: String,
    settings: Arc<FleetSettings>,
    subjects: Subjects,
    client: async_nats::Client,
    live: Subscriber,
    heartbeats: Subscriber,
    log: Arc<Log>,
    counters: Arc<Counters>,
    online: Arc<AtomicBool>,
    epoch: Option<Epoch>,
    revision: u64,
    digest: Digest,
    heard: u64,
    ahead_since: Option<Instant>,
}

impl Simulated {
    async fn connect(number: usize, fleet: &SimulatedFleet, online: Arc<AtomicBool>) -> Self {
        let subjects = Subjects::new(&fleet.settings.realm_group).expect("a realm group");
        let id = format!("simulated-{number}");
        let client = async_nats::ConnectOptions::new()
            .name(&id)
            .connect(&fleet.settings.nats_url)
            .await
            .expect("NATS is there, and lets this many connect (ulimit -n)");
        let live = client.subscribe(subjects.live()).await.expect("subscribed");
        let heartbeats = client.subscribe(subjects.heartbeat()).await.expect("subscribed");
        client.flush().await.expect("flushed");
        Self {
            number,
            id,
            settings: Arc::clone(&fleet.settings),
            subjects,
            client,
            live,
            heartbeats,
            log: Arc::clone(&fleet.log),
            counters: Arc::clone(&fleet.counters),
            online,
            epoch: None,
            revision: 0,
            digest: Digest::ZERO,
            heard: 0,
            ahead_since: None,
        }
    }

    async fn run(mut self) {
        // Reports of a fleet that started at once must not come at once for ever.
        let phase = u32::try_from(self.number % 1_000).expect("below 1,000");
        let first = tokio::time::Instant::now() + REPORT_EVERY * phase / 1_000;
        let mut reports = tokio::time::interval_at(first, REPORT_EVERY);
        let mut looks = tokio::time::interval_at(first, Duration::from_millis(100));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(message) = self.live.next() => self.hear(&message.payload).await,
                Some(message) = self.heartbeats.next() => self.heartbeat(&message.payload),
                _ = reports.tick() => self.report().await,
                _ = looks.tick() => self.ask_if_behind().await,
            }
        }
    }

    fn is_online(&self) -> bool {
        self.online.load(Ordering::Relaxed)
    }

    async fn hear(&mut self, bytes: &[u8]) {
        if !self.is_online() {
            return;
        }
        self.counters.messages.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.heard += 1;
        let turn = self.heard + self.number as u64;
        if self.settings.lose_one_of > 0 && turn.is_multiple_of(self.settings.lose_one_of) {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !self.settings.delay.is_zero() {
            tokio::time::sleep(self.settings.delay).await;
        }
        if self.take(bytes) {
            self.report().await;
        }
    }

    /// Whether it was the next one.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let verified = self.settings.trusted.verify(Domain::ChangeSet, bytes);
        let Some((payload, set)) =
            verified.ok().and_then(|payload| ChangeSet::decode(&payload).ok().map(|set| (payload, set)))
        else {
            self.counters.violations.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        if self.epoch.is_none() {
            // A simulated sidecar begins where it hears the log first: what came before is not what is measured.
            (self.epoch, self.revision, self.digest) =
                (Some(set.epoch), set.revision - 1, set.previous_digest);
        }
        if set.revision != self.revision + 1 {
            if set.revision > self.revision {
                self.ahead_since.get_or_insert_with(Instant::now);
            }
            return false;
        }
        if Some(set.epoch) != self.epoch || set.previous_digest != self.digest {
            self.counters.violations.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        (self.revision, self.digest) = (set.revision, Digest::of(&payload));
        let mut log = self.log.0.lock().expect("nobody panics with the lock");
        let revisions = &mut log[self.number];
        let at = usize::try_from(set.revision).expect("a small number");
        revisions.resize(revisions.len().max(at + 1), None);
        revisions[at] = Some(Instant::now());
        true
    }

    fn heartbeat(&mut self, bytes: &[u8]) {
        if !self.is_online() {
            return;
        }
        self.counters.messages.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let verified = self.settings.trusted.verify(Domain::Heartbeat, bytes);
        let Some(beat) = verified.ok().and_then(|payload| Heartbeat::decode(&payload).ok()) else {
            self.counters.violations.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.epoch.is_none() {
            (self.epoch, self.revision, self.digest) = (Some(beat.epoch), beat.revision, beat.digest);
        }
        if beat.revision > self.revision {
            self.ahead_since.get_or_insert_with(Instant::now);
        } else {
            self.ahead_since = None;
        }
    }

    async fn ask_if_behind(&mut self) {
        let lagging = self.ahead_since.is_some_and(|since| since.elapsed() >= LAG_BEFORE_ASKING);
        if !lagging || !self.is_online() {
            return;
        }
        self.counters.resyncs.fetch_add(1, Ordering::Relaxed);
        let epoch = self.epoch.map(|epoch| epoch.as_bytes().to_vec()).unwrap_or_default();
        let request = ResyncRequest { epoch, from_revision: self.revision + 1 };
        let reply = self.client.request(self.subjects.resync(), request.encode_to_vec().into()).await;
        let Some(reply) = reply.ok().and_then(|reply| ResyncReply::decode(reply.payload).ok()) else {
            return;
        };
        for set in &reply.signed_change_sets {
            self.take(set);
        }
        if self.revision >= reply.head {
            self.ahead_since = None;
        }
        self.report().await;
    }

    async fn report(&self) {
        if !self.is_online() {
            return;
        }
        let report = SidecarReport {
            sidecar_id: self.id.clone(),
            version: "simulated".into(),
            epoch: self.epoch.map(|epoch| epoch.as_bytes().to_vec()).unwrap_or_default(),
            applied_revision: self.revision,
            ready: true,
            ..Default::default()
        };
        let subject = self.subjects.fleet(&self.id).expect("a name of ours");
        let _ = self.client.publish(subject, report.encode_to_vec().into()).await; // NATS may be down just now
    }
}
