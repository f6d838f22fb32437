//! Envoy's external authorization: a check comes in, [`decide`] judges it, an answer goes out. gRPC and HTTP differ only in
//! how a request is read and an answer is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use atm_core::decision::{self, Decision, Denial, Now, Step, Verdict, decide, decide_shadow, decide_traced};
use atm_core::freshness::Freshness;
use atm_core::reason::Reason;
use atm_core::request::Request;

use crate::config::FreshnessSettings;
use crate::decision_log::DecisionLog;
use crate::introspection::Introspector;
use crate::memory::{Answered, Memory};
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
    memory: Arc<Memory>,
    introspector: Introspector,
    metrics: DecisionMetrics,
    log: DecisionLog,
    freshness: FreshnessSettings,
    /// Whether the header `x-forwarded-client-cert` is believed.
    trust_forwarded_certificate: bool,
}

/// What a judge is made of.
#[derive(Debug)]
pub struct JudgeParts {
    /// What it decides from.
    pub reader: StateReader,
    /// What it remembers.
    pub memory: Arc<Memory>,
    /// Whom it asks about opaque credentials.
    pub introspector: Introspector,
    /// What it counts.
    pub metrics: DecisionMetrics,
    /// What it writes down.
    pub log: DecisionLog,
    /// When knowledge is called old.
    pub freshness: FreshnessSettings,
    /// Whether the header `x-forwarded-client-cert` is believed.
    pub trust_forwarded_certificate: bool,
}

impl Judge {
    /// A judge.
    pub fn new(parts: JudgeParts) -> Arc<Self> {
        let JudgeParts { reader, memory, introspector, metrics, log, freshness, trust_forwarded_certificate } =
            parts;
        Arc::new(Self { reader, memory, introspector, metrics, log, freshness, trust_forwarded_certificate })
    }

    /// What is remembered, for metrics.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Who asks about opaque credentials, for metrics.
    pub fn introspector(&self) -> &Introspector {
        &self.introspector
    }

    /// What is written down, for metrics.
    pub fn log(&self) -> &DecisionLog {
        &self.log
    }

    pub(crate) fn trusts_forwarded_certificate(&self) -> bool {
        self.trust_forwarded_certificate
    }

    /// The decision on `request`. Always one: a fault of ours ends as a refusal with 503, never as an allow.
    pub async fn judge(&self, request: &Request<'_>) -> Decision {
        let begun = Instant::now();
        let decision = if self.reader.ready() {
            match self.verdict(&*self.memory, request) {
                Verdict::Decided(decision) => decision,
                Verdict::Introspect(digest) => {
                    let answer = self.introspector.ask(digest, traceparent(request)).await;
                    let answered = Answered { memory: &self.memory, digest, answer };
                    // An answer that is out of date already was overtaken by a change; the next request asks anew.
                    self.verdict(&answered, request).or(Reason::IntrospectionUnavailable)
                }
            }
        } else {
            Decision::Denial(Denial::new(Reason::NotReady))
        };
        self.metrics.observe(&decision, begun.elapsed());
        self.compare_shadow(request, &decision);
        self.log.record(request, &decision, begun.elapsed());
        decision
    }

    fn now(&self) -> Now {
        let FreshnessSettings { degraded_after_ms, stale_after_ms } = self.freshness;
        let age = self.reader.feed_age_ms();
        let freshness = Freshness::with_thresholds(age, degraded_after_ms, stale_after_ms);
        Now { wall: crate::feed::now(), freshness, feed_age_ms: age }
    }

    fn verdict(&self, memory: &impl decision::Memory, request: &Request<'_>) -> Verdict {
        // A panic must not become a transport error, which Envoy may be told to let through (failure_mode_allow).
        catch_unwind(AssertUnwindSafe(|| {
            let state = self.reader.borrow();
            decide(&state.view, memory, request, self.now())
        }))
        .unwrap_or_else(|_| {
            tracing::error!("a decision panicked; the request is refused");
            Denial::new(Reason::Internal).into()
        })
    }

    /// Counts and samples where policies in shadow mode would have decided otherwise.
    fn compare_shadow(&self, request: &Request<'_>, decision: &Decision) {
        let state = self.reader.borrow();
        if !state.view.policies.has_shadow() {
            return;
        }
        let shadow =
            catch_unwind(AssertUnwindSafe(|| decide_shadow(&state.view, &*self.memory, request, self.now())));
        if let Ok(Some(shadow)) = shadow {
            let differs = self.metrics.observe_shadow(decision, &shadow);
            if differs {
                self.log.record_shadow(request, decision, &shadow);
            }
        }
    }

    /// The decision that a request like this would get now, with every step. Nothing is counted, asked or noted.
    pub fn explain(&self, request: &Request<'_>) -> (Decision, Vec<(Step, bool, String)>) {
        let mut steps = Vec::new();
        let state = self.reader.borrow();
        let verdict = decide_traced(&state.view, &Unnoted(&self.memory), request, self.now(), &mut steps);
        (verdict.or(Reason::IntrospectionUnavailable), steps)
    }

    /// The decision on what could not even be read as a request.
    pub fn unreadable(&self) -> Decision {
        let decision = Decision::Denial(Denial::new(Reason::MalformedRequest));
        self.metrics.observe(&decision, std::time::Duration::ZERO);
        decision
    }
}

/// Remembers and notes nothing new.
struct Unnoted<'m>(&'m Memory);

impl decision::Memory for Unnoted<'_> {
    fn introspected(
        &self,
        digest: &decision::CredentialDigest,
        now: atm_core::time::UnixMillis,
    ) -> decision::Known {
        decision::Memory::introspected(self.0, digest, now)
    }

    fn first_use(
        &self,
        _proof: &atm_core::binding::VerifiedProof,
        _now: atm_core::time::UnixMillis,
    ) -> decision::ProofUse {
        decision::ProofUse::First
    }

    fn nonce_key(&self) -> Option<&atm_core::binding::NonceKey> {
        decision::Memory::nonce_key(self.0)
    }
}

/// The caller's trace context (W3C Trace Context §3.2), if it is well formed.
pub(crate) fn traceparent<'r>(request: &Request<'r>) -> Option<&'r str> {
    let value = std::str::from_utf8(request.header_values("traceparent").next()?).ok()?;
    let shape = |(at, byte): (usize, u8)| match at {
        2 | 35 | 52 => byte == b'-',
        _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
    };
    (value.len() == 55 && value.bytes().enumerate().all(shape)).then_some(value)
}
