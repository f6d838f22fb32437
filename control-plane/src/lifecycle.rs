//! When to say ready, and how to end without breaking what is under way.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long requests under way may take to end.
pub const DRAIN_BOUND: Duration = Duration::from_secs(10);
/// How long background tasks may take to end after that. Each step of theirs is one transaction, so cutting one off
/// loses nothing.
const BACKGROUND_BOUND: Duration = Duration::from_secs(3);

/// What still keeps the program from being ready. Ready once every guard has been dropped.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, usize>>>);

/// Keeps the program unready until it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once, it blocks nothing"]
pub struct ReadinessGuard {
    readiness: Readiness,
    what: &'static str,
}

impl Readiness {
    /// Blocks readiness for `what`, which `/readyz` names.
    pub fn block(&self, what: &'static str) -> ReadinessGuard {
        *self.lock().entry(what).or_default() += 1;
        ReadinessGuard { readiness: self.clone(), what }
    }

    /// What is being waited for; empty when ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, usize>> {
        // Nothing panics under the lock, and counts stay counts.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ReadinessGuard {
    fn drop(&mut self) {
        let mut pending = self.readiness.lock();
        if let Some(count) = pending.get_mut(self.what) {
            *count -= 1;
            if *count == 0 {
                pending.remove(self.what);
            }
        }
    }
}

/// The two halves of a program's end: servers first, so that requests under way still find everything they need, then
/// the tasks behind them.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    readiness: Readiness,
    servers: Phase,
    background: Phase,
    failed: CancellationToken,
}

#[derive(Debug, Clone, Default)]
struct Phase {
    ends: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// What keeps the program from being ready.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Cancelled when servers take no more work.
    pub fn servers_end(&self) -> CancellationToken {
        self.servers.ends.clone()
    }

    /// Cancelled when background tasks end.
    pub fn background_ends(&self) -> CancellationToken {
        self.background.ends.clone()
    }

    /// Runs a server, which ends by itself soon after [`Self::servers_end`].
    pub fn spawn_server(&self, name: &'static str, server: impl Future<Output = ()> + Send + 'static) {
        self.spawn(&self.servers, name, server);
    }

    /// Runs a task that servers rely on, which ends by itself soon after [`Self::background_ends`].
    pub fn spawn_background(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(&self.background, name, task);
    }

    /// A task that ends unasked takes the whole program with it: half a control plane that looks healthy is worse than
    /// one that is restarted.
    fn spawn(&self, phase: &Phase, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (ends, failed) = (phase.ends.clone(), self.failed.clone());
        let task = tokio::spawn(task);
        phase.tasks.spawn(async move {
            let outcome = task.await;
            if !ends.is_cancelled() {
                tracing::error!(task = name, panicked = outcome.is_err(), "a task has ended unasked");
                failed.cancel();
            }
        });
    }

    /// Returns when a task has ended unasked.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Ends servers, then background tasks, each within its bound. True: all work under way was finished.
    pub async fn drain(&self) -> bool {
        // Load balancers look elsewhere from now on.
        let _never_ready_again = std::mem::ManuallyDrop::new(self.readiness.block("shutting down"));
        let servers = self.servers.end(DRAIN_BOUND).await;
        let background = self.background.end(BACKGROUND_BOUND).await;
        servers && background
    }
}

impl Phase {
    async fn end(&self, bound: Duration) -> bool {
        self.ends.cancel();
        self.tasks.close();
        tokio::time::timeout(bound, self.tasks.wait()).await.is_ok()
    }
}

/// Returns when the program is asked to end: SIGTERM or SIGINT.
pub async fn termination() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_guard_has_gone() {
        let readiness = Readiness::default();
        let (store, feed, again) =
            (readiness.block("store"), readiness.block("feed"), readiness.block("feed"));
        drop(feed);
        assert_eq!(readiness.pending(), ["feed", "store"]);
        drop((store, again));
        assert!(readiness.pending().is_empty());
    }

    #[tokio::test]
    async fn servers_end_before_what_they_rely_on() {
        let lifecycle = Lifecycle::default();
        let (servers, background) = (lifecycle.servers_end(), lifecycle.background_ends());
        let relied_on = background.clone();
        lifecycle.spawn_server("server", async move {
            servers.cancelled().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!relied_on.is_cancelled());
        });
        lifecycle.spawn_background("task", async move { background.cancelled().await });
        assert!(lifecycle.drain().await);
        assert_eq!(lifecycle.readiness().pending(), ["shutting down"]);
        assert!(!lifecycle.failed.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_ends_unasked_is_noticed() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn_background("short", async {});
        lifecycle.failed().await;
    }
}
