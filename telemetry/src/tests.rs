use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use prost::Message;

use super::*;

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let collector = serving.clone();
                let service = service_fn(move |request| collector.clone().take(request));
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                tokio::spawn(async move {
                    builder.serve_connection(TokioIo::new(stream), service).await.map_err(drop)
                });
            }
        });
        (collector, endpoint)
    }

    async fn take(self, request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
        assert_eq!(request.uri().path(), "/v1/traces");
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let body = request.into_body().collect().await?.to_bytes();
        self.0.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
        Ok(Response::default())
    }

    fn spans(&self) -> Vec<Span> {
        let sent = self.0.lock().unwrap();
        let scopes = sent
            .iter()
            .flat_map(|request| &request.resource_spans)
            .flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn settings(endpoint: &str, sample: u64, queue: usize) -> TracingSettings {
    TracingSettings { endpoint: endpoint.to_owned(), sample, queue }
}

fn start(settings: &TracingSettings) -> (Tracing, CancellationToken, tokio::task::JoinHandle<()>) {
    let stop = CancellationToken::new();
    let (tracing, exporting) = Tracing::start(settings, "atm-test", "one", "0.0.0", stop.clone()).unwrap();
    (tracing, stop, tokio::spawn(exporting))
}

#[tokio::test]
async fn a_span_continues_the_callers_and_what_waits_is_exported_at_the_end() {
    let (collector, endpoint) = Collector::start().await;
    let (tracing, stop, exporting) = start(&settings(&endpoint, 0, 16));
    let caller = TraceParent::parse(CALLER);
    let mut span = tracing.begin("check", Kind::Server, caller).unwrap();
    span.set("atm.reason", "permit");
    let child = span.child("ask", Kind::Client).unwrap();
    let below = child.traceparent();
    assert_eq!(below.trace_id().to_string(), caller.unwrap().trace_id().to_string());
    assert!(below.is_sampled());
    drop(child);
    drop(span);
    stop.cancel();
    exporting.await.unwrap();
    let spans = collector.spans();
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let (check, ask) = (named("check"), named("ask"));
    assert_eq!(check.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert_eq!(ask.parent_span_id, check.span_id);
    assert_eq!((check.trace_id.clone(), check.kind), (ask.trace_id.clone(), SpanKind::Server.into()));
    assert_eq!(check.attributes[0].key, "atm.reason");
    assert_eq!(tracing.counts(), SpanCounts { exported: 2, ..SpanCounts::default() });
    let resource = collector.0.lock().unwrap()[0].resource_spans[0].resource.clone().unwrap();
    assert!(resource.attributes.iter().any(|pair| pair.key == "service.instance.id"), "{resource:?}");
}

#[tokio::test]
async fn the_callers_flag_decides_and_a_ratio_where_there_is_none() {
    let (never, ..) = start(&settings("http://127.0.0.1:9", 0, 16));
    assert!(never.begin("check", Kind::Server, None).is_none());
    assert!(never.begin("check", Kind::Server, TraceParent::parse(UNSAMPLED)).is_none());
    assert!(never.begin("check", Kind::Server, TraceParent::parse(CALLER)).is_some());
    let (always, ..) = start(&settings("http://127.0.0.1:9", 1, 16));
    assert!(always.begin("check", Kind::Server, TraceParent::parse(UNSAMPLED)).is_none());
    let root = always.begin("check", Kind::Server, None).unwrap();
    assert!(root.traceparent().is_sampled());
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_never_waits() {
    let stop = CancellationToken::new();
    let (tracing, exporting) =
        Tracing::start(&settings("http://127.0.0.1:9", 1, 16), "t", "1", "0", stop).unwrap();
    for _ in 0..20 {
        drop(tracing.begin("check", Kind::Server, None));
    }
    assert_eq!(tracing.counts(), SpanCounts { dropped: 4, ..SpanCounts::default() });
    drop(exporting); // had not begun: nothing left the queue
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (tracing, stop, exporting) = start(&settings(&endpoint, 1, 16));
    drop(tracing.begin("check", Kind::Server, None));
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(30), exporting).await.expect("ends in time").unwrap();
    assert_eq!(tracing.counts(), SpanCounts { failed: 1, ..SpanCounts::default() });
}
