//! The section `tracing` of both programs' configuration.

use std::ops::RangeInclusive;

use atm_core::settings::Section;

/// Where spans go, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracingSettings {
    /// `endpoint`: a collector's OTLP over HTTP, `http://host:port`; `/v1/traces` is appended.
    pub endpoint: String,
    /// `sample`: of so many requests without a trace of the caller's one begins a trace; 0 for none.
    pub sample: u64,
    /// `queue`: spans that wait for the collector at most; 2048.
    pub queue: usize,
}

impl TracingSettings {
    /// `sample` where nothing is said.
    pub const DEFAULT_SAMPLE: u64 = 0;
    /// `queue` where nothing is said.
    pub const DEFAULT_QUEUE: u64 = 2_048;
    /// What `sample` may be.
    pub const SAMPLES: RangeInclusive<u64> = 0..=1_000_000_000;
    /// What `queue` may be.
    pub const QUEUES: RangeInclusive<u64> = 16..=1_000_000;

    /// Reads the section; `None` where no endpoint is given, which turns tracing off.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let sample = section.number("sample", Self::DEFAULT_SAMPLE, Self::SAMPLES);
        let queue = section.number("queue", Self::DEFAULT_QUEUE, Self::QUEUES);
        let endpoint = section.parsed("endpoint", Self::endpoint)?;
        Some(Self { endpoint, sample, queue: usize::try_from(queue).unwrap_or(usize::MAX) })
    }

    /// Checks a collector's base URL.
    pub fn endpoint(text: &str) -> Result<String, &'static str> {
        let plain = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        match plain {
            Some(authority) if !authority.is_empty() && !authority.contains(['/', '?', '#', '@', ' ']) => {
                Ok(format!("http://{authority}"))
            }
            _ => Err("must be http://host:port of a collector's OTLP listener, as in http://127.0.0.1:4318"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TracingSettings;

    #[test]
    fn only_a_base_url_of_plain_http_is_taken() {
        assert_eq!(TracingSettings::endpoint("http://127.0.0.1:4318/").unwrap(), "http://127.0.0.1:4318");
        for text in
            ["", "127.0.0.1:4318", "https://collector:4318", "http://", "http://a/v1/traces", "http://u:p@a"]
        {
            assert!(TracingSettings::endpoint(text).is_err(), "{text}");
        }
    }
}
