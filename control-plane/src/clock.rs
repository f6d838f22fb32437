//! The issue clock: orders tokens against watermarks without trusting the wall clock.
//!
//! A watermark `W` revokes every token with `issued at <= W`. A hybrid logical clock (Kulkarni et al., 2014, reduced to one
//! number of milliseconds) makes that exact: a token that was issued before a revocation always has an instant at or
//! before `W`, and one that is issued after the revocation has returned always has a later one. That holds within one
//! millisecond, when the wall clock steps back, and across a restart (the store keeps the newest instant).

use std::sync::atomic::{AtomicI64, Ordering};

use atm_core::time::UnixMillis;

/// Hands out the instants of tokens and of watermarks. One a process; the store carries its floor across processes.
#[derive(Debug)]
pub struct IssueClock {
    last: AtomicI64,
    wall: fn() -> UnixMillis,
}

impl IssueClock {
    /// A clock over the system's wall clock that never goes back before `floor`.
    pub fn starting_at(floor: UnixMillis) -> Self {
        Self::with_wall(floor, wall_now)
    }

    /// As [`Self::starting_at`], over another wall clock.
    pub fn with_wall(floor: UnixMillis, wall: fn() -> UnixMillis) -> Self {
        Self { last: AtomicI64::new(floor.0), wall }
    }

    /// The instant of a token, for its `atm_iat_ms` claim. Take it **before** reading the client's status: a client
    /// that is disabled in between then has a watermark that covers the token.
    pub fn issue(&self) -> UnixMillis {
        let now = (self.wall)().0;
        UnixMillis(self.last.fetch_max(now, Ordering::SeqCst).max(now))
    }

    /// The instant of a watermark: covers every token issued so far and none issued after this call.
    pub fn revoke(&self) -> UnixMillis {
        let watermark = self.issue();
        // A token issued between the two lines has an instant of at least `watermark`; one above it was issued
        // concurrently with this call and may live.
        self.last.fetch_max(watermark.0 + 1, Ordering::SeqCst);
        watermark
    }

    /// Takes over what another process has seen, so that this one never falls behind it.
    pub fn observe(&self, instant: UnixMillis) {
        self.last.fetch_max(instant.0, Ordering::SeqCst);
    }

    /// The newest instant handed out; what the store keeps.
    pub fn last(&self) -> UnixMillis {
        UnixMillis(self.last.load(Ordering::SeqCst))
    }

    /// The wall clock, for times that order nothing.
    pub fn wall(&self) -> UnixMillis {
        (self.wall)()
    }
}

/// The system's wall clock.
pub fn wall_now() -> UnixMillis {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default(); // a clock before 1970 reads as 1970
    UnixMillis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        static WALL: Cell<i64> = const { Cell::new(1_000) };
    }

    fn wall() -> UnixMillis {
        UnixMillis(WALL.get())
    }

    #[test]
    fn a_token_of_the_same_millisecond_is_covered_and_the_next_is_not() {
        WALL.set(1_000);
        let clock = IssueClock::with_wall(UnixMillis(0), wall);
        let before = clock.issue();
        let watermark = clock.revoke();
        let after = clock.issue();
        assert!(before <= watermark && after > watermark);
    }

    #[test]
    fn a_restart_under_a_stepped_back_clock_keeps_the_order() {
        WALL.set(5_000);
        let clock = IssueClock::with_wall(UnixMillis(0), wall);
        let before = clock.issue();
        let kept = clock.last();
        WALL.set(2_000);
        let restarted = IssueClock::with_wall(kept, wall);
        let watermark = restarted.revoke();
        assert!(before <= watermark);
        assert!(restarted.issue() > watermark);
    }

    proptest! {
        #[test]
        fn every_token_is_on_the_right_side_of_every_watermark(
            steps in proptest::collection::vec((any::<bool>(), -50i64..50), 1..200),
        ) {
            WALL.set(10_000);
            let clock = IssueClock::with_wall(UnixMillis(0), wall);
            let (mut tokens, mut watermarks): (Vec<UnixMillis>, Vec<UnixMillis>) = (vec![], vec![]);
            for (revoke, step) in steps {
                WALL.set(WALL.get() + step);
                if revoke {
                    let watermark = clock.revoke();
                    prop_assert!(tokens.iter().all(|token| *token <= watermark));
                    watermarks.push(watermark);
                } else {
                    let token = clock.issue();
                    prop_assert!(watermarks.iter().all(|watermark| token > *watermark));
                    tokens.push(token);
                }
            }
        }
    }
}
