//! The decision log: every denial, a sample of the permits, what shadow policies would have changed. One JSON object a line, to
//! standard output and to the audit subject. Bounded: what does not fit in the queue is dropped and counted, and never delays
//! a request. No credential, header value or query is in it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atm_core::decision::{Decision, Denial};
use atm_core::request::Request;
use atm_telemetry::TraceParent;
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
    /// Who decides: the sidecar's name in the fleet.
    pub sidecar: String,
    /// Of so many permits one is recorded; 0 records none.
    pub permit_sample: u64,
    /// Of so many differences to a shadow policy one is recorded; 0 records none.
    pub shadow_sample: u64,
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
    differences: AtomicU64,
    recorded: AtomicU64,
    dropped: AtomicU64,
    unsent: Arc<AtomicU64>,
}

/// Records since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogCounts {
    /// Taken.
    pub recorded: u64,
    /// Dropped, because the queue was full.
    pub dropped: u64,
    /// Taken, and not sent to the audit subject, because NATS was away.
    pub unsent: u64,
}

/// What a decision was made by, beside the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct DecidedBy {
    /// The revision in force.
    pub revision: u64,
    /// The version of the policies in force.
    pub policy_version: u64,
    /// The decision's own span, if it has one.
    pub trace: Option<TraceParent>,
}

/// A log, and what writes it; the latter ends when `stop` is cancelled and the queue is empty.
pub fn start(
    client: async_nats::Client,
    settings: DecisionLogSettings,
    stop: CancellationToken,
) -> (DecisionLog, impl Future<Output = ()>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let unsent = Arc::new(AtomicU64::new(0));
    let shared = Arc::new(Shared {
        sender,
        permits: AtomicU64::new(0),
        differences: AtomicU64::new(0),
        recorded: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
        unsent: Arc::clone(&unsent),
        settings: settings.clone(),
    });
    (DecisionLog(shared), write(receiver, client, settings, unsent, stop))
}

async fn write(
    mut records: mpsc::Receiver<Value>,
    client: async_nats::Client,
    settings: DecisionLogSettings,
    unsent: Arc<AtomicU64>,
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
            if let Some(subject) = &settings.subject {
                // What the client queues while it is away would come late or not at all; it is on standard output.
                let connected = client.connection_state() == async_nats::connection::State::Connected;
                let sent = connected && client.publish(subject.clone(), line.clone().into()).await.is_ok();
                unsent.fetch_add(u64::from(!sent), Ordering::Relaxed);
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
    pub fn record(&self, request: &Request<'_>, decision: &Decision, took: Duration, by: DecidedBy) {
        if matches!(decision, Decision::Permit(_)) && !sampled(&self.0.permits, self.0.settings.permit_sample)
        {
            return;
        }
        self.send(|| {
            let mut record = describe(request, decision, by);
            record.insert("event".into(), "decision".into());
            record.insert("duration_us".into(), u64::try_from(took.as_micros()).unwrap_or(u64::MAX).into());
            record
        });
    }

    /// Records that a shadow policy would have decided otherwise, one time in so many: a shadow policy that differs everywhere must
    /// not push denials out of the queue.
    pub fn record_shadow(
        &self,
        request: &Request<'_>,
        decision: &Decision,
        shadow: &Decision,
        by: DecidedBy,
    ) {
        if !sampled(&self.0.differences, self.0.settings.shadow_sample) {
            return;
        }
        self.send(|| {
            let mut record = describe(request, shadow, by);
            record.insert("event".into(), "shadow".into());
            record.insert("enforced_reason".into(), decision.as_str().into());
            record
        });
    }

    /// Makes the record only where there is room for it: a flood of refusals must cost little.
    fn send(&self, make: impl FnOnce() -> Map<String, Value>) {
        if !self.0.settings.stdout && self.0.settings.subject.is_none() {
            return;
        }
        let counter = match self.0.sender.try_reserve() {
            Ok(room) => {
                let mut record = make();
                record.insert("sidecar".to_owned(), self.0.settings.sidecar.as_str().into());
                room.send(Value::Object(record));
                &self.0.recorded
            }
            Err(_) => &self.0.dropped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What came of records.
    pub fn counts(&self) -> LogCounts {
        LogCounts {
            recorded: self.0.recorded.load(Ordering::Relaxed),
            dropped: self.0.dropped.load(Ordering::Relaxed),
            unsent: self.0.unsent.load(Ordering::Relaxed),
        }
    }
}

/// Whether this one is recorded: the first, and then one in `sample`.
fn sampled(seen: &AtomicU64, sample: u64) -> bool {
    sample != 0 && seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(sample)
}

/// What a record says: enough to decide the request again by its rule and scopes, nothing that could be used as a credential.
fn describe(request: &Request<'_>, decision: &Decision, by: DecidedBy) -> Map<String, Value> {
    let path = request.target.split_once('?').map_or(request.target, |(path, _)| path);
    let mut record = Map::new();
    let mut add = |name: &str, value: Value| record.insert(name.to_owned(), value);
    add("time_ms", crate::feed::now().0.into());
    add("outcome", if matches!(decision, Decision::Permit(_)) { "permit" } else { "deny" }.into());
    add("reason", decision.as_str().into());
    add("revision", by.revision.into());
    add("policy_version", by.policy_version.into());
    if let Decision::Denial(Denial { detail: Some(detail), .. }) = decision {
        add("detail", bounded(detail));
    }
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
    if let Some(trace) = by.trace.or_else(|| traceparent(request)) {
        add("trace_id", trace.trace_id().to_string().into());
    }
    record
}

fn bounded(text: &str) -> Value {
    let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].into()
}
