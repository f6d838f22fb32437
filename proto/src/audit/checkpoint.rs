//! Signed checkpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Link;
use crate::signature::{Domain, FeedSigner, SignatureError, TrustedFeedKeys};

/// Why a checkpoint was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// Time or a number of events has passed.
    Periodic,
    /// The chain has ended in order.
    Closed,
    /// Everything up to it was removed because it is older than what is kept; the chain goes on behind it.
    Retention,
}

/// How far another chain was vouched for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Of its newest checkpoint.
    pub sequence: u64,
    /// The link there.
    pub link: String,
}

/// Vouches for a chain up to `sequence`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The chain's name.
    pub chain: String,
    /// Who writes it, for people.
    pub instance: String,
    /// The last event that it covers.
    pub sequence: u64,
    /// The link there.
    pub link: String,
    /// When it was signed, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Why it was made.
    pub occasion: Occasion,
    /// The newest checkpoints of the other chains that the signer knew.
    pub heads: BTreeMap<String, Head>,
}

/// Why a checkpoint is not believed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not signed by a pinned key.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Signed, and not understood: of a later version.
    #[error("the checkpoint cannot be read: {0}")]
    Form(#[from] serde_json::Error),
}

impl Checkpoint {
    /// The signed envelope.
    pub fn sign(&self, signer: &FeedSigner) -> Result<Vec<u8>, serde_json::Error> {
        Ok(signer.sign(Domain::AuditCheckpoint, &serde_json::to_vec(self)?))
    }

    /// The checkpoint in `signed`, if a pinned key signed it.
    pub fn verify(trusted: &TrustedFeedKeys, signed: &[u8]) -> Result<Self, CheckpointError> {
        let payload = trusted.verify(Domain::AuditCheckpoint, signed)?;
        Ok(serde_json::from_slice(&payload)?)
    }

    /// Its link; none where it is malformed.
    pub fn link(&self) -> Option<Link> {
        self.link.parse().ok()
    }
}
