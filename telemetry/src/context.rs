//! The caller's trace context as it travels: W3C Trace Context §3.2.

use std::fmt;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// A well formed `traceparent` of version 00.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

impl TraceParent {
    /// Reads the header's value. `None` for whatever is not exactly one of version 00: the trace is then begun anew, as the
    /// specification asks.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        if bytes.len() != 55 || !dashes || !text.starts_with("00") {
            return None;
        }
        let hexadecimal = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte) || *byte == b'-';
        if !bytes.iter().all(hexadecimal) {
            return None;
        }
        let trace = TraceId::from_hex(&text[3..35]).ok()?;
        let span = SpanId::from_hex(&text[36..52]).ok()?;
        let flags = u8::from_str_radix(&text[53..], 16).ok()?;
        let valid = trace != TraceId::INVALID && span != SpanId::INVALID;
        // Flags beyond `sampled` mean nothing here and must not be sent on (§3.2.2.5.2).
        valid.then(|| Self { trace, span, flags: TraceFlags::default().with_sampled(flags & 1 == 1) })
    }

    /// The trace's id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> impl fmt::Display + use<> {
        self.trace
    }

    /// Whether the caller records this trace.
    pub fn is_sampled(&self) -> bool {
        self.flags.is_sampled()
    }

    pub(crate) fn of(context: &SpanContext) -> Self {
        Self { trace: context.trace_id(), span: context.span_id(), flags: context.trace_flags() }
    }

    pub(crate) fn remote(self) -> SpanContext {
        SpanContext::new(self.trace, self.span, self.flags, true, TraceState::NONE)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, self.flags.to_u8())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_good_one_survives() {
        let parent = TraceParent::parse(GOOD).unwrap();
        assert_eq!(parent.to_string(), GOOD);
        assert_eq!(parent.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(parent.is_sampled());
        assert!(!TraceParent::parse(&GOOD.replace("-01", "-00")).unwrap().is_sampled());
        assert_eq!(TraceParent::parse(&GOOD.replace("-01", "-ff")).unwrap().to_string(), GOOD);
    }

    #[test]
    fn anything_else_is_none() {
        let zero_trace = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let zero_span = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        let upper = GOOD.to_uppercase();
        let long = format!("{GOOD}-00");
        let other_version = GOOD.replacen("00", "01", 1);
        let misplaced = GOOD.replacen("4b", "4-", 1);
        let wide = "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-0";
        for text in
            ["", "00", zero_trace, zero_span, &upper, &long, &other_version, &misplaced, wide, &GOOD[1..]]
        {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
    }
}
