//! The feed's subscriber: hears change sets and heartbeats, applies what is signed and next, fetches what is missing.
//!
//! Only this task changes the state. It never waits for the disk: what is applied is published at once and handed to the
//! store's writer thread.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Event, Subscriber};
use atm_core::time::UnixMillis;
use atm_nats::NatsAccess;
use atm_proto::signature::TrustedFeedKeys;
use atm_proto::subject::{InvalidToken, Subjects};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::state::StatePublisher;
use crate::store::Writer;

mod applier;
mod catch_up;

pub use applier::Cause;
use applier::{Applier, Heard};

/// How long a heartbeat may be ahead of the state before the missing revisions are asked for: what is under way arrives.
const LAG_BEFORE_ASKING: Duration = Duration::from_millis(200);
/// Time between two looks at what is due.
const TICK: Duration = Duration::from_millis(100);
/// The longest pause between two attempts to catch up that brought nothing.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How the feed is reached and whom it believes.
#[derive(Debug, Clone)]
pub struct FeedSettings {
    /// The realms that share the log.
    pub realm_group: String,
    /// `nats://host:port`, or several with commas.
    pub nats_url: String,
    /// Who this sidecar is to NATS.
    pub nats_access: NatsAccess,
    /// The pinned feed keys.
    pub trusted: TrustedFeedKeys,
    /// This sidecar's name; part of its report subject.
    pub sidecar_id: String,
    /// How long a start waits for a heartbeat before the persisted state is taken as it is.
    pub startup_wait: Duration,
}

/// Why the feed cannot be subscribed to at all. A NATS that is away is none of these: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A name that cannot be part of a subject.
    #[error(transparent)]
    Name(#[from] InvalidToken),
    /// The file with the credentials, the password or the token cannot be used.
    #[error("nats: {0}; check the path of its credentials, password or token file, and the permissions")]
    Login(#[source] std::io::Error),
    /// The URL cannot be used.
    #[error("nats.url: {url}: {problem}; give nats://host:port")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong.
        problem: String,
    },
}

/// A connection to NATS that is being made or made again for as long as it takes, and what happens to it.
#[derive(Debug)]
pub struct Connection {
    /// The client.
    pub client: async_nats::Client,
    events: mpsc::Receiver<Event>,
    subjects: Subjects,
}

/// Begins to connect; returns at once.
pub async fn connect(settings: &FeedSettings) -> Result<Connection, FeedError> {
    let subjects = Subjects::new(&settings.realm_group)?;
    subjects.fleet(&settings.sidecar_id)?;
    // An event that finds the queue full is lost; whether there is a connection, the tick asks for itself.
    let (sender, events) = mpsc::channel(16);
    let options = settings
        .nats_access
        .options()
        .map_err(FeedError::Login)?
        .name(format!("atm-sidecar {}", settings.sidecar_id))
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| Duration::from_millis((50 << attempts.min(5)).min(1_000)))
        .ping_interval(Duration::from_secs(5))
        .event_callback(move |event| {
            let sender = sender.clone();
            async move {
                let _ = sender.try_send(event);
            }
        });
    let client = options
        .connect(&settings.nats_url)
        .await
        .map_err(|error| FeedError::Url { url: settings.nats_url.clone(), problem: error.to_string() })?;
    Ok(Connection { client, events, subjects })
}

/// Follows the feed until `stop`.
pub async fn follow(
    connection: Connection,
    settings: FeedSettings,
    publisher: StatePublisher,
    writer: Writer,
    stop: CancellationToken,
) {
    let Connection { client, events, subjects } = connection;
    let mut follower = Follower {
        applier: Applier::new(settings.realm_group.clone(), settings.trusted.clone(), publisher, writer),
        client,
        subjects,
        ahead_since: None,
        pause: Duration::ZERO,
        ask_again_at: None,
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
    /// Since when a heartbeat is known to be ahead of the state.
    ahead_since: Option<tokio::time::Instant>,
    /// Grows while asking brings nothing.
    pause: Duration,
    ask_again_at: Option<tokio::time::Instant>,
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
        let mut tick = tokio::time::interval(TICK);
        let patience = tokio::time::sleep(startup_wait);
        tokio::pin!(patience);
        let mut waiting = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(message) = live.next() => self.hear(&message.payload),
                Some(message) = heartbeats.next() => self.heartbeat(&message.payload),
                Some(event) = events.recv() => self.connection_event(&event),
                settlement = self.applier.settled() => self.applier.settle(settlement),
                () = &mut patience, if waiting => {
                    waiting = false;
                    self.settle_without_feed();
                }
                _ = tick.tick() => self.catch_up_if_due().await,
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
        self.applier.status().connected.store(connected, Ordering::Relaxed);
        let now = tokio::time::Instant::now();
        let lagging = self.ahead_since.is_some_and(|since| now - since >= LAG_BEFORE_ASKING);
        let due = match self.ask_again_at {
            Some(at) => at <= now,
            None => lagging,
        };
        if !due || !connected {
            return;
        }
        self.ask_again_at = None;
        let before = self.applier.position();
        catch_up::run(&self.client, &self.subjects, &mut self.applier).await;
        if self.applier.position() != before {
            self.pause = Duration::ZERO;
        } else if self.applier.knows_of_more() {
            // Asked in vain: the next attempt waits longer, and not as long as its neighbours'.
            self.pause = (self.pause * 2).clamp(TICK, MAX_PAUSE);
            let jitter = self.pause.mul_f64(fraction(&before));
            self.ask_again_at = Some(now + self.pause + jitter);
        }
        if !self.applier.knows_of_more() {
            self.ahead_since = None;
        }
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
