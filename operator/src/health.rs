//! `/healthz`, `/readyz` and `/metrics` of the operator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// What the operator counts and whether it works.
#[derive(Debug)]
pub struct Health {
    registry: Registry,
    rounds: IntCounterVec,
    healthy: IntGaugeVec,
    injections: IntCounterVec,
    certificate: AtomicBool,
}

impl Health {
    /// Registers the metrics. `webhook`: readiness waits for a certificate.
    pub fn new(webhook: bool) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let rounds = counter(
            "atm_operator_reconciliations_total",
            "Comparisons of resources with the control plane.",
            "outcome",
        )?;
        let injections =
            counter("atm_operator_admissions_total", "Pods that were looked at, by outcome.", "outcome")?;
        let healthy = IntGaugeVec::new(
            Opts::new("atm_operator_in_step", "1 when the last comparison succeeded."),
            &["kind"],
        )?;
        registry.register(Box::new(healthy.clone()))?;
        for outcome in ["success", "failure"] {
            rounds.with_label_values(&[outcome]);
        }
        for outcome in ["injected", "unchanged", "refused"] {
            injections.with_label_values(&[outcome]);
        }
        Ok(Self { registry, rounds, healthy, injections, certificate: AtomicBool::new(!webhook) })
    }

    /// Policies were compared.
    pub fn policies(&self, well: bool) {
        self.compared("policies", well);
    }

    /// Issuers were compared.
    pub fn issuers(&self, well: bool) {
        self.compared("issuers", well);
    }

    fn compared(&self, kind: &str, well: bool) {
        self.rounds.with_label_values(&[if well { "success" } else { "failure" }]).inc();
        self.healthy.with_label_values(&[kind]).set(i64::from(well));
    }

    /// A pod was looked at: `injected`, `unchanged` or `refused`.
    pub fn admitted(&self, outcome: &'static str) {
        self.injections.with_label_values(&[outcome]).inc();
    }

    /// The webhook has a certificate.
    pub fn certified(&self) {
        self.certificate.store(true, Ordering::Release);
    }

    /// The routes.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

/// Ready when pods can be admitted. A control plane that is away is no reason to take the webhook away, too.
async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    if health.certificate.load(Ordering::Acquire) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the webhook's certificate\n")
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let text = TextEncoder::new().encode_to_string(&health.registry.gather()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
