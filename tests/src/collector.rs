//! A collector of traces: OTLP over HTTP, as the programs export it.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::wait;

/// A listener that keeps every span that it is sent.
#[derive(Debug)]
pub struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

/// A span, and the program that it is of.
#[derive(Debug, Clone)]
pub struct Received {
    /// `service.name` of its resource.
    pub service: String,
    /// As it came.
    pub span: Span,
}

impl Received {
    /// The text of an attribute; empty where there is none.
    pub fn attribute(&self, name: &str) -> String {
        text_of(&self.span.attributes, name)
    }

    /// The trace it belongs to, in hexadecimal.
    pub fn trace_id(&self) -> String {
        hex::encode(&self.span.trace_id)
    }
}

impl Collector {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let spans = Arc::<Mutex<Vec<Received>>>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { endpoint, spans, task }
    }

    /// `http://host:port`, for `tracing.endpoint`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<Received> {
        self.spans.lock().expect("no panic under the lock").clone()
    }

    /// Waits for a span of this name within the trace.
    pub async fn until_span(&self, service: &str, name: &str, trace_id: &str) -> Received {
        wait::until(&format!("the span {name} of {service}"), wait::USUAL, || async {
            let spans = self.spans();
            let fits = |received: &&Received| {
                received.service == service && received.span.name == name && received.trace_id() == trace_id
            };
            spans.iter().find(fits).cloned().ok_or(spans)
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(State(spans): State<Arc<Mutex<Vec<Received>>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let mut spans = spans.lock().expect("no panic under the lock");
    for resource in request.resource_spans {
        let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let service = text_of(&attributes, "service.name");
        let of_scope = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(of_scope.map(|span| Received { service: service.clone(), span }));
    }
    StatusCode::OK
}

fn text_of(attributes: &[KeyValue], name: &str) -> String {
    let value = attributes.iter().find(|pair| pair.key == name).and_then(|pair| pair.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        _ => String::new(),
    }
}
