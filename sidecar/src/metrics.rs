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
use crate::state::StateReader;

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
        Ok(Self {
            permits: decisions.with_label_values(&["permit"]),
            denials: Reason::ALL
                .iter()
                .map(|reason| decisions.with_label_values(&[reason.as_str()]))
                .collect(),
            seconds,
        })
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
        let (hits, misses) = self.judge.cache().hits_and_misses();
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
        for (name, help, value) in gauges {
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
        ];
        for (name, help, value) in counters {
            let counter = Counter::new(name, help)?;
            counter.inc_by(value as f64);
            families.extend(counter.collect());
        }
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
        families.extend(refused.collect());
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
