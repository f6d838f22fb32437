//! The audit chain: how events are linked, written as JSON Lines, vouched for by signed checkpoints, and verified.
//!
//! Each process of the control plane writes a chain of its own. Event `n` is linked by
//! `link(n) = SHA-256("atm.audit.v1\0" ‖ link(n-1) ‖ n ‖ event)`, over the event's exact bytes; `n` counts from 1 without a gap. A
//! [`Checkpoint`] signs `(chain, n, link(n))`, and so everything before it. It also names the newest checkpoints of the other
//! chains, so that no chain can go missing as a whole.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

mod checkpoint;
mod verify;

pub use checkpoint::{Checkpoint, CheckpointError, Head, Occasion};
pub use verify::{Beginning, ChainReport, Finding, Report, Verifier};

/// Bytes of one line at most; a longer one is no line of ours.
pub const MAX_LINE: usize = 64 * 1024;

/// What an event is linked by: 32 bytes, in text 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link([u8; 32]);

/// A text that is no link.
#[derive(Debug, thiserror::Error)]
#[error("a link is 32 bytes in base64url without padding (43 characters)")]
pub struct InvalidLink;

impl Link {
    /// The link before the first event of `chain`.
    pub fn genesis(chain: &str) -> Self {
        Self::digest(&[b"atm.audit.v1.genesis\0", chain.as_bytes()])
    }

    /// The link of the event `sequence`, which follows the one of this link.
    #[must_use]
    pub fn then(self, sequence: u64, event: &[u8]) -> Self {
        Self::digest(&[b"atm.audit.v1\0", &self.0, &sequence.to_be_bytes(), event])
    }

    /// A stored link.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The link as it is stored.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn digest(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(part);
        }
        let mut link = [0; 32];
        link.copy_from_slice(context.finish().as_ref());
        Self(link)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({self})")
    }
}

impl FromStr for Link {
    type Err = InvalidLink;

    fn from_str(text: &str) -> Result<Self, InvalidLink> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidLink)?;
        Ok(Self(bytes.try_into().map_err(|_| InvalidLink)?))
    }
}

/// One line of an exported chain: an event, a checkpoint, or what the exporter found wrong in its store.
#[derive(Debug)]
pub enum Line<'a> {
    /// An event with the link of the one before.
    Event {
        /// The link before it.
        prev: Link,
        /// The event's exact bytes: what is linked.
        event: &'a str,
    },
    /// A signed checkpoint: the envelope.
    Checkpoint(Vec<u8>),
    /// What the exporter found wrong, in words.
    Finding(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLine<'a> {
    prev: Option<String>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    checkpoint: Option<String>,
    finding: Option<String>,
}

impl<'a> Line<'a> {
    /// Reads a line without its line break; none for anything that is no line of ours.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        if line.len() > MAX_LINE {
            return None;
        }
        let raw: RawLine<'a> = serde_json::from_slice(line).ok()?;
        match (raw.prev, raw.event, raw.checkpoint, raw.finding) {
            (Some(prev), Some(event), None, None) => {
                Some(Self::Event { prev: prev.parse().ok()?, event: event.get() })
            }
            (None, None, Some(signed), None) => Some(Self::Checkpoint(URL_SAFE_NO_PAD.decode(signed).ok()?)),
            (None, None, None, Some(finding)) => Some(Self::Finding(finding)),
            _ => None,
        }
    }
}

/// What every event says of its own place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Place {
    /// The chain's name.
    pub chain: String,
    /// From 1.
    pub seq: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// What happened, like `token.issued`.
    pub action: String,
}

impl Place {
    /// Reads it from an event's bytes.
    pub fn of(event: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(event)
    }
}

/// The line of an event, without a line break.
pub fn event_line(prev: Link, event: &str) -> String {
    format!("{{\"prev\":\"{prev}\",\"event\":{event}}}")
}

/// The line of a signed checkpoint, without a line break.
pub fn checkpoint_line(signed: &[u8]) -> String {
    format!("{{\"checkpoint\":\"{}\"}}", URL_SAFE_NO_PAD.encode(signed))
}

/// The line of what an exporter found wrong, without a line break.
pub fn finding_line(finding: &str) -> String {
    serde_json::json!({ "finding": finding }).to_string()
}

#[cfg(test)]
mod tests;
