//! Health for whoever restarts and routes.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Shared;
use super::problem::Problem;
use crate::feed::Carrier;
use crate::keys::SigningKeyState;

/// How long the store may take to say that it is there.
const STORE_BOUND: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Body {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waiting_for: Vec<&'static str>,
    /// What does not work while tokens are still issued and revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<String>,
}

/// The process answers. Says nothing of what it relies on, because a restart would not mend that.
pub(super) async fn healthz() -> Response {
    Json(serde_json::json!({ "status": "ok" })).into_response()
}

/// Whether requests may be sent here. Without NATS they may: changes are kept, and published when it is back.
pub(super) async fn readyz(State(services): State<Shared>) -> Response {
    let mut waiting_for = services.readiness.pending();
    if !matches!(tokio::time::timeout(STORE_BOUND, services.store.check()).await, Ok(Ok(()))) {
        waiting_for.push("store");
    }
    let carrier = services.feed.carrier();
    let carrier = match &*carrier.borrow() {
        Carrier::Connected => None,
        other => Some(other.to_string()),
    };
    let signing = services.keys.outage().map(|problem| format!("tokens are not signed: {problem}"));
    let degraded: Vec<String> = signing.into_iter().chain(carrier).collect();
    let degraded = (!degraded.is_empty()).then(|| degraded.join("; "));
    let ready = waiting_for.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Body { ready, waiting_for, degraded })).into_response()
}

/// Metrics in Prometheus's text format.
pub(super) async fn metrics(State(services): State<Shared>) -> Result<Response, Problem> {
    // Without the store there is no newer answer than the last one.
    if let Ok(keys) = services.keys.list().await
        && let Some(active) = keys.iter().find(|key| key.state == SigningKeyState::Active)
    {
        services.metrics.signing_key_created(active.created_at / 1_000);
    }
    let text = services.metrics.render(&services).map_err(|error| {
        tracing::error!(%error, "metrics cannot be rendered");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be rendered; the log says more")
    })?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
