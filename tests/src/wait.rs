//! Waiting for conditions, never for a fixed time.

use std::fmt::Debug;
use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the usual condition may take: far more than it needs on a loaded two-core machine.
pub const USUAL: Duration = Duration::from_secs(20);

/// How long what waits for several others may take: elections of a cluster, a fleet that starts.
pub const LONG: Duration = Duration::from_mins(1);

const PAUSE: Duration = Duration::from_millis(5);
/// How often the clock is looked at to see whether this process runs, and what it may be late then.
const LOOK: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(1);

/// Asks `probe` again and again until it gives a value. Panics with `what` and the last error when `bound` has passed, in which
/// the time for which this machine stood still does not count.
pub async fn until<T, E, F>(what: &str, bound: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: Debug,
{
    let (start, before) = (Instant::now(), stood_still());
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(last) if start.elapsed() > bound => {
                // Who has just been woken up is told so within this time.
                tokio::time::sleep(LOOK * 4).await;
                let counted = start.elapsed().saturating_sub(stood_still().saturating_sub(before));
                assert!(counted <= bound, "waited {bound:?} for {what}; last seen: {last:?}");
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// For how long this process has not run since the first call: it was stopped, or the machine suspended.
pub fn stood_still() -> Duration {
    static MILLIS: OnceLock<&'static AtomicU64> = OnceLock::new();
    let millis = MILLIS.get_or_init(|| {
        let millis: &'static AtomicU64 = Box::leak(Box::default());
        std::thread::spawn(move || {
            let mut last = Instant::now();
            loop {
                std::thread::sleep(LOOK);
                let late = last.elapsed().saturating_sub(LOOK);
                if late > LATE {
                    millis.fetch_add(u64::try_from(late.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
                last = Instant::now();
            }
        });
        millis
    });
    Duration::from_millis(millis.load(Ordering::Relaxed))
}

/// As [`until`], for a synchronous probe.
pub async fn until_some<T>(what: &str, bound: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    until(what, bound, || std::future::ready(probe().ok_or("not yet"))).await
}
