//! Tokens and watermarks are on the right side of each other, whatever wall clocks say.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;
use tokio::task::JoinSet;

use super::*;
use crate::clock::{IssueClock, wall_now};

contract!(
    a_token_of_the_same_millisecond_is_covered_and_the_next_is_not,
    a_restart_under_a_stepped_back_clock_keeps_the_order,
    every_token_is_on_the_right_side_of_every_watermark,
    an_idle_clock_follows_the_wall_clock,
    instants_do_not_run_away_from_the_wall_clock,
);

fn frozen() -> UnixMillis {
    UnixMillis(1_000_000)
}

fn behind() -> UnixMillis {
    UnixMillis(wall_now().0 - 5_000)
}

fn ahead() -> UnixMillis {
    UnixMillis(wall_now().0 + 5_000)
}

async fn a_token_of_the_same_millisecond_is_covered_and_the_next_is_not(place: Place) {
    let clock = IssueClock::with_wall(place.open().await, frozen).await.unwrap();
    for _ in 0..3 {
        let before = clock.issue().await.unwrap();
        let watermark = clock.revoke().await.unwrap();
        let after = clock.issue().await.unwrap();
        assert!(before <= watermark && after > watermark, "{before:?} {watermark:?} {after:?}");
    }
}

async fn a_restart_under_a_stepped_back_clock_keeps_the_order(place: Place) {
    let store = place.open().await;
    let clock = IssueClock::with_wall(store.clone(), ahead).await.unwrap();
    let before = clock.issue().await.unwrap();
    let earlier = clock.revoke().await.unwrap();
    let between = clock.issue().await.unwrap();
    // Nothing was told to anybody: as after a SIGKILL.
    store.close().await;
    let restarted = IssueClock::with_wall(place.open().await, behind).await.unwrap();
    assert!(restarted.issue().await.unwrap() > earlier);
    let watermark = restarted.revoke().await.unwrap();
    assert!(before <= watermark && between <= watermark);
    assert!(restarted.issue().await.unwrap() > watermark);
}

thread_local! {
    static WALL: AtomicI64 = const { AtomicI64::new(1_000_000) };
}

fn stepping() -> UnixMillis {
    UnixMillis(WALL.with(|wall| wall.load(Ordering::SeqCst)))
}

async fn every_token_is_on_the_right_side_of_every_watermark(place: Place) {
    let store = place.open().await;
    let steps = proptest::collection::vec((any::<bool>(), -5_000i64..5_000), 1..40);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(16));
    tokio::task::block_in_place(|| {
        let outcome = runner.run(&steps, |steps| {
            let runtime = tokio::runtime::Handle::current();
            runtime.block_on(async {
                // A clock of a case begins where the one before ended.
                let clock = IssueClock::with_wall(store.clone(), stepping).await.unwrap();
                let (mut tokens, mut watermarks): (Vec<UnixMillis>, Vec<UnixMillis>) = (vec![], vec![]);
                for (revoke, step) in steps {
                    WALL.with(|wall| wall.fetch_add(step, Ordering::SeqCst));
                    if revoke {
                        let watermark = clock.revoke().await.unwrap();
                        prop_assert!(tokens.iter().all(|token| *token <= watermark));
                        watermarks.push(watermark);
                    } else {
                        let token = clock.issue().await.unwrap();
                        prop_assert!(watermarks.iter().all(|watermark| token > *watermark));
                        tokens.push(token);
                    }
                }
                Ok(())
            })
        });
        outcome.unwrap();
    });
}

async fn an_idle_clock_follows_the_wall_clock(place: Place) {
    let clock = IssueClock::start(place.open().await).await.unwrap();
    for _ in 0..3 {
        let (before, instant) = (wall_now(), clock.issue().await.unwrap());
        assert!(instant >= before && instant <= wall_now(), "{before:?} {instant:?}");
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    }
}

async fn instants_do_not_run_away_from_the_wall_clock(place: Place) {
    let clock = IssueClock::start(place.open().await).await.unwrap();
    let mut newest = UnixMillis(0);
    for _ in 0..200 {
        clock.revoke().await.unwrap();
        newest = clock.issue().await.unwrap();
    }
    // One millisecond a revocation at most, and the lead.
    assert!(newest.0 <= wall_now().0 + 200 + 250, "{newest:?}");
}

/// Replicas whose clocks differ by ten seconds, at the same time. Each token and each revocation knows when its call began and
/// returned, by one clock that none of them sees.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_with_skewed_clocks_order_tokens_and_revocations() {
    let place = Place::postgres().await;
    let time = Arc::new(AtomicI64::new(0));
    let tick = |time: &AtomicI64| time.fetch_add(1, Ordering::SeqCst);
    let mut tasks = JoinSet::new();
    for wall in [behind as fn() -> UnixMillis, ahead, wall_now] {
        let clock = Arc::new(IssueClock::with_wall(place.open().await, wall).await.unwrap());
        for task in 0..4 {
            let (clock, time) = (Arc::clone(&clock), Arc::clone(&time));
            tasks.spawn(async move {
                let (mut tokens, mut watermarks) = (Vec::new(), Vec::new());
                for _ in 0..40 {
                    let began = tick(&time);
                    if task == 0 {
                        let instant = clock.revoke().await.unwrap();
                        watermarks.push((began, instant, tick(&time)));
                    } else {
                        let instant = clock.issue().await.unwrap();
                        tokens.push((began, instant, tick(&time)));
                    }
                }
                (tokens, watermarks)
            });
        }
    }
    let (mut tokens, mut watermarks) = (Vec::new(), Vec::new());
    for (issued, revoked) in tasks.join_all().await {
        tokens.extend(issued);
        watermarks.extend(revoked);
    }
    let (mut covered, mut spared) = (0, 0);
    for (began, watermark, returned) in &watermarks {
        for (asked, instant, issued) in &tokens {
            if issued < began {
                assert!(instant <= watermark, "a token from before the revocation lives");
                covered += 1;
            } else if asked > returned {
                assert!(instant > watermark, "a token from after the revocation is dead");
                spared += 1;
            }
        }
    }
    assert!(covered > 0 && spared > 0);
}
