//! What is read when somebody asks: the feed's facts, the caches, the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntCounterVec, Opts};

use crate::ext_authz::Judge;
use crate::feed::Cause;
use crate::introspection::Outcome;
use crate::memory::CacheCounts;
use crate::state::StateReader;

/// Reads the feed's facts, the caches and the store when metrics are asked for, so that nothing is kept twice.
pub struct StateCollector {
    reader: StateReader,
    judge: Arc<Judge>,
    descriptions: Vec<Desc>,
}

/// A name, what it means, and its value.
pub(super) type Sample = (&'static str, &'static str, f64);

impl StateCollector {
    /// A collector over `reader` and `judge`, to be registered once.
    pub fn new(reader: StateReader, judge: Arc<Judge>) -> Self {
        let mut collector = Self { reader, judge, descriptions: Vec::new() };
        let families = collector.families().unwrap_or_default();
        let describe = |family: &MetricFamily| {
            Desc::new(family.name().into(), family.help().into(), Vec::new(), HashMap::new()).ok()
        };
        collector.descriptions = families.iter().filter_map(describe).collect();
        collector
    }

    fn families(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let mut families = gauges([self.feed_gauges(), self.cache_gauges()].concat())?;
        families.extend(counters(self.counters())?);
        families.extend(self.by_label()?);
        families.extend(super::store::families(&self.reader)?);
        Ok(families)
    }

    fn feed_gauges(&self) -> Vec<Sample> {
        let (state, status) = (self.reader.load(), self.reader.status());
        let age = self.reader.feed_age_ms();
        let age = if age == u64::MAX { f64::INFINITY } else { number(age) / 1_000.0 };
        vec![
            (
                "atm_sidecar_feed_revision",
                "Newest applied revision of the feed.",
                number(state.position.revision),
            ),
            (
                "atm_sidecar_feed_age_seconds",
                "Age of the newest heartbeat that was caught up with; +Inf before the first.",
                age,
            ),
            ("atm_sidecar_revocations", "Revoked tokens held.", size(state.view.revocations.len())),
            ("atm_sidecar_watermarks", "Watermarks held.", size(state.view.revocations.watermark_count())),
            ("atm_sidecar_policy_version", "Version of the policies in force.", number(state.policy_version)),
            ("atm_sidecar_rules", "Rules of the policies in force.", size(state.view.policies.rules().len())),
            ("atm_sidecar_issuers", "Trusted issuers.", size(state.view.issuers.len())),
            ("atm_sidecar_ready", "1 when decisions are made.", flag(self.reader.ready())),
            (
                "atm_sidecar_degraded",
                "1 when something is wrong; see /state.",
                flag(self.reader.degraded().is_some()),
            ),
            (
                "atm_sidecar_feed_behind",
                "1 while a heartbeat tells of more than has been applied.",
                flag(status.behind.load(Ordering::Relaxed)),
            ),
            (
                "atm_sidecar_feed_refusing",
                "1 while the next revision can be neither verified nor understood.",
                flag(status.refusing.load(Ordering::Relaxed)),
            ),
            (
                "atm_sidecar_diverged",
                "1 while the copy differs from the log and is repaired.",
                flag(status.diverged.load(Ordering::Relaxed)),
            ),
            (
                "atm_sidecar_snapshot_loading",
                "1 while a snapshot is being loaded.",
                flag(status.loading.load(Ordering::Relaxed)),
            ),
            (
                "atm_sidecar_store_failing",
                "1 while what is applied cannot be saved.",
                flag(
                    status.store_failing.load(Ordering::Relaxed)
                        || status.store_abandoned.load(Ordering::Relaxed),
                ),
            ),
            (
                "atm_sidecar_nats_connected",
                "1 when NATS is connected.",
                flag(status.connected.load(Ordering::Relaxed)),
            ),
        ]
    }

    fn cache_gauges(&self) -> Vec<Sample> {
        let memory = self.judge.memory();
        vec![
            (
                "atm_sidecar_verified_token_cache_bytes",
                "Bytes of verified tokens.",
                number(memory.verified.bytes()),
            ),
            (
                "atm_sidecar_verified_token_cache_entries",
                "Verified tokens that are remembered.",
                size(memory.verified.len()),
            ),
            (
                "atm_sidecar_introspection_cache_bytes",
                "Bytes of introspected credentials.",
                number(memory.introspected.bytes()),
            ),
            (
                "atm_sidecar_introspection_cache_entries",
                "Introspected credentials that are remembered.",
                size(memory.introspected.len()),
            ),
            (
                "atm_sidecar_introspections_under_way",
                "Questions about opaque credentials that wait for their answer.",
                size(self.judge.introspector().under_way()),
            ),
            ("atm_sidecar_dpop_proofs", "DPoP proofs that are remembered.", size(memory.proofs.len())),
        ]
    }

    fn counters(&self) -> Vec<Sample> {
        let (memory, status) = (self.judge.memory(), self.reader.status());
        let CacheCounts { hits, misses, evictions } = memory.verified.counts();
        let introspected = memory.introspected.counts();
        let log = self.judge.log().counts();
        vec![
            (
                "atm_sidecar_change_sets_applied_total",
                "Change sets applied.",
                number(status.applied.load(Ordering::Relaxed)),
            ),
            (
                "atm_sidecar_divergences_total",
                "Times that the copy was found to differ from the log.",
                number(status.divergences.load(Ordering::Relaxed)),
            ),
            (
                "atm_sidecar_repairs_total",
                "Times that the copy was repaired from a snapshot.",
                number(status.repairs.load(Ordering::Relaxed)),
            ),
            (
                "atm_sidecar_store_scrubs_total",
                "Times that the ids on disk were compared with the index.",
                number(status.scrubs.load(Ordering::Acquire)),
            ),
            (
                "atm_sidecar_verified_token_cache_hits_total",
                "Tokens whose signature was known.",
                number(hits),
            ),
            (
                "atm_sidecar_verified_token_cache_misses_total",
                "Tokens whose signature was not known.",
                number(misses),
            ),
            (
                "atm_sidecar_verified_token_cache_evictions_total",
                "Verified tokens that made room for others.",
                number(evictions),
            ),
            (
                "atm_sidecar_introspection_cache_hits_total",
                "Opaque credentials that were known.",
                number(introspected.hits),
            ),
            (
                "atm_sidecar_introspection_cache_misses_total",
                "Opaque credentials that were not known.",
                number(introspected.misses),
            ),
            (
                "atm_sidecar_introspection_cache_evictions_total",
                "Introspected credentials that made room for others.",
                number(introspected.evictions),
            ),
            (
                "atm_sidecar_introspections_kept_total",
                "Answers that were written down for the next start.",
                number(self.judge.introspector().kept()),
            ),
            (
                "atm_sidecar_introspections_unkept_total",
                "Answers that were not kept for the next start, because the disk did not keep up.",
                number(self.judge.introspector().unkept()),
            ),
            ("atm_sidecar_decision_log_records_total", "Records of the decision log.", number(log.recorded)),
            (
                "atm_sidecar_decision_log_dropped_total",
                "Records dropped because the queue was full.",
                number(log.dropped),
            ),
            (
                "atm_sidecar_decision_log_unsent_total",
                "Records that did not reach the audit subject, because NATS was away.",
                number(log.unsent),
            ),
        ]
    }

    /// What is counted by cause or outcome.
    fn by_label(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let status = self.reader.status();
        let refused = labelled(
            "atm_sidecar_change_sets_refused_total",
            "Messages of the feed that were refused, by cause.",
            "cause",
            Cause::ALL.map(|cause| (cause.as_str(), status.refusals(cause))),
        )?;
        let snapshots = labelled(
            "atm_sidecar_snapshots_total",
            "Snapshots that were loaded, and attempts that failed and are repeated.",
            "outcome",
            [
                ("loaded", status.snapshots_loaded.load(Ordering::Relaxed)),
                ("failed", status.snapshots_failed.load(Ordering::Relaxed)),
            ],
        )?;
        let introspector = self.judge.introspector();
        let asked = labelled(
            "atm_sidecar_introspections_total",
            "Questions about opaque credentials, by outcome.",
            "outcome",
            Outcome::ALL.map(|outcome| (outcome.as_str(), introspector.count(outcome))),
        )?;
        let spans = self.judge.tracing().map(atm_telemetry::Tracing::counts).unwrap_or_default();
        let spans = labelled(
            "atm_sidecar_spans_total",
            "Sampled spans: taken by the collector, dropped because the queue was full, or failed on the way.",
            "outcome",
            [("exported", spans.exported), ("dropped", spans.dropped), ("failed", spans.failed)],
        )?;
        Ok([refused, snapshots, asked, spans].concat())
    }
}

/// A family a sample.
pub(super) fn gauges(samples: Vec<Sample>) -> prometheus::Result<Vec<MetricFamily>> {
    let mut families = Vec::with_capacity(samples.len());
    for (name, help, value) in samples {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value);
        families.extend(gauge.collect());
    }
    Ok(families)
}

/// A family a sample.
pub(super) fn counters(samples: Vec<Sample>) -> prometheus::Result<Vec<MetricFamily>> {
    let mut families = Vec::with_capacity(samples.len());
    for (name, help, value) in samples {
        let counter = Counter::new(name, help)?;
        counter.inc_by(value);
        families.extend(counter.collect());
    }
    Ok(families)
}

fn labelled<const N: usize>(
    name: &str,
    help: &str,
    label: &str,
    values: [(&str, u64); N],
) -> prometheus::Result<Vec<MetricFamily>> {
    let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
    for (of, value) in values {
        counter.with_label_values(&[of]).inc_by(value);
    }
    Ok(counter.collect())
}

#[expect(clippy::cast_precision_loss, reason = "counts and bytes far below 2^53")]
pub(super) fn number(value: u64) -> f64 {
    value as f64
}

pub(super) fn size(value: usize) -> f64 {
    number(value as u64)
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

impl Collector for StateCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.families().unwrap_or_default()
    }
}
