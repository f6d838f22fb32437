//! Metrics, with labels from enums only: never a path, a client or a token.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::anomalies::{Anomalies, AnomalyKind};
use crate::audit::AuditCounters;
use crate::events::{EventKind, Events};
use crate::http::Services;
use crate::keys::Keys;
use crate::nats_login;

mod feed;

use feed::FeedMetrics;

/// What the metrics' names begin with.
const NAMESPACE: &str = "atm_control_plane";

/// What was asked for; the label of request metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/oauth2/token`
    Token,
    /// `/oauth2/introspect`
    Introspect,
    /// `/oauth2/revoke`
    Revoke,
    /// `/oauth2/register`
    Register,
    /// `/security-events`
    SecurityEvents,
    /// JWKS and metadata.
    Discovery,
    /// `/feed/snapshots`
    Snapshots,
    /// `/admin/v1/clients`
    AdminClients,
    /// `/admin/v1/sessions` and `/admin/v1/subjects`
    AdminSessions,
    /// `/admin/v1/api-keys`
    AdminApiKeys,
    /// `/admin/v1/issuers`
    AdminIssuers,
    /// `/admin/v1/keys`
    AdminKeys,
    /// `/admin/v1/revocations`
    AdminRevocations,
    /// `/admin/v1/policies`
    AdminPolicies,
    /// `/admin/v1/fleet` and `/admin/v1/feed`
    AdminFleet,
    /// `/admin/v1/audit`
    AdminAudit,
    /// `/admin/v1/realms`; what is below a realm counts as what it is.
    AdminRealms,
}

impl Endpoint {
    const ALL: [Self; 17] = [
        Self::Token,
        Self::Introspect,
        Self::Revoke,
        Self::Register,
        Self::SecurityEvents,
        Self::Discovery,
        Self::Snapshots,
        Self::AdminClients,
        Self::AdminSessions,
        Self::AdminApiKeys,
        Self::AdminIssuers,
        Self::AdminKeys,
        Self::AdminRevocations,
        Self::AdminPolicies,
        Self::AdminFleet,
        Self::AdminAudit,
        Self::AdminRealms,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Introspect => "introspect",
            Self::Revoke => "revoke",
            Self::Register => "register",
            Self::SecurityEvents => "security_events",
            Self::Discovery => "discovery",
            Self::Snapshots => "snapshots",
            Self::AdminClients => "admin_clients",
            Self::AdminSessions => "admin_sessions",
            Self::AdminApiKeys => "admin_api_keys",
            Self::AdminIssuers => "admin_issuers",
            Self::AdminKeys => "admin_keys",
            Self::AdminRevocations => "admin_revocations",
            Self::AdminPolicies => "admin_policies",
            Self::AdminFleet => "admin_fleet",
            Self::AdminAudit => "admin_audit",
            Self::AdminRealms => "admin_realms",
        }
    }
}

/// The first digit of a status.
const fn class(status: u16) -> &'static str {
    match status {
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}

/// All metrics of the control plane.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    tokens: IntCounter,
    introspections: IntCounterVec,
    revoked: IntCounter,
    oauth: OAuthEvents,
    signing_key: IntGauge,
    feed: FeedMetrics,
    audit: AuditMetrics,
    anomalies: IntCounterVec,
    anomalies_shown: Mutex<[u64; AnomalyKind::ALL.len()]>,
    signing_out: IntGauge,
    signing_failures: IntCounter,
    signing_failures_shown: Mutex<u64>,
    nats_logins: IntCounterVec,
}

/// Read from the events when somebody asks.
#[derive(Debug)]
struct OAuthEvents {
    total: IntCounterVec,
    /// What the counters show already; held while they are brought up to date.
    shown: Mutex<[u64; EventKind::ALL.len()]>,
}

impl Metrics {
    /// Registers everything, each series at zero, so that a rate can be told from the first event on.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let requests = registered(
            &registry,
            IntCounterVec::new(opts("http_requests_total", "Requests answered."), &["endpoint", "status"])?,
        )?;
        let seconds = registered(
            &registry,
            HistogramVec::new(
                HistogramOpts::from(opts("http_request_seconds", "Time to the answer."))
                    .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0]),
                &["endpoint"],
            )?,
        )?;
        let introspections = registered(
            &registry,
            IntCounterVec::new(opts("introspections_total", "Introspections answered."), &["active"])?,
        )?;
        for endpoint in Endpoint::ALL {
            for status in ["2xx", "4xx", "5xx"] {
                requests.with_label_values(&[endpoint.as_str(), status]);
            }
            seconds.with_label_values(&[endpoint.as_str()]);
        }
        let nats_logins = registered(
            &registry,
            IntCounterVec::new(
                opts("nats_logins_total", "Logins to NATS by the token of a workload."),
                &["outcome"],
            )?,
        )?;
        for outcome in nats_login::OUTCOMES {
            nats_logins.with_label_values(&[*outcome]);
        }
        for active in ["true", "false"] {
            introspections.with_label_values(&[active]);
        }
        Ok(Self {
            tokens: registered(&registry, counter("tokens_issued_total", "Access tokens issued.")?)?,
            revoked: registered(&registry, counter("revocations_total", "Selectors put in force.")?)?,
            oauth: OAuthEvents::new(&registry)?,
            signing_key: registered(
                &registry,
                IntGauge::with_opts(opts(
                    "signing_key_created_timestamp_seconds",
                    "When the key that signs was made, in Unix time.",
                ))?,
            )?,
            feed: FeedMetrics::new(&registry)?,
            audit: AuditMetrics::new(&registry)?,
            anomalies: registered(
                &registry,
                IntCounterVec::new(
                    opts("anomalies_total", "Things that should not happen and did."),
                    &["kind"],
                )?,
            )?,
            anomalies_shown: Mutex::default(),
            signing_out: registered(
                &registry,
                IntGauge::with_opts(opts(
                    "signing_out",
                    "Whether tokens cannot be signed, as the last attempt showed.",
                ))?,
            )?,
            signing_failures: registered(
                &registry,
                counter("signing_failures_total", "Signatures that the key's provider did not make.")?,
            )?,
            signing_failures_shown: Mutex::default(),
            nats_logins,
            requests,
            seconds,
            introspections,
            registry,
        })
    }

    /// Starts timing a request; what is returned says how it ended.
    pub fn request(&self, endpoint: Endpoint) -> RequestTimer<'_> {
        RequestTimer { metrics: self, endpoint, started: Instant::now() }
    }

    /// A token was issued.
    pub fn token_issued(&self) {
        self.tokens.inc();
    }

    /// An introspection was answered.
    pub fn introspected(&self, active: bool) {
        self.introspections.with_label_values(&[if active { "true" } else { "false" }]).inc();
    }

    /// Somebody was let in to NATS, or was not: one of [`nats_login::OUTCOMES`].
    pub fn nats_login(&self, outcome: &str) {
        self.nats_logins.with_label_values(&[outcome]).inc();
    }

    /// `count` selectors were put in force.
    pub fn revoked(&self, count: usize) {
        self.revoked.inc_by(count as u64);
    }

    /// The key that signs was made at this Unix time, in seconds.
    pub fn signing_key_created(&self, at: i64) {
        self.signing_key.set(at);
    }

    /// Two readers at once must not count anything twice, hence the lock.
    fn read_anomalies(&self, anomalies: &Anomalies) {
        let mut shown = self.anomalies_shown.lock().unwrap_or_else(PoisonError::into_inner);
        for (shown, (kind, now)) in shown.iter_mut().zip(anomalies.counts()) {
            self.anomalies.with_label_values(&[kind.as_str()]).inc_by(now.saturating_sub(*shown));
            *shown = now;
        }
    }

    fn read_signing(&self, keys: &Keys) {
        self.signing_out.set(i64::from(keys.outage().is_some()));
        let mut shown = self.signing_failures_shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now = keys.signing_failures();
        self.signing_failures.inc_by(now.saturating_sub(*shown));
        *shown = now;
    }

    /// Everything in Prometheus's text format, with the state of `services` now.
    pub fn render(&self, services: &Services) -> Result<String, prometheus::Error> {
        self.feed.read(&services.feed);
        self.oauth.read(&services.events);
        self.audit.read(services.audit.counters());
        self.read_anomalies(&services.anomalies);
        self.read_signing(&services.keys);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Times one request.
#[derive(Debug)]
#[must_use = "a request counts when it has ended"]
pub struct RequestTimer<'a> {
    metrics: &'a Metrics,
    endpoint: Endpoint,
    started: Instant,
}

impl RequestTimer<'_> {
    /// Counts the request with its status. Returns how long it took.
    pub fn ended(self, status: u16) -> Duration {
        let elapsed = self.started.elapsed();
        let endpoint = self.endpoint.as_str();
        self.metrics.requests.with_label_values(&[endpoint, class(status)]).inc();
        self.metrics.seconds.with_label_values(&[endpoint]).observe(elapsed.as_secs_f64());
        elapsed
    }
}

impl OAuthEvents {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let help = "What the OAuth side did and refused.";
        let total = registered(registry, IntCounterVec::new(opts("oauth_events_total", help), &["event"])?)?;
        for kind in EventKind::ALL {
            total.with_label_values(&[kind.as_str()]);
        }
        Ok(Self { total, shown: Mutex::default() })
    }

    fn read(&self, events: &Events) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, now) in events.counts() {
            let shown = &mut shown[kind as usize];
            self.total.with_label_values(&[kind.as_str()]).inc_by(now.saturating_sub(*shown));
            *shown = now;
        }
    }
}

/// Read from the audit pipeline when somebody asks.
#[derive(Debug)]
struct AuditMetrics {
    written: IntCounter,
    lost: IntCounter,
    suppressed: IntCounter,
    write_failures: IntCounter,
    waiting: IntGauge,
    shown: Mutex<AuditCounters>,
}

impl AuditMetrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let total = |name, help| registered(registry, counter(name, help)?);
        Ok(Self {
            written: total("audit_events_written_total", "Audit events in the store.")?,
            lost: total("audit_events_lost_total", "Audit events lost because the store was blocked.")?,
            suppressed: total(
                "audit_refusals_summed_total",
                "Refusals beyond the rate, recorded as a number.",
            )?,
            write_failures: total(
                "audit_write_failures_total",
                "Writes of audit events that were repeated.",
            )?,
            waiting: registered(
                registry,
                IntGauge::with_opts(opts("audit_events_waiting", "Queued audit events."))?,
            )?,
            shown: Mutex::default(),
        })
    }

    fn read(&self, now: AuditCounters) {
        self.waiting.set(i64::try_from(now.waiting).unwrap_or(i64::MAX));
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let add = |counter: &IntCounter, now: u64, shown: u64| counter.inc_by(now.saturating_sub(shown));
        add(&self.written, now.written, shown.written);
        add(&self.lost, now.lost, shown.lost);
        add(&self.suppressed, now.suppressed, shown.suppressed);
        add(&self.write_failures, now.write_failures, shown.write_failures);
        *shown = now;
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(NAMESPACE)
}

fn counter(name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    IntCounter::with_opts(opts(name, help))
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start() {
        let metrics = Metrics::new().unwrap();
        metrics.request(Endpoint::Token).ended(200);
        let text = TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap();
        assert!(
            text.contains(r#"atm_control_plane_http_requests_total{endpoint="token",status="2xx"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"atm_control_plane_http_requests_total{endpoint="revoke",status="5xx"} 0"#),
            "{text}"
        );
    }
}
