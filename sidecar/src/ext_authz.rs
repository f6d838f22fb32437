//! Envoy's external authorization: a check comes in, [`decide`] judges it, an answer goes out. gRPC and HTTP differ only in
//! how a request is read and an answer is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use atm_core::decision::{Decision, Denial, Now, decide};
use atm_core::freshness::Freshness;
use atm_core::reason::Reason;
use atm_core::request::Request;

use crate::cache::VerifiedTokenCache;
use crate::config::FreshnessSettings;
use crate::metrics::DecisionMetrics;
use crate::state::StateReader;

pub mod grpc;
pub mod http;
mod identity;
mod protobuf;
mod request;
mod response;

/// Judges requests from the newest published state. Shared by all listeners and threads.
#[derive(Debug)]
pub struct Judge {
    reader: StateReader,
    cache: VerifiedTokenCache,
    metrics: DecisionMetrics,
    freshness: FreshnessSettings,
}

impl Judge {
    /// A judge over what `reader` loads.
    pub fn new(
        reader: StateReader,
        cache: VerifiedTokenCache,
        metrics: DecisionMetrics,
        freshness: FreshnessSettings,
    ) -> Arc<Self> {
        Arc::new(Self { reader, cache, metrics, freshness })
    }

    /// The cache of verified tokens, for metrics.
    pub fn cache(&self) -> &VerifiedTokenCache {
        &self.cache
    }

    /// The decision on `request`. Always one: a fault of ours ends as a refusal with 503, never as an allow.
    pub fn judge(&self, request: &Request<'_>) -> Decision {
        let begun = Instant::now();
        let decision = if self.reader.ready() {
            // A panic must not become a transport error, which Envoy may be told to let through (failure_mode_allow).
            catch_unwind(AssertUnwindSafe(|| {
                let state = self.reader.borrow();
                let FreshnessSettings { degraded_after_ms, stale_after_ms } = self.freshness;
                let age = self.reader.feed_age_ms();
                let freshness = Freshness::with_thresholds(age, degraded_after_ms, stale_after_ms);
                let now = Now { wall: crate::feed::now(), freshness };
                decide(&state.view, &self.cache, request, now)
            }))
            .unwrap_or_else(|_| {
                tracing::error!("a decision panicked; the request is refused");
                Decision::Denial(Denial::new(Reason::Internal))
            })
        } else {
            Decision::Denial(Denial::new(Reason::NotReady))
        };
        self.metrics.observe(&decision, begun.elapsed());
        decision
    }

    /// The decision on what could not even be read as a request.
    pub fn unreadable(&self) -> Decision {
        let decision = Decision::Denial(Denial::new(Reason::MalformedRequest));
        self.metrics.observe(&decision, std::time::Duration::ZERO);
        decision
    }
}
