//! The queue between whoever ends a span and the one task that exports.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{TracingError, TracingSettings};

/// Spans in one export at most.
const BATCH: usize = 512;
/// How long spans wait for others to travel with.
const LINGER: Duration = Duration::from_millis(500);
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) exported: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// Takes spans that have ended. Never waits: a request must not.
#[derive(Debug)]
pub(crate) struct Queue {
    sender: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.sender.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// The exporting task ends by its own token.
    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// A queue, what exports from it, and what they count.
pub(crate) fn channel(
    settings: &TracingSettings,
    resource: &Resource,
    stop: CancellationToken,
) -> Result<(Queue, impl Future<Output = ()> + use<>, Arc<Counts>), TracingError> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(HyperClient::with_default_connector(TIMEOUT, None))
        .with_endpoint(format!("{}/v1/traces", settings.endpoint))
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(TIMEOUT)
        .build()
        .map_err(|error| TracingError(error.to_string()))?;
    exporter.set_resource(resource);
    let (sender, receiver) = mpsc::channel(settings.queue);
    let counts = Arc::new(Counts::default());
    let exporting = run(receiver, exporter, Arc::clone(&counts), stop);
    Ok((Queue { sender, counts: Arc::clone(&counts) }, exporting, counts))
}

async fn run(
    mut spans: mpsc::Receiver<SpanData>,
    exporter: impl SpanExporter,
    counts: Arc<Counts>,
    stop: CancellationToken,
) {
    let mut failing = false;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        if stop.run_until_cancelled(spans.recv_many(&mut batch, BATCH)).await.is_none() {
            break;
        }
        if batch.is_empty() {
            return; // nobody can end a span any more
        }
        let linger = tokio::time::sleep(LINGER);
        tokio::pin!(linger);
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                more = spans.recv_many(&mut batch, room) => if more == 0 { break },
                () = &mut linger => break,
                () = stop.cancelled() => break,
            }
        }
        export(&exporter, batch, &counts, &mut failing).await;
    }
    spans.close();
    let mut rest = Vec::new();
    while spans.recv_many(&mut rest, BATCH).await > 0 {
        export(&exporter, std::mem::take(&mut rest), &counts, &mut failing).await;
    }
}

async fn export(exporter: &impl SpanExporter, batch: Vec<SpanData>, counts: &Counts, failing: &mut bool) {
    let spans = batch.len() as u64;
    match exporter.export(batch).await {
        Ok(()) => {
            counts.exported.fetch_add(spans, Ordering::Relaxed);
            *failing = false;
        }
        Err(error) => {
            counts.failed.fetch_add(spans, Ordering::Relaxed);
            // Told once, not at every batch: what is lost is counted.
            if !std::mem::replace(failing, true) {
                tracing::warn!(%error, "the collector takes no spans; they are dropped and counted");
            }
        }
    }
}
