//! Prometheus metrics. Labels come from enums: never a path, a subject or a token.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atm_core::decision::Decision;
use atm_core::reason::Reason;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use crate::ext_authz::Judge;
use crate::feed::Cause;
use crate::introspection::Outcome;
use crate::state::StateReader;

mod store;

/// Seconds; a decision on a known token takes a few microseconds, a signature some fifty.
const BUCKETS: [f64; 12] = [
    0.000_002, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1,
];

/// Counts and times decisions.
#[derive(Debug)]
pub struct DecisionMetrics {
    permits: IntCounter,
    /// By [`Reason::ALL`]'s order.
    denials: Vec<IntCounter>,
    seconds: Histogram,
    shadow: IntCounterVec,
}

/// How a shadow policy's decision compares with the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShadowOutcome {
    /// Both let through, or both refuse for one reason.
    Same,
    /// It would have refused.
    WouldDeny,
    /// It would have let through.
    WouldPermit,
    /// It would have refused for another reason.
    OtherReason,
}

impl ShadowOutcome {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::WouldDeny => "would_deny",
            Self::WouldPermit => "would_permit",
            Self::OtherReason => "other_reason",
        }
    }

    fn of(decision: &Decision, shadow: &Decision) -> Self {
        match (decision, shadow) {
            (Decision::Permit(_), Decision::Denial(_)) => Self::WouldDeny,
            (Decision::Denial(_), Decision::Permit(_)) => Self::WouldPermit,
            (Decision::Denial(a), Decision::Denial(b)) if a.reason != b.reason => Self::OtherReason,
            _ => Self::Same,
        }
    }
}

impl DecisionMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let decisions = IntCounterVec::new(
            Opts::new("atm_sidecar_decisions_total", "Decisions by reason; permit for those let through."),
            &["reason"],
        )?;
        let options = HistogramOpts::new("atm_sidecar_decision_seconds", "Time that a decision took.");
        let seconds = Histogram::with_opts(options.buckets(BUCKETS.to_vec()))?;
        registry.register(Box::new(decisions.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        let shadow = IntCounterVec::new(
            Opts::new(
                "atm_sidecar_shadow_decisions_total",
                "Decisions of policies in shadow mode, compared with the ones in force.",
            ),
            &["policy", "outcome"],
        )?;
        registry.register(Box::new(shadow.clone()))?;
        Ok(Self {
            permits: decisions.with_label_values(&["permit"]),
            denials: Reason::ALL
                .iter()
                .map(|reason| decisions.with_label_values(&[reason.as_str()]))
                .collect(),
            seconds,
            shadow,
        })
    }

    /// Counts what a shadow policy would have decided; whether that differs. Policies' names come from operators and are
    /// bounded by the set's size.
    pub fn observe_shadow(&self, decision: &Decision, shadow: &Decision) -> bool {
        let outcome = ShadowOutcome::of(decision, shadow);
        if let Some(rule) = shadow.rule() {
            self.shadow.with_label_values(&[&*rule.policy, outcome.as_str()]).inc();
        }
        outcome != ShadowOutcome::Same
    }

    /// Counts one decision.
    pub fn observe(&self, decision: &Decision, took: Duration) {
        match decision {
            Decision::Permit(_) => self.permits.inc(),
            Decision::Denial(denial) => {
                let at = Reason::ALL.iter().position(|reason| *reason == denial.reason);
                if let Some(counter) = at.and_then(|at| self.denials.get(at)) {
                    counter.inc();
                }
            }
        }
        self.seconds.observe(took.as_secs_f64());
    }
}

/// The registry, in the text format of Prometheus.
pub fn render(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap_or_default()
}

/// Reads the feed's facts and the caches when metrics are asked for, so that nothing is kept twice.
pub struct StateCollector {
    reader: StateReader,
    judge: Arc<Judge>,
    descriptions: Vec<Desc>,
}

impl StateCollector {
    /// A collector over `reader` and `judge`, to be registered once.
    pub fn new(reader: StateReader, judge: Arc<Judge>) -> Self {
        let mut collector = Self { reader, judge, descriptions: Vec::new() };
        let families = collector.samples().unwrap_or_default();
        collector.descriptions = families
            .iter()
            .filter_map(|family| {
                Desc::new(
                    family.name().into(),
                    family.help().into(),
                    Vec::new(),
                    std::collections::HashMap::new(),
                )
                .ok()
            })
            .collect();
        collector
    }

    #[allow(clippy::cast_precision_loss)] // counts far below 2^53
    fn samples(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let (state, status) = (self.reader.load(), self.reader.status());
        let memory = self.judge.memory();
        let (hits, misses) = memory.verified.hits_and_misses();
        let (known, unknown) = memory.introspected.hits_and_misses();
        let (recorded, dropped) = self.judge.log().recorded_and_dropped();
        let age = self.reader.feed_age_ms();
        let mut families = Vec::new();
        let gauges = [
            (
                "atm_sidecar_feed_revision",
                "Newest applied revision of the feed.",
                state.position.revision as f64,
            ),
            (
                "atm_sidecar_feed_age_seconds",
                "Age of the newest heartbeat that was caught up with; +Inf before the first.",
                if age == u64::MAX { f64::INFINITY } else { age as f64 / 1_000.0 },
            ),
            ("atm_sidecar_revocations", "Revoked tokens held.", state.view.revocations.len() as f64),
            ("atm_sidecar_watermarks", "Watermarks held.", state.view.revocations.watermark_count() as f64),
            ("atm_sidecar_policy_version", "Version of the policies in force.", state.policy_version as f64),
            ("atm_sidecar_ready", "1 when decisions are made.", f64::from(u8::from(self.reader.ready()))),
            (
                "atm_sidecar_degraded",
                "1 when something is wrong; see /state.",
                f64::from(u8::from(self.reader.degraded().is_some())),
            ),
            (
                "atm_sidecar_nats_connected",
                "1 when NATS is connected.",
                f64::from(u8::from(status.connected.load(Ordering::Relaxed))),
            ),
        ];
        #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^53")]
        let sizes = [
            (
                "atm_sidecar_verified_token_cache_bytes",
                "Bytes of verified tokens.",
                memory.verified.bytes() as f64,
            ),
            (
                "atm_sidecar_introspection_cache_bytes",
                "Bytes of introspected credentials.",
                memory.introspected.bytes() as f64,
            ),
            ("atm_sidecar_dpop_proofs", "DPoP proofs that are remembered.", memory.proofs.len() as f64),
            (
                "atm_sidecar_rules",
                "Rules of the policies in force.",
                state.view.policies.rules().len() as f64,
            ),
            ("atm_sidecar_issuers", "Trusted issuers.", state.view.issuers.len() as f64),
        ];
        for (name, help, value) in gauges.into_iter().chain(sizes) {
            let gauge = Gauge::new(name, help)?;
            gauge.set(value);
            families.extend(gauge.collect());
        }
        let counters = [
            (
                "atm_sidecar_change_sets_applied_total",
                "Change sets applied.",
                status.applied.load(Ordering::Relaxed),
            ),
            ("atm_sidecar_verified_token_cache_hits_total", "Tokens whose signature was known.", hits),
            (
                "atm_sidecar_verified_token_cache_misses_total",
                "Tokens whose signature was not known.",
                misses,
            ),
            ("atm_sidecar_introspection_cache_hits_total", "Opaque credentials that were known.", known),
            (
                "atm_sidecar_introspection_cache_misses_total",
                "Opaque credentials that were not known.",
                unknown,
            ),
            ("atm_sidecar_decision_log_records_total", "Records of the decision log.", recorded),
            (
                "atm_sidecar_decision_log_dropped_total",
                "Records dropped because the queue was full.",
                dropped,
            ),
        ];
        for (name, help, value) in counters {
            let counter = Counter::new(name, help)?;
            counter.inc_by(value as f64);
            families.extend(counter.collect());
        }
        families.extend(self.by_cause()?);
        families.extend(store::families(&self.reader)?);
        Ok(families)
    }

    /// What is counted by cause or outcome.
    fn by_cause(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let status = self.reader.status();
        let refused = IntCounterVec::new(
            Opts::new(
                "atm_sidecar_change_sets_refused_total",
                "Messages of the feed that were refused, by cause.",
            ),
            &["cause"],
        )?;
        for cause in Cause::ALL {
            refused.with_label_values(&[cause.as_str()]).inc_by(status.refusals(cause));
        }
        let mut families = refused.collect();
        let asked = IntCounterVec::new(
            Opts::new("atm_sidecar_introspections_total", "Questions about opaque credentials, by outcome."),
            &["outcome"],
        )?;
        for outcome in Outcome::ALL {
            asked.with_label_values(&[outcome.as_str()]).inc_by(self.judge.introspector().count(outcome));
        }
        families.extend(asked.collect());
        Ok(families)
    }
}

impl Collector for StateCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.samples().unwrap_or_default()
    }
}
