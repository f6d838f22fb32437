//! Turns at verifying signatures, so that checks of tokens that were seen do not wait behind those of others.
//!
//! A signature costs some five times what the rest of a check does. Whoever floods a sidecar with tokens that it has not seen would
//! let all others wait behind as many signatures as there are such checks under way. While a thread has both kinds, signatures are
//! verified one at a time, in the order in which they came, with a look at the sockets before each; where nobody waits, none of this
//! is done, for it costs a new token a fifth more.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long after a check that needed no signature others are expected.
const EXPECTED: Duration = Duration::from_millis(10);

thread_local! {
    static TURNS: Arc<Semaphore> = Arc::new(Semaphore::new(1));
    static SEEN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Notes that a check that began then needed no signature.
pub(super) fn seen(begun: Instant) {
    SEEN.set(Some(begun));
}

/// Waits for this thread's next turn, which lasts until what is given is dropped.
pub(super) async fn next(begun: Instant) -> Option<OwnedSemaphorePermit> {
    if SEEN.get().is_none_or(|seen| begun.saturating_duration_since(seen) > EXPECTED) {
        return None;
    }
    let turn = TURNS.with(Arc::clone).acquire_owned().await.ok(); // it is never closed
    // The runtime polls its sockets before it comes back to a task that yields.
    tokio::task::yield_now().await;
    turn
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn turns_are_taken_one_at_a_time_in_order() {
        let now = Instant::now();
        seen(now);
        let first = next(now).await;
        let (mut second, mut third) = (Box::pin(next(now)), Box::pin(next(now)));
        assert!(futures::poll!(&mut second).is_pending() && futures::poll!(&mut third).is_pending());
        drop(first);
        assert!(futures::poll!(&mut third).is_pending(), "the second was there before");
        let second = second.await;
        assert!(futures::poll!(&mut third).is_pending());
        drop(second);
        assert!(third.await.is_some());
    }

    #[tokio::test]
    async fn a_turn_that_is_given_up_goes_to_the_next() {
        let now = Instant::now();
        seen(now);
        let first = next(now).await;
        let mut second = Box::pin(next(now));
        assert!(futures::poll!(&mut second).is_pending());
        drop(second);
        drop(first);
        assert!(next(now).await.is_some());
    }

    /// Whoever needs none comes before every signature but the one that began, and nobody waits who is alone.
    #[tokio::test]
    async fn what_needs_no_signature_waits_behind_one_at_most() {
        let order = RefCell::new(Vec::new());
        let now = Instant::now();
        let verifies = async |name: &'static str, now| {
            let _turn = next(now).await;
            order.borrow_mut().push(name);
        };
        let check = async || order.borrow_mut().push("seen");
        tokio::join!(verifies("alone", now), verifies("alone", now));
        seen(now);
        tokio::join!(verifies("first", now), verifies("second", now), check());
        let later = now + 2 * EXPECTED;
        tokio::join!(verifies("alone", later), check());
        assert_eq!(order.into_inner(), ["alone", "alone", "seen", "first", "second", "alone", "seen"]);
    }
}
