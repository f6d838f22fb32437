//! The decision log: every denial, a sample of the permits, what shadow policies would have changed. One JSON object a line, to
//! standard output and to the audit subject. Bounded: what does not fit in the queue is dropped and counted, and never delays
//! a request. No credential, header value or query is in it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atm_core::decision::Decision;
use atm_core::request::Request;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ext_authz::traceparent;

/// Records that wait to be written at most.
const QUEUE: usize = 4_096;
/// Length of a text from the request in a record at most, in bytes.
const MAX_TEXT_BYTES: usize = 1_024;

/// What is written down, and where.
#[derive(Debug, Clone)]
pub struct DecisionLogSettings {
    /// Of so many permits one is recorded; 0 records none.
    pub permit_sample: u64,
    /// Whether records go to standard output.
    pub stdout: bool,
    /// The subject that records go to, if any.
    pub subject: Option<String>,
}

/// Takes records. Clones share the queue.
#[derive(Debug, Clone)]
pub struct DecisionLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sender: mpsc::Sender<Value>,
    settings: DecisionLogSettings,
    permits: AtomicU64,
    recorded: AtomicU64,
    dropped: AtomicU64,
}

/// A log, and what writes it; the latter ends when `stop` is cancelled and the queue is empty.
pub fn start(
    client: async_nats::Client,
    settings: DecisionLogSettings,
    stop: CancellationToken,
) -> (DecisionLog, impl Future<Output = ()>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let shared = Arc::new(Shared {
        sender,
        permits: AtomicU64::new(0),
        recorded: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
        settings: settings.clone(),
    });
    (DecisionLog(shared), write(receiver, client, settings, stop))
}

async fn write(
    mut records: mpsc::Receiver<Value>,
    client: async_nats::Client,
    settings: DecisionLogSettings,
    stop: CancellationToken,
) {
    let mut batch = Vec::with_capacity(256);
    loop {
        tokio::select! {
            biased;
            count = records.recv_many(&mut batch, 256) => if count == 0 { return },
            () = stop.cancelled() => return,
        }
        let mut lines = Vec::new();
        for record in batch.drain(..) {
            let line = record.to_string();
            if let Some(subject) = &settings.subject
                && client.connection_state() == async_nats::connection::State::Connected
            {
                // The client's own queue is bounded; a record that is lost on the way is no reason to wait.
                let _ = client.publish(subject.clone(), line.clone().into()).await;
            }
            lines.extend_from_slice(line.as_bytes());
            lines.push(b'\n');
        }
        if settings.stdout {
            // A reader that does not keep up must not hold up the runtime.
            let _ = tokio::task::spawn_blocking(move || std::io::stdout().lock().write_all(&lines)).await;
        }
    }
}

impl DecisionLog {
    /// Records a decision: every denial, and of the permits one in so many.
    pub fn record(&self, request: &Request<'_>, decision: &Decision, took: Duration) {
        if matches!(decision, Decision::Permit(_)) {
            let sample = self.0.settings.permit_sample;
            if sample == 0 || !self.0.permits.fetch_add(1, Ordering::Relaxed).is_multiple_of(sample) {
                return;
            }
        }
        if self.is_off() {
            return;
        }
        let mut record = describe(request, decision);
        record.insert("event".into(), "decision".into());
        record.insert("duration_us".into(), u64::try_from(took.as_micros()).unwrap_or(u64::MAX).into());
        self.send(record);
    }

    /// Records that a shadow policy would have decided otherwise.
    pub fn record_shadow(&self, request: &Request<'_>, decision: &Decision, shadow: &Decision) {
        if self.is_off() {
            return;
        }
        let mut record = describe(request, shadow);
        record.insert("event".into(), "shadow".into());
        record.insert("enforced_reason".into(), decision.as_str().into());
        self.send(record);
    }

    fn is_off(&self) -> bool {
        !self.0.settings.stdout && self.0.settings.subject.is_none()
    }

    fn send(&self, record: Map<String, Value>) {
        let counter = match self.0.sender.try_send(Value::Object(record)) {
            Ok(()) => &self.0.recorded,
            Err(_) => &self.0.dropped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Records taken, and records dropped because the queue was full.
    pub fn recorded_and_dropped(&self) -> (u64, u64) {
        (self.0.recorded.load(Ordering::Relaxed), self.0.dropped.load(Ordering::Relaxed))
    }
}

/// What a record says: enough to decide the request again by its rule and scopes, nothing that could be used as a credential.
fn describe(request: &Request<'_>, decision: &Decision) -> Map<String, Value> {
    let path = request.target.split_once('?').map_or(request.target, |(path, _)| path);
    let mut record = Map::new();
    let mut add = |name: &str, value: Value| record.insert(name.to_owned(), value);
    add("time_ms", crate::feed::now().0.into());
    add("outcome", if matches!(decision, Decision::Permit(_)) { "permit" } else { "deny" }.into());
    add("reason", decision.as_str().into());
    add("method", bounded(request.method));
    add("host", bounded(request.host));
    add("path", bounded(path));
    if let Some(address) = request.source_address {
        add("source", bounded(address));
    }
    if !request.extensions.is_empty() {
        let extensions = request.extensions.iter().take(16);
        add(
            "extensions",
            extensions
                .map(|(name, value)| ((*name).to_owned(), bounded(value)))
                .collect::<Map<_, _>>()
                .into(),
        );
    }
    if let Some(rule) = decision.rule() {
        add("policy", (*rule.policy).into());
        add("rule", (*rule.name).into());
    }
    if let Some(token) = decision.token() {
        let claims = &token.claims;
        add(
            "token",
            json!({
                "issuer": claims.issuer, "subject": claims.subject, "client_id": claims.client_id, "jti": claims.jti,
                "session": claims.session, "audience": claims.audience, "scope": claims.scope.join(" "),
                "kind": if token.learnt_at.is_some() { "opaque" } else { "jwt" },
                "bound": claims.confirmation.is_some(),
            }),
        );
    }
    if let Some(traceparent) = traceparent(request) {
        add("trace_id", traceparent[3..35].into());
    }
    record
}

fn bounded(text: &str) -> Value {
    let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].into()
}
