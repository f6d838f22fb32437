//! Metrics of the feed and of the fleet.

use std::sync::{Mutex, PoisonError};

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Registry};

use super::{counter, opts, registered};
use crate::feed::{Carrier, FeedCounters, FeedHandle, FleetQuery, SidecarState};

/// Read from the feed when somebody asks.
#[derive(Debug)]
pub(super) struct FeedMetrics {
    revision: IntGauge,
    published: IntGauge,
    carrier_connected: IntGauge,
    sidecars_live: IntGauge,
    sidecars_in_force: IntGauge,
    sidecars: IntGaugeVec,
    snapshot: IntGauge,
    snapshot_published: IntGauge,
    sequenced: IntCounter,
    published_sets: IntCounter,
    republished: IntCounter,
    publish_failures: IntCounter,
    heartbeats: IntCounter,
    resync_replies: IntCounter,
    introspection_replies: IntCounter,
    reports: IntCounter,
    reports_refused: IntCounter,
    snapshots_built: IntCounter,
    snapshots_published: IntCounter,
    /// What the counters show already; held while they are brought up to date.
    shown: Mutex<FeedCounters>,
}

impl FeedMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name, help| registered(registry, IntGauge::with_opts(opts(name, help))?);
        let total = |name, help| registered(registry, counter(name, help)?);
        Ok(Self {
            revision: gauge("feed_revision", "Newest revision, stored and signed.")?,
            published: gauge("feed_published_revision", "Newest revision that JetStream holds.")?,
            carrier_connected: gauge("nats_connected", "Whether NATS takes what is published.")?,
            sidecars_live: gauge("sidecars_live", "Sidecars that report.")?,
            sidecars_in_force: gauge("sidecars_in_force", "Sidecars that enforce the newest revision.")?,
            sidecars: registered(
                registry,
                IntGaugeVec::new(
                    opts("sidecars", "Sidecars of the last hour, by how they stand."),
                    &["state"],
                )?,
            )?,
            snapshot: gauge("snapshot_revision", "Revision of the newest snapshot; 0 for none.")?,
            snapshot_published: gauge(
                "snapshot_published_revision",
                "Revision of the newest snapshot that JetStream holds; 0 for none.",
            )?,
            sequenced: total("change_sets_sequenced_total", "Change sets that got a revision here.")?,
            published_sets: total("change_sets_published_total", "Change sets acknowledged by JetStream.")?,
            republished: total("change_sets_republished_total", "Change sets that JetStream had lost.")?,
            publish_failures: total("publish_failures_total", "Publications that were tried again.")?,
            heartbeats: total("heartbeats_total", "Heartbeats sent.")?,
            resync_replies: total("resync_replies_total", "Requests for missing change sets answered.")?,
            introspection_replies: total(
                "introspection_replies_total",
                "Questions of sidecars about opaque credentials answered.",
            )?,
            reports: total("sidecar_reports_total", "Sidecar reports taken.")?,
            reports_refused: total("sidecar_reports_refused_total", "Sidecar reports refused.")?,
            snapshots_built: total("snapshots_built_total", "Snapshots made here.")?,
            snapshots_published: total(
                "snapshots_published_total",
                "Snapshots put into JetStream here, again where it had lost them.",
            )?,
            shown: Mutex::default(),
        })
    }

    pub(super) fn read(&self, feed: &FeedHandle) {
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        let fleet = feed.fleet(FleetQuery { state: None, limit: 0 });
        let connected = matches!(*feed.carrier().borrow(), Carrier::Connected);
        set(&self.revision, feed.position().revision);
        set(&self.published, feed.published());
        set(&self.carrier_connected, u64::from(connected));
        set(&self.sidecars_live, fleet.live as u64);
        set(&self.sidecars_in_force, fleet.in_force_on as u64);
        for state in SidecarState::ALL {
            let number = fleet.states.get(&state).copied().unwrap_or_default();
            set(&self.sidecars.with_label_values(&[state.as_str()]), number as u64);
        }
        set(&self.snapshot, feed.snapshot());
        set(&self.snapshot_published, feed.snapshot_published());
        self.advance(feed.counters());
    }

    /// Two readers at once must not count anything twice, hence the lock.
    fn advance(&self, now: FeedCounters) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let add = |counter: &IntCounter, now: u64, shown: u64| counter.inc_by(now.saturating_sub(shown));
        add(&self.sequenced, now.change_sets_sequenced, shown.change_sets_sequenced);
        add(&self.published_sets, now.change_sets_published, shown.change_sets_published);
        add(&self.republished, now.change_sets_republished, shown.change_sets_republished);
        add(&self.publish_failures, now.publish_failures, shown.publish_failures);
        add(&self.heartbeats, now.heartbeats, shown.heartbeats);
        add(&self.resync_replies, now.resync_replies, shown.resync_replies);
        add(&self.introspection_replies, now.introspection_replies, shown.introspection_replies);
        add(&self.reports, now.reports, shown.reports);
        add(&self.reports_refused, now.reports_refused, shown.reports_refused);
        add(&self.snapshots_built, now.snapshots_built, shown.snapshots_built);
        add(&self.snapshots_published, now.snapshots_published, shown.snapshots_published);
        *shown = now;
    }
}
