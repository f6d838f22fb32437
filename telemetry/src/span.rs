//! A span under way.

use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use crate::TraceParent;

/// Which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Answers a call.
    Server,
    /// Waits for another's answer.
    Client,
}

/// A sampled span. It ends when it is dropped.
#[derive(Debug)]
pub struct ActiveSpan {
    /// On the heap, so that whoever may have a span carries a pointer.
    span: Box<Span>,
    tracer: SdkTracer,
}

impl ActiveSpan {
    pub(crate) fn begin(
        tracer: &SdkTracer,
        name: &'static str,
        kind: Kind,
        parent: Option<TraceParent>,
    ) -> Option<Self> {
        let context = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent.remote()),
            None => Context::new(),
        };
        let kind = match kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        };
        let builder = tracer.span_builder(name).with_kind(kind);
        let span = tracer.build_with_context(builder, &context);
        span.is_recording().then(|| Self { span: Box::new(span), tracer: tracer.clone() })
    }

    /// A span below this one.
    pub fn child(&self, name: &'static str, kind: Kind) -> Option<Self> {
        Self::begin(&self.tracer, name, kind, Some(self.traceparent()))
    }

    /// What tells another program to go on below this span.
    pub fn traceparent(&self) -> TraceParent {
        TraceParent::of(self.span.span_context())
    }

    /// Says something of it. Never a credential, nor anything that was sent as one.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.span.set_attribute(KeyValue::new(name, value));
    }

    /// Marks a fault: of ours, not a refusal.
    pub fn fault(&mut self, description: &'static str) {
        self.span.set_status(Status::error(description));
    }
}
