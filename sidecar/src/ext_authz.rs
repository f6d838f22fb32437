//! Envoy's external authorization: a check comes in, [`decide`] judges it, an answer goes out. gRPC and HTTP differ only in
//! how a request is read and an answer is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atm_core::decision::{
    self, CredentialDigest, Decision, Denial, Known, Now, Step, Verdict, decide, decide_shadow, decide_traced,
};
use atm_core::freshness::Freshness;
use atm_core::reason::Reason;
use atm_core::request::Request;
use atm_telemetry::{ActiveSpan, Kind, TraceParent, Tracing};

use crate::config::FreshnessSettings;
use crate::decision_log::{DecidedBy, DecisionLog};
use crate::introspection::Introspector;
use crate::memory::{Look, Memory};
use crate::metrics::DecisionMetrics;
use crate::state::StateReader;

pub mod grpc;
pub mod http;
mod identity;
mod response;
mod turn;
mod wire;

/// Judges requests from the newest published state. Shared by all listeners and threads.
#[derive(Debug)]
pub struct Judge(JudgeParts);

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
    /// Where its spans go, if anywhere.
    pub tracing: Option<Tracing>,
    /// When knowledge is called old.
    pub freshness: FreshnessSettings,
    /// Whether the header `x-forwarded-client-cert` is believed.
    pub trust_forwarded_certificate: bool,
}

impl Judge {
    /// A judge.
    pub fn new(parts: JudgeParts) -> Arc<Self> {
        Arc::new(Self(parts))
    }

    /// What is remembered, for metrics.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// What is counted of decisions, for `/state`.
    pub fn metrics(&self) -> &DecisionMetrics {
        &self.0.metrics
    }

    /// Who asks about opaque credentials, for metrics.
    pub fn introspector(&self) -> &Introspector {
        &self.0.introspector
    }

    /// What is written down, for metrics.
    pub fn log(&self) -> &DecisionLog {
        &self.0.log
    }

    /// Where spans go, for metrics.
    pub fn tracing(&self) -> Option<&Tracing> {
        self.0.tracing.as_ref()
    }

    pub(crate) fn trusts_forwarded_certificate(&self) -> bool {
        self.0.trust_forwarded_certificate
    }

    /// The decision on `request`. Always one: a fault of ours ends as a refusal with 503, never as an allow.
    pub async fn judge(&self, request: &Request<'_>) -> Decision {
        let begun = Instant::now();
        let mut span = self
            .0
            .tracing
            .as_ref()
            .and_then(|tracing| tracing.begin("atm.check", Kind::Server, traceparent(request)));
        let decision = if self.0.reader.ready() {
            self.decided(request, begun, span.as_ref()).await
        } else {
            Decision::Denial(Denial::new(Reason::NotReady))
        };
        let took = begun.elapsed();
        self.0.metrics.observe(&decision, took);
        let by = self.decided_by(span.as_ref());
        self.compare_shadow(request, &decision, by);
        self.0.log.record(request, &decision, took, by);
        if let Some(span) = &mut span {
            describe(span, &decision);
        }
        decision
    }

    /// Looks at what is known first: who was seen before does not wait behind the signatures of others.
    async fn decided(&self, request: &Request<'_>, begun: Instant, span: Option<&ActiveSpan>) -> Decision {
        let mut look = Look { memory: &self.0.memory, may_verify: false, answer: None };
        let mut verdict = self.verdict(&look, request);
        if matches!(verdict, Verdict::Verify) {
            let _turn = turn::next(begun).await;
            look.may_verify = true;
            verdict = self.verdict(&look, request);
        } else {
            turn::seen(begun);
        }
        if let Verdict::Introspect(digest) = verdict {
            look.answer = Some((digest, self.ask(digest, request, span).await));
            verdict = self.verdict(&look, request);
        }
        // An answer that is out of date already was overtaken by a change; the next request asks anew.
        verdict.or(Reason::IntrospectionUnavailable)
    }

    /// Asks about an opaque credential; a trace that is recorded goes on at the control plane.
    async fn ask(&self, digest: CredentialDigest, request: &Request<'_>, span: Option<&ActiveSpan>) -> Known {
        let mut asking = span.and_then(|span| span.child("atm.introspection", Kind::Client));
        let parent = asking.as_ref().map(ActiveSpan::traceparent).or_else(|| traceparent(request));
        let begun = Instant::now();
        let known = self.0.introspector.ask(digest, parent).await;
        self.0.metrics.observe_introspection(begun.elapsed());
        if let Some(asking) = &mut asking {
            let outcome = match &known {
                Known::Active(..) => "active",
                Known::Inactive => "inactive",
                Known::Failed(reason) => {
                    asking.fault(reason.description());
                    reason.as_str()
                }
                Known::Unknown => "unknown",
            };
            asking.set("atm.introspection.outcome", outcome);
        }
        known
    }

    fn decided_by(&self, span: Option<&ActiveSpan>) -> DecidedBy {
        let state = self.0.reader.borrow();
        DecidedBy {
            revision: state.position.revision,
            policy_version: state.policy_version,
            trace: span.map(ActiveSpan::traceparent),
        }
    }

    fn now(&self) -> Now {
        let FreshnessSettings { degraded_after_ms, stale_after_ms } = self.0.freshness;
        let age = self.0.reader.feed_age_ms();
        let freshness = Freshness::with_thresholds(age, degraded_after_ms, stale_after_ms);
        Now { wall: crate::feed::now(), freshness, feed_age_ms: age }
    }

    fn verdict(&self, memory: &impl decision::Memory, request: &Request<'_>) -> Verdict {
        // A panic must not become a transport error, which Envoy may be told to let through (failure_mode_allow).
        catch_unwind(AssertUnwindSafe(|| {
            let state = self.0.reader.borrow();
            decide(&state.view, memory, request, self.now())
        }))
        .unwrap_or_else(|_| {
            tracing::error!("a decision panicked; the request is refused");
            Denial::new(Reason::Internal).into()
        })
    }

    /// Counts and samples where policies in shadow mode would have decided otherwise.
    fn compare_shadow(&self, request: &Request<'_>, decision: &Decision, by: DecidedBy) {
        let state = self.0.reader.borrow();
        if !state.view.policies.has_shadow() {
            return;
        }
        let shadow = catch_unwind(AssertUnwindSafe(|| {
            decide_shadow(&state.view, &*self.0.memory, request, self.now())
        }));
        if let Ok(Some(shadow)) = shadow {
            let differs = self.0.metrics.observe_shadow(decision, &shadow);
            if differs {
                self.0.log.record_shadow(request, decision, &shadow, by);
            }
        }
    }

    /// The decision that a request like this would get now, with every step. Nothing is counted, asked or noted.
    pub fn explain(&self, request: &Request<'_>) -> (Decision, Vec<(Step, bool, String)>) {
        let mut steps = Vec::new();
        let state = self.0.reader.borrow();
        let verdict = decide_traced(&state.view, &Unnoted(&self.0.memory), request, self.now(), &mut steps);
        (verdict.or(Reason::IntrospectionUnavailable), steps)
    }

    /// The decision on what could not even be read as a request.
    pub fn unreadable(&self) -> Decision {
        let decision = Decision::Denial(Denial::new(Reason::MalformedRequest));
        self.0.metrics.observe(&decision, Duration::ZERO);
        self.0.log.record(&Request::default(), &decision, Duration::ZERO, self.decided_by(None));
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

/// What a span says of a decision.
fn describe(span: &mut ActiveSpan, decision: &Decision) {
    span.set("atm.reason", decision.as_str());
    if let Some(rule) = decision.rule() {
        span.set("atm.policy", rule.policy.to_string());
        span.set("atm.rule", rule.name.to_string());
    }
    match decision {
        Decision::Permit(permit) => span.set("atm.freshness", permit.freshness.as_str()),
        // A refusal is no fault; that nothing could be decided is.
        Decision::Denial(denial) if denial.reason.status() == 503 => {
            span.fault(denial.reason.description());
        }
        Decision::Denial(_) => {}
    }
}

/// The caller's trace context, if it is well formed and there is one only.
pub(crate) fn traceparent(request: &Request<'_>) -> Option<TraceParent> {
    let mut values = request.header_values("traceparent");
    let value = std::str::from_utf8(values.next()?).ok()?;
    values.next().is_none().then(|| TraceParent::parse(value)).flatten()
}
