//! The feed's subscriber: hears change sets and heartbeats, applies what is signed and next, fetches what is missing.
//!
//! Only this task changes the state. It never waits for the disk: what is applied is published at once and handed to the
//! store's writer thread.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Event, Subscriber};
use atm_core::time::UnixMillis;
use atm_proto::subject::Subjects;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::state::StatePublisher;
use crate::store::Writer;

mod applier;
mod catch_up;
mod connection;
mod inspection;
mod loading;
mod snapshot;
mod trust;

pub use applier::Cause;
use applier::{Applier, Heard};
pub use connection::{Connection, FeedError, FeedSettings, SnapshotUrl, connect};
use loading::{Loading, Purpose};
use snapshot::Source;
pub use trust::{FeedTrust, RotationError};

/// How long a heartbeat may be ahead of the state before the missing revisions are asked for: what is under way arrives.
const LAG_BEFORE_ASKING: Duration = Duration::from_millis(200);
/// How long who holds nothing waits for a heartbeat, which tells of a snapshot, before asking for the whole log.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// Time between two looks at what is due.
const TICK: Duration = Duration::from_millis(100);
/// Feed keys are looked up no more often than this: anybody can sign with a key that nobody knows.
const ROTATION_EVERY: Duration = Duration::from_secs(2);
/// Rotations that one look takes; whoever answers must not keep this task from its other work.
const ROTATIONS: u64 = 64;
/// The longest pause between two attempts to catch up that brought nothing.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Follows the feed until `stop`.
pub async fn follow(
    connection: Connection,
    settings: FeedSettings,
    publisher: StatePublisher,
    writer: Writer,
    stop: CancellationToken,
) {
    let Connection { client, events, subjects, source } = connection;
    let mut follower = Follower {
        applier: Applier::new(settings.realm_group.clone(), settings.trust.clone(), publisher, writer),
        client,
        subjects,
        source,
        loading: Loading::default(),
        scrub: 0,
        rotation_looked_at: None,
        ahead_since: None,
        pause: Duration::ZERO,
        ask_again_at: None,
        began: tokio::time::Instant::now(),
    };
    if let Err(error) = follower.run(events, settings.startup_wait, stop).await {
        // Only a client that was closed for good ends here, and nobody closes it.
        tracing::error!(%error, "the feed's subscription ended");
        follower.applier.status().set_fault(Some(format!("feed subscription ended: {error}")));
    }
}

struct Follower {
    applier: Applier,
    client: async_nats::Client,
    subjects: Subjects,
    source: Source,
    /// The snapshot that is being loaded.
    loading: Loading,
    /// The newest comparison that the control plane has asked for.
    scrub: u64,
    /// When rotations of feed keys were looked for last.
    rotation_looked_at: Option<tokio::time::Instant>,
    /// Since when a heartbeat is known to be ahead of the state.
    ahead_since: Option<tokio::time::Instant>,
    /// Grows while asking brings nothing.
    pause: Duration,
    ask_again_at: Option<tokio::time::Instant>,
    began: tokio::time::Instant,
}

impl Follower {
    async fn run(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        startup_wait: Duration,
        stop: CancellationToken,
    ) -> Result<(), async_nats::SubscribeError> {
        let mut live: Subscriber = self.client.subscribe(self.subjects.live()).await?;
        let mut heartbeats: Subscriber = self.client.subscribe(self.subjects.heartbeat()).await?;
        let mut commands: Subscriber = self.client.subscribe(self.subjects.command()).await?;
        let mut tick = tokio::time::interval(TICK);
        let patience = tokio::time::sleep(startup_wait);
        tokio::pin!(patience);
        let mut waiting = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(message) = live.next() => self.hear(&message.payload),
                Some(message) = heartbeats.next() => self.heartbeat(&message.payload),
                Some(message) = commands.next() => self.command(&message.payload),
                Some(event) = events.recv() => self.connection_event(&event),
                settlement = self.applier.settled() => self.applier.settle(settlement),
                loaded = self.loading.next() => self.loaded(loaded).await,
                () = &mut patience, if waiting => {
                    waiting = false;
                    self.settle_without_feed();
                }
                _ = tick.tick() => self.catch_up_if_due().await,
            }
            if let Some(arrival) = self.applier.arrival() {
                self.arrived(arrival);
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let before = self.applier.position();
        let heard = self.applier.change_set(bytes);
        if !self.applier.knows_of_more() {
            self.ahead_since = None;
        }
        if heard == Heard::Missing && self.applier.position() == before {
            // The heartbeat would show it within a second; the gap itself is proof enough. A pause that is under way goes on.
            self.ask_again_at.get_or_insert_with(tokio::time::Instant::now);
        }
    }

    fn heartbeat(&mut self, bytes: &[u8]) {
        match self.applier.heartbeat(bytes) {
            Heard::Missing => {
                self.ahead_since.get_or_insert_with(tokio::time::Instant::now);
            }
            Heard::Level => {
                self.loading.set_level();
                self.ahead_since = None;
                self.ask_again_at = None;
                self.pause = Duration::ZERO;
            }
            Heard::Refused => {}
        }
    }

    fn connection_event(&mut self, event: &Event) {
        let status = self.applier.status();
        match event {
            Event::Connected => {
                tracing::info!("connected to NATS");
                status.connected.store(true, Ordering::Relaxed);
                self.ask_now();
            }
            Event::Disconnected => {
                tracing::warn!("NATS is unreachable; decisions go on from the local state");
                status.connected.store(false, Ordering::Relaxed);
            }
            other => tracing::info!(event = %other, "NATS"),
        }
    }

    /// The wait at the start is over: a state from the store is served, unless a heartbeat has said that it is behind.
    fn settle_without_feed(&mut self) {
        if !self.applier.knows_of_more() {
            self.applier.status().settled.store(true, Ordering::Release);
        }
    }

    fn ask_now(&mut self) {
        self.ask_again_at = Some(tokio::time::Instant::now());
    }

    async fn catch_up_if_due(&mut self) {
        let connected = self.client.connection_state() == async_nats::connection::State::Connected;
        let status = self.applier.status();
        status.connected.store(connected, Ordering::Relaxed);
        status.behind.store(self.applier.knows_of_more(), Ordering::Relaxed);
        status.refusing.store(self.applier.blocked().is_some(), Ordering::Relaxed);
        self.give_up_waiting_for_the_store();
        let now = tokio::time::Instant::now();
        if connected {
            self.take_rotations(now).await;
        }
        let lagging = self.ahead_since.is_some_and(|since| now - since >= LAG_BEFORE_ASKING);
        let due = match self.ask_again_at {
            Some(at) => at <= now,
            None => lagging || self.inspection_is_due(),
        };
        let is_told = self.applier.head().is_some() || self.began.elapsed() >= FIRST_WORD;
        if !due || !connected || (self.applier.holds_nothing() && !is_told) {
            return;
        }
        self.ask_again_at = None;
        if self.loading.is_under_way() {
            return; // what is missing behind the snapshot is asked for when it is in
        }
        if let Some(wanted) = self.wanted_snapshot() {
            self.load(wanted, Purpose::Advance);
            return;
        }
        if self.inspection_is_due() {
            self.inspect().await;
            return;
        }
        let before = self.applier.position();
        catch_up::run(&self.client, &self.subjects, &mut self.applier).await;
        if self.applier.position() != before {
            self.pause = Duration::ZERO;
        } else if self.applier.knows_of_more() {
            self.wait_before_asking();
        }
        if !self.applier.knows_of_more() {
            self.ahead_since = None;
        }
    }
}

impl Follower {
    /// Takes the rotations of feed keys that came since the last one, where there may be any.
    async fn take_rotations(&mut self, now: tokio::time::Instant) {
        let rested = self.rotation_looked_at.is_none_or(|at| now - at >= ROTATION_EVERY);
        if !rested || !self.applier.may_have_rotated() {
            return;
        }
        self.rotation_looked_at = Some(now);
        let trust = self.applier.trust().clone();
        let next = trust.number() + 1;
        for number in next..next + ROTATIONS {
            let Some(signed) = self.source.rotation(number).await else { break };
            // One that is signed by a key of before our time does not concern us; a later one may.
            match trust.rotate(&signed) {
                Ok(number) => tracing::warn!(number, "the trust in feed keys was handed over"),
                Err(error) => tracing::warn!(number, %error, "a rotation of feed keys is passed over"),
            }
        }
        self.ask_now();
    }
}

/// Something between 0 and 1 that differs between sidecars and attempts; spreading load needs no better randomness.
fn fraction(position: &crate::state::Position) -> f64 {
    let nanos =
        crate::feed::now().0.unsigned_abs().wrapping_add(position.revision) ^ u64::from(std::process::id());
    f64::from(u16::try_from(nanos.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48).unwrap_or(0))
        / f64::from(u16::MAX)
}

/// The wall clock.
pub(crate) fn now() -> UnixMillis {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}
