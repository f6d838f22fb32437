//! Waiting for conditions, never for a fixed time.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// How long the usual condition may take: far more than it needs on a loaded two-core machine.
pub const USUAL: Duration = Duration::from_secs(20);

/// How long what waits for several others may take: elections of a cluster, a fleet that starts.
pub const LONG: Duration = Duration::from_mins(1);

const PAUSE: Duration = Duration::from_millis(5);

/// Asks `probe` again and again until it gives a value. Panics with `what` and the last error when `bound` has passed.
pub async fn until<T, E, F>(what: &str, bound: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: Debug,
{
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(last) if start.elapsed() > bound => {
                panic!("waited {bound:?} for {what}; last seen: {last:?}")
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// As [`until`], for a synchronous probe.
pub async fn until_some<T>(what: &str, bound: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    until(what, bound, || std::future::ready(probe().ok_or("not yet"))).await
}
