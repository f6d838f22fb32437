//! Prometheus metrics. Labels come from enums: never a path, a subject or a token.

use std::time::Duration;

use atm_core::decision::Decision;
use atm_core::reason::Reason;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

mod state;

pub use state::StateCollector;

mod store;

/// Seconds; a decision on a known token takes a few microseconds, a signature some fifty.
const BUCKETS: [f64; 14] = [
    0.000_001, 0.000_002, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005,
    0.025, 0.1, 0.25,
];

/// Seconds; an answer of the control plane takes around a millisecond, and the time-out is some hundred.
const INTROSPECTION_BUCKETS: [f64; 10] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25];

/// Counts and times decisions.
#[derive(Debug)]
pub struct DecisionMetrics {
    permits: IntCounter,
    /// By [`Reason::ALL`]'s order.
    denials: Vec<IntCounter>,
    seconds: Histogram,
    introspection_seconds: Histogram,
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
        let options = HistogramOpts::new(
            "atm_sidecar_introspection_seconds",
            "Time that requests with an unknown opaque credential waited for its answer.",
        );
        let introspection_seconds = Histogram::with_opts(options.buckets(INTROSPECTION_BUCKETS.to_vec()))?;
        registry.register(Box::new(introspection_seconds.clone()))?;
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
            introspection_seconds,
            shadow,
        })
    }

    /// Times the wait for the answer about one credential.
    pub fn observe_introspection(&self, took: Duration) {
        self.introspection_seconds.observe(took.as_secs_f64());
    }

    /// Decisions so far: those that let through, and those that refused, by reason, without the reasons that never occurred.
    pub fn counts(&self) -> (u64, Vec<(Reason, u64)>) {
        let denials = Reason::ALL.iter().zip(&self.denials).map(|(reason, counter)| (*reason, counter.get()));
        (self.permits.get(), denials.filter(|(_, count)| *count > 0).collect())
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
