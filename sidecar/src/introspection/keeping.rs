//! Keeps answers over a restart. Written behind: a request waits for its answer and never for the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atm_core::time::UnixMillis;
use atm_core::token::AuthenticToken;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::memory::{Introspected, IntrospectionCache};
use crate::state::State;
use crate::store::{IntrospectedStore, Kept};

/// Answers that wait for the disk at most. One that finds the queue full is asked for again after a restart.
const QUEUE: usize = 1_024;
/// Answers in one write at most.
const BATCH: usize = 256;

/// Takes answers to be kept. Never blocks.
#[derive(Debug)]
pub struct Keeper {
    sender: mpsc::Sender<Kept>,
    kept: Arc<AtomicU64>,
    dropped: AtomicU64,
}

impl Keeper {
    pub(super) fn keep(&self, answer: Kept) {
        if self.sender.try_send(answer).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers that the disk has.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Answers that were not kept, because the disk did not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A keeper, and what writes for it; the latter ends, with all that waits written, when `stop` is cancelled.
pub fn start(store: IntrospectedStore, stop: CancellationToken) -> (Keeper, impl Future<Output = ()>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let kept = Arc::<AtomicU64>::default();
    let writing = write(store, receiver, Arc::clone(&kept), stop);
    (Keeper { sender, kept, dropped: AtomicU64::new(0) }, writing)
}

async fn write(
    store: IntrospectedStore,
    mut answers: mpsc::Receiver<Kept>,
    kept: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let mut failing = false;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        if stop.run_until_cancelled(answers.recv_many(&mut batch, BATCH)).await.is_none() {
            answers.close();
        }
        if batch.is_empty() && answers.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        let (writing, count) = (store.clone(), batch.len() as u64);
        let saved = tokio::task::spawn_blocking(move || writing.save(&batch)).await;
        match saved {
            Ok(Ok(())) => {
                kept.fetch_add(count, Ordering::Relaxed);
                failing = false;
            }
            Ok(Err(error)) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(%error, "what opaque credentials stand for is not kept for the next start");
            }
            Ok(Err(_)) => {}
            Err(_) => return, // the runtime is shutting down
        }
    }
}

/// Puts into `cache` what was learnt before the start and still counts at `now`; how much that is. An answer of an issuer that is
/// no longer trusted is left out, and what was revoked or changed since is found by the decision, as ever.
pub fn restore(
    store: &IntrospectedStore,
    state: &State,
    cache: &IntrospectionCache,
    now: UnixMillis,
) -> usize {
    let mut restored = 0;
    let loaded = store.load(state.position.epoch, now, |kept| {
        let Some(token) = token(&kept, state) else { return };
        let Kept { digest, received, until, claims, .. } = kept;
        cache.insert(digest, Introspected { token, received, until, bytes: claims.len() });
        restored += 1;
    });
    if let Err(error) = loaded {
        tracing::warn!(%error, "what opaque credentials stood for before this start cannot be read; they are asked about anew");
    }
    restored
}

/// The token of an active answer, `Some(None)` for one that is not active; `None` where it is not accepted any more.
#[expect(clippy::option_option, reason = "three outcomes, of which the inner one is the cache's own type")]
fn token(kept: &Kept, state: &State) -> Option<Option<Arc<AuthenticToken>>> {
    if kept.claims.is_empty() {
        return Some(None);
    }
    let claims = atm_core::json::parse_object(kept.claims.as_bytes()).ok()?;
    let token = AuthenticToken::introspected(claims, &state.view.issuers, kept.learnt_at).ok()?;
    Some(Some(Arc::new(token)))
}
