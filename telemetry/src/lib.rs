//! Traces: spans that continue a caller's trace (W3C Trace Context) and are exported over OTLP, HTTP with protobuf.
//!
//! A span is made only where it is sampled: the caller's flag decides, and of the requests that carry no trace one in so many
//! begins one. What has ended waits in a bounded queue for one task that exports it; a queue that is full drops, and counts.
//! Nothing here is global, and whoever is configured without an endpoint has no [`Tracing`] at all.

mod context;
mod export;
mod settings;
mod span;

#[cfg(test)]
mod tests;

pub use context::TraceParent;
pub use settings::TracingSettings;
pub use span::{ActiveSpan, Kind};

use std::sync::Arc;
use std::sync::atomic::Ordering;

use opentelemetry::InstrumentationScope;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio_util::sync::CancellationToken;

/// The exporter cannot be made from the configuration.
#[derive(Debug, thiserror::Error)]
#[error("tracing.endpoint: {0}; give http://host:port of an OpenTelemetry collector")]
pub struct TracingError(String);

/// Begins spans. Clones share everything.
#[derive(Debug, Clone)]
pub struct Tracing {
    tracer: SdkTracer,
    counts: Arc<export::Counts>,
}

/// Spans since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpanCounts {
    /// Taken by the collector.
    pub exported: u64,
    /// Dropped because the queue was full.
    pub dropped: u64,
    /// Refused by the collector, or lost because it was away.
    pub failed: u64,
}

impl Tracing {
    /// Tracing for the program `service`, of which this one is `instance`, and the task that exports until `stop` and what was
    /// waiting then. To be called in a runtime.
    pub fn start(
        settings: &TracingSettings,
        service: &'static str,
        instance: &str,
        version: &'static str,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + use<>), TracingError> {
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(opentelemetry::KeyValue::new("service.instance.id", instance.to_owned()))
            .with_attribute(opentelemetry::KeyValue::new("service.version", version))
            .build();
        let (queue, exporting, counts) = export::channel(settings, &resource, stop)?;
        let ratio = match settings.sample {
            0 => 0.0,
            #[expect(clippy::cast_precision_loss, reason = "a ratio needs no more digits")]
            one_in => 1.0 / one_in as f64,
        };
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_span_processor(queue)
            .with_resource(resource)
            .build();
        let scope = InstrumentationScope::builder("atm").with_version(version).build();
        Ok((Self { tracer: provider.tracer_with_scope(scope), counts }, exporting))
    }

    /// Begins a span below the caller's, or one of a new trace; `None` where it is not sampled.
    pub fn begin(&self, name: &'static str, kind: Kind, parent: Option<TraceParent>) -> Option<ActiveSpan> {
        ActiveSpan::begin(&self.tracer, name, kind, parent)
    }

    /// What came of the spans that have ended.
    pub fn counts(&self) -> SpanCounts {
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        SpanCounts {
            exported: load(&self.counts.exported),
            dropped: load(&self.counts.dropped),
            failed: load(&self.counts.failed),
        }
    }
}
