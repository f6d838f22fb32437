//! The admin listener: health, readiness, metrics, and the state for a person in trouble. Holds no secret, binds to loopback.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use atm_core::decision::Decision;
use atm_core::freshness::Freshness;
use atm_core::key::VerificationKey;
use atm_core::request::{CertificateSource, Request};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus::Registry;
use serde_json::{Value, json};

use crate::config::FreshnessSettings;
use crate::ext_authz::Judge;
use crate::feed::Cause;
use crate::introspection::Outcome;
use crate::metrics;
use crate::state::StateReader;

/// Bytes of a request to be explained, its token and certificate among them.
const MAX_EXPLAIN_BYTES: usize = 256 * 1024;

/// What the listener shows.
#[derive(Debug, Clone)]
pub struct Admin {
    /// This sidecar's name.
    pub sidecar_id: String,
    /// The state.
    pub reader: StateReader,
    /// The metrics.
    pub registry: Registry,
    /// When knowledge is called old.
    pub freshness: FreshnessSettings,
    /// Who decides; asked for explanations.
    pub judge: Arc<Judge>,
}

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/state", get(state))
        .route("/explain", post(explain))
        .route("/scrub", post(scrub))
        .layer(DefaultBodyLimit::max(MAX_EXPLAIN_BYTES))
        .with_state(Arc::new(admin))
}

async fn ready(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let ready = admin.reader.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!({"ready": ready, "degraded": admin.degraded()});
    if !ready {
        body["waiting_for"] = admin.waiting_for().into();
    }
    (status, Json(body))
}

impl Admin {
    fn freshness(&self) -> Freshness {
        let FreshnessSettings { degraded_after_ms, stale_after_ms } = self.freshness;
        Freshness::with_thresholds(self.reader.feed_age_ms(), degraded_after_ms, stale_after_ms)
    }

    /// What an operator should know though decisions are made.
    fn degraded(&self) -> Option<String> {
        let silent =
            || format!("the feed is {}: no heartbeat that the state is level with", self.freshness());
        self.reader.degraded().or_else(|| (self.freshness() != Freshness::Fresh).then(silent))
    }

    /// Permits, and refusals by reason; what never occurred is left out.
    fn decisions(&self) -> Value {
        let (permits, denials) = self.judge.metrics().counts();
        let denials: serde_json::Map<String, Value> =
            denials.into_iter().map(|(reason, count)| (reason.as_str().to_owned(), count.into())).collect();
        json!({"permits": permits, "denials": denials})
    }

    fn introspections(&self) -> Value {
        let introspector = self.judge.introspector();
        let outcomes =
            Outcome::ALL.map(|outcome| (outcome.as_str().to_owned(), introspector.count(outcome).into()));
        json!({
            "under_way": introspector.under_way(),
            "outcomes": serde_json::Map::from_iter(outcomes),
            "unkept": introspector.unkept(),
        })
    }

    /// What an operator should look at while no decisions are made.
    fn waiting_for(&self) -> String {
        let status = self.reader.status();
        let forged = status.refusals(Cause::Signature);
        if forged > 0 {
            return format!(
                "a feed signed by a pinned key: {forged} messages were not; compare feedKeys with the control plane's"
            );
        }
        if !status.connected.load(Ordering::Relaxed) {
            return "NATS, which is unreachable; check nats.url".to_owned();
        }
        if self.reader.load().position.revision == 0 {
            return "the first change set; check that the control plane runs and realmGroup is its own"
                .to_owned();
        }
        "the revisions that a heartbeat has announced".to_owned()
    }
}

/// A request to be explained.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Explained {
    method: String,
    #[serde(default)]
    scheme: String,
    host: String,
    /// Path and query.
    target: String,
    /// Names in any case; a name may occur more than once.
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    extensions: Vec<(String, String)>,
    source_address: Option<String>,
    /// URL-encoded PEM.
    certificate: Option<String>,
}

/// How a request would be decided now, step by step. Nothing comes of it: no count, no record, no question.
async fn explain(
    State(admin): State<Arc<Admin>>,
    body: Result<Json<Explained>, JsonRejection>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    let Json(asked) = body.map_err(|rejection| {
        (
            StatusCode::BAD_REQUEST,
            Json(json!({"title": "Bad Request", "status": 400, "detail": rejection.body_text()})),
        )
    })?;
    let names: Vec<String> = asked.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let values = asked.headers.iter().map(|(_, value)| value.as_bytes());
    let headers: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(values).collect();
    let extensions: Vec<(&str, &str)> =
        asked.extensions.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let request = Request {
        method: &asked.method,
        scheme: &asked.scheme,
        host: &asked.host,
        target: &asked.target,
        headers: &headers,
        extensions: &extensions,
        source_address: asked.source_address.as_deref(),
        certificate: asked
            .certificate
            .as_deref()
            .map_or(CertificateSource::None, CertificateSource::Connection),
    };
    let (decision, steps) = admin.judge.explain(&request);
    let steps: Vec<_> = steps
        .iter()
        .map(|(step, passed, what)| json!({"step": step.as_str(), "passed": passed, "what": what}))
        .collect();
    let (status, detail) = match &decision {
        Decision::Permit(_) => (200, None),
        Decision::Denial(denial) => (denial.reason.status(), denial.detail.clone()),
    };
    Ok(Json(json!({
        "outcome": if status == 200 { "permit" } else { "deny" },
        "reason": decision.as_str(),
        "status": status,
        "detail": detail,
        "policy": decision.rule().map(|rule| rule.policy.to_string()),
        "rule": decision.rule().map(|rule| rule.name.to_string()),
        "steps": steps,
        "revision": admin.reader.load().position.revision,
        "policy_version": admin.reader.load().policy_version,
    })))
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    // RocksDB's statistics take its lock; nothing else on this runtime is to wait for that.
    let rendered = tokio::task::spawn_blocking(move || metrics::render(&admin.registry)).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], rendered.unwrap_or_default())
}

/// Has the ids on disk compared with those in memory, in the background; `/state` and `degraded` say what comes of it.
async fn scrub(State(admin): State<Arc<Admin>>) -> StatusCode {
    admin.reader.status().scrub_wanted.store(true, Ordering::Relaxed);
    StatusCode::ACCEPTED
}

async fn state(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let (state, status) = (admin.reader.load(), admin.reader.status());
    let age = admin.reader.feed_age_ms();
    let (sizes, store) = (state.view.revocations.sizes(), admin.reader.store_numbers().unwrap_or_default());
    let log = admin.judge.log().counts();
    let issuers: Vec<_> = state
        .view
        .issuers
        .iter()
        .map(|issuer| {
            let keys: Vec<_> = issuer
                .keys()
                .iter()
                .map(|key| json!({"kid": key.kid(), "algorithm": key.algorithm().as_str(), "state": key.state().as_str()}))
                .collect();
            let kids: Vec<_> = issuer.keys().iter().map(VerificationKey::kid).collect();
            json!({"issuer": issuer.name(), "realm": issuer.realm(), "kids": kids, "keys": keys})
        })
        .collect();
    let refused: serde_json::Map<String, Value> = Cause::ALL
        .into_iter()
        .map(|cause| (cause.as_str().to_owned(), status.refusals(cause).into()))
        .collect();
    Json(json!({
        "id": admin.sidecar_id,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": admin.reader.ready(),
        "degraded": admin.degraded(),
        "epoch": state.position.epoch.map(|epoch| epoch.to_string()),
        "revision": state.position.revision,
        "freshness": admin.freshness().as_str(),
        "feed_age_ms": (age != u64::MAX).then_some(age),
        "nats_connected": status.connected.load(Ordering::Relaxed),
        "revocations": {
            "tokens": state.view.revocations.len(),
            "watermarks": state.view.revocations.watermark_count(),
            "in_full": sizes.front_ids,
            "settled": sizes.settled_ids,
            "buckets": sizes.buckets,
            "index_bytes": sizes.front_bytes + sizes.filter_bytes,
        },
        "store": {
            "confirmations": store.confirmations,
            "false_positives": store.false_positives,
            "confirmation_errors": store.confirmation_errors,
            "disk_bytes": store.disk_bytes,
            "memtable_bytes": store.memtable_bytes,
            "block_cache_bytes": store.block_cache_bytes,
            "scrubs": status.scrubs.load(Ordering::Acquire),
        },
        "issuers": issuers,
        "policies": {
            "version": state.policy_version,
            "names": state.view.policies.names().collect::<Vec<_>>(),
            "rules": state.view.policies.rules().len(),
            "fault": state.policy_fault.as_deref(),
        },
        "decisions": admin.decisions(),
        "caches": {
            "verified_tokens": admin.judge.memory().verified.len(),
            "introspected": admin.judge.memory().introspected.len(),
            "dpop_proofs": admin.judge.memory().proofs.len(),
        },
        "introspections": admin.introspections(),
        "decision_log": {"recorded": log.recorded, "dropped": log.dropped, "unsent": log.unsent},
        "spans": admin.judge.tracing().map(|tracing| {
            let counts = tracing.counts();
            json!({"exported": counts.exported, "dropped": counts.dropped, "failed": counts.failed})
        }),
        "change_sets": {"applied": status.applied.load(Ordering::Relaxed), "refused": refused},
    }))
}
