//! The issue clock: orders tokens against watermarks without trusting any wall clock.
//!
//! A watermark `W` revokes every token with `issued at <= W`. Two instants in the store make that exact, for any number of
//! replicas whose wall clocks differ:
//!
//! - the **ceiling**: no token has an instant above it. A replica raises it, a little ahead of its wall clock, before it hands
//!   out a later instant. So a watermark at the ceiling covers every token that any replica has issued;
//! - the **floor**: the newest watermark. Whoever issues reads it after the request has come, and hands out an instant above
//!   it. So a token that is issued after a revocation has returned is not covered by it.
//!
//! The ceiling is always above the floor, therefore an instant above the floor is always there. Instants need not be unique and
//! need not move: on an idle store nothing is written. It is a hybrid logical clock (Kulkarni et al., 2014) whose logical part
//! lives in the store: instants run ahead of the wall clock by as much as the fastest replica's clock does, plus
//! the lead below, and only after a revocation.
//!
//! Requests that come together share one read of the floor. The embedded store has one process: there the floor is
//! kept in memory, a watermark is the newest instant that was handed out, and the ceiling is where a restart begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use atm_core::time::UnixMillis;
use tokio::sync::Mutex;

use crate::store::issue_clock::{self, Reading};
use crate::store::{Store, StoreError};

/// Milliseconds by which replicas raise the ceiling ahead: the most that a revocation can push instants ahead of the fastest
/// wall clock. A replica under load writes the ceiling once in about three quarters of this time.
const SHARED_LEAD_MS: i64 = 200;
/// The same for the one process of an embedded store: how far instants can be ahead after a crash.
const EMBEDDED_LEAD_MS: i64 = 2_000;

/// Hands out the instants of tokens and of watermarks. Make one a process.
#[derive(Debug)]
pub struct IssueClock {
    store: Store,
    wall: fn() -> UnixMillis,
    /// Embedded: the newest instant that was handed out, or above the newest watermark.
    last: AtomicI64,
    /// The newest ceiling that this process has seen committed.
    ceiling: AtomicI64,
    issued: Shared,
    revoked: Shared,
}

/// One call to the store on behalf of all that wait for it.
#[derive(Debug, Default)]
struct Shared {
    arrivals: AtomicU64,
    turn: Mutex<Turn>,
}

#[derive(Debug)]
struct Turn {
    /// Arrivals up to this one came before the newest call began.
    served: u64,
    outcome: Result<Reading, Arc<str>>,
}

impl Default for Turn {
    fn default() -> Self {
        Self { served: 0, outcome: Err("nothing was asked yet".into()) }
    }
}

impl Shared {
    /// What a call comes to that began after this one came.
    async fn call(
        &self,
        call: impl Future<Output = Result<Reading, StoreError>>,
    ) -> Result<Reading, StoreError> {
        let mine = self.arrivals.fetch_add(1, Ordering::SeqCst) + 1;
        let mut turn = self.turn.lock().await;
        if turn.served < mine {
            let served = self.arrivals.load(Ordering::SeqCst);
            // Dropped in between, the call is the next one's to make.
            let outcome = call.await;
            *turn = Turn { served, outcome: outcome.map_err(|error| error.to_string().into()) };
        }
        turn.outcome.clone().map_err(StoreError::Away)
    }
}

impl IssueClock {
    /// The clock over `store` and the system's wall clock.
    pub async fn start(store: Store) -> Result<Self, StoreError> {
        Self::with_wall(store, wall_now).await
    }

    /// As [`Self::start`], over another wall clock.
    pub async fn with_wall(store: Store, wall: fn() -> UnixMillis) -> Result<Self, StoreError> {
        let Reading { ceiling, .. } = issue_clock::read(&store).await?;
        Ok(Self {
            store,
            wall,
            // Whatever was handed out before is at or below the ceiling.
            last: AtomicI64::new(ceiling.0),
            ceiling: AtomicI64::new(ceiling.0),
            issued: Shared::default(),
            revoked: Shared::default(),
        })
    }

    /// The instant of a token, for its `atm_iat_ms` claim. Take it **before** reading the client's status: a client
    /// that is disabled in between then has a watermark that covers the token.
    pub async fn issue(&self) -> Result<UnixMillis, StoreError> {
        if self.store.is_shared() {
            let Reading { floor, ceiling } = self.issued.call(self.look()).await?;
            return Ok(UnixMillis(self.wall().0.max(floor.0 + 1).min(ceiling.0)));
        }
        let now = self.wall().0;
        let instant = self.last.fetch_max(now, Ordering::SeqCst).max(now);
        self.cover(instant).await?;
        Ok(UnixMillis(instant))
    }

    /// The instant of a watermark: covers every token issued so far and none issued after this call.
    pub async fn revoke(&self) -> Result<UnixMillis, StoreError> {
        if self.store.is_shared() {
            let taken = async { issue_clock::take_watermark(&self.store, self.wall()).await };
            return Ok(self.revoked.call(taken).await?.floor);
        }
        let now = self.wall().0;
        let watermark = self.last.fetch_max(now, Ordering::SeqCst).max(now);
        // A token issued between the two lines has an instant of at least `watermark`; one above it was issued
        // concurrently with this call and may live.
        self.last.fetch_max(watermark + 1, Ordering::SeqCst);
        self.cover(watermark + 1).await?;
        Ok(UnixMillis(watermark))
    }

    /// Raises the ceiling before somebody has to wait for it. For the embedded store, once a second.
    pub async fn keep_ahead(&self) -> Result<(), StoreError> {
        let last = self.last.load(Ordering::SeqCst);
        if self.store.is_shared() || last + EMBEDDED_LEAD_MS / 2 < self.ceiling.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.raise_above(last).await
    }

    /// The wall clock, for times that order nothing.
    pub fn wall(&self) -> UnixMillis {
        (self.wall)()
    }

    /// The floor as it is now, with the ceiling ahead of the wall clock.
    async fn look(&self) -> Result<Reading, StoreError> {
        let wall = self.wall().0;
        let reading = if wall + SHARED_LEAD_MS / 4 > self.ceiling.load(Ordering::SeqCst) {
            self.store.look_at_versions().await?;
            issue_clock::raise_ceiling(&self.store, UnixMillis(wall + SHARED_LEAD_MS)).await?
        } else {
            issue_clock::read(&self.store).await?
        };
        self.ceiling.fetch_max(reading.ceiling.0, Ordering::SeqCst);
        Ok(reading)
    }

    /// Sees to it that `instant` is not above the ceiling.
    async fn cover(&self, instant: i64) -> Result<(), StoreError> {
        // A call that was shared may have been made for an earlier instant.
        while instant > self.ceiling.load(Ordering::SeqCst) {
            self.raise_above(instant).await?;
        }
        Ok(())
    }

    /// Not ahead of an instant that is ahead of the wall clock: restarts would push it further each time.
    async fn raise_above(&self, instant: i64) -> Result<(), StoreError> {
        let ceiling = UnixMillis(instant.max(self.wall().0 + EMBEDDED_LEAD_MS));
        let raised = self.issued.call(issue_clock::raise_ceiling(&self.store, ceiling)).await?;
        self.ceiling.fetch_max(raised.ceiling.0, Ordering::SeqCst);
        Ok(())
    }
}

/// The system's wall clock.
pub fn wall_now() -> UnixMillis {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default(); // a clock before 1970 reads as 1970
    UnixMillis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
