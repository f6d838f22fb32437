//! Change sets and heartbeats: the log's types, decoded strictly, and what they do to a view.

use std::fmt;
use std::sync::Arc;

use atm_core::id::{Id, IdKind};
use atm_core::key::{Issuer, VerificationKey};
use atm_core::policy::{self, PolicyError};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_core::view::View;
use aws_lc_rs::digest::{SHA256, digest};
use prost::Message;

use crate::convert;
use crate::wire;

/// Names one life of the log; 16 random bytes, hexadecimal in text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch([u8; 16]);

impl Epoch {
    /// From the bytes on the wire or in a store.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

/// SHA-256 over a change set's payload bytes; chains the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// What stands before revision 1.
    pub const ZERO: Self = Self([0; 32]);

    /// The digest of a change set's payload.
    pub fn of(payload: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, payload).as_ref());
        Self(bytes)
    }

    /// From the bytes on the wire or in a store.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", hex::encode(self.0))
    }
}

/// Why a message that a pinned key signed was refused all the same.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf of the expected message.
    #[error("not a message of the feed: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A field that holds what this version does not understand.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the field within the message.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// One thing that a sidecar must know.
#[derive(Debug, Clone)]
pub enum Change {
    /// An issuer's whole key set. Without keys: the issuer is no longer trusted.
    IssuerKeys {
        /// Exactly as in the tokens' `iss`.
        issuer: String,
        /// The realm that owns the issuer; none for an external one.
        realm: Option<String>,
        /// All keys that may verify.
        keys: Vec<VerificationKey>,
        /// As [`Issuer::with_token_types`] takes them; empty for `at+jwt` alone.
        token_types: Vec<String>,
    },
    /// Single tokens of one expiry bucket, in ascending order without duplicates.
    RevokedTokens {
        /// The hour in which the tokens expire.
        bucket: Bucket,
        /// Ids of kind [`IdKind::Token`].
        ids: Vec<Id>,
    },
    /// Everything of these scopes issued at or before the instants is revoked. Never of kind [`IdKind::Token`].
    Watermarks {
        /// What the ids name.
        kind: IdKind,
        /// Scope and instant.
        entries: Vec<(Id, UnixMillis)>,
    },
    /// The whole policy set.
    Policies {
        /// Counts applied sets, from 1.
        version: u64,
        /// YAML documents of kind `TokenPolicy`.
        documents: Vec<String>,
    },
}

impl Change {
    /// The bytes of this change alone, for a store that keeps the last one of a kind.
    pub fn encode(&self) -> Vec<u8> {
        convert::change_to_wire(self).encode_to_vec()
    }

    /// Reads what [`Change::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        convert::change_from_wire(wire::Change::decode(bytes)?)
    }
}

/// One contiguous step of the log.
#[derive(Debug, Clone)]
pub struct ChangeSet {
    /// The realms that share the log.
    pub realm_group: String,
    /// The log's life.
    pub epoch: Epoch,
    /// Contiguous, from 1.
    pub revision: u64,
    /// The digest of the change set before it; [`Digest::ZERO`] at revision 1.
    pub previous_digest: Digest,
    /// The sequencer's clock.
    pub time: UnixMillis,
    /// Applied in order, all or none.
    pub changes: Vec<Change>,
}

impl ChangeSet {
    /// The payload bytes, to be signed for [`crate::signature::Domain::ChangeSet`].
    pub fn encode(&self) -> Vec<u8> {
        wire::ChangeSet {
            realm_group: self.realm_group.clone(),
            epoch: self.epoch.0.to_vec(),
            revision: self.revision,
            previous_digest: self.previous_digest.0.to_vec(),
            time_ms: self.time.0,
            changes: self.changes.iter().map(convert::change_to_wire).collect(),
        }
        .encode_to_vec()
    }

    /// Reads a verified payload; refuses every part that is not understood, because skipping one could hide a revocation.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let set = wire::ChangeSet::decode(payload)?;
        if set.revision == 0 {
            return Err(convert::refuse("revision", "must be 1 or more"));
        }
        Ok(Self {
            realm_group: set.realm_group,
            epoch: Epoch(convert::array("epoch", &set.epoch)?),
            revision: set.revision,
            previous_digest: Digest(convert::array("previous_digest", &set.previous_digest)?),
            time: UnixMillis(set.time_ms),
            changes: set.changes.into_iter().map(convert::change_from_wire).collect::<Result<_, _>>()?,
        })
    }
}

/// How far the log has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The realms that share the log.
    pub realm_group: String,
    /// The log's life.
    pub epoch: Epoch,
    /// The newest revision; 0 for an empty log.
    pub revision: u64,
    /// The oldest revision that the stream still keeps.
    pub oldest_revision: u64,
    /// The sender's clock.
    pub time: UnixMillis,
    /// Digest of the newest change set; [`Digest::ZERO`] for an empty log.
    pub digest: Digest,
    /// The newest snapshot of this epoch; 0 while there is none.
    pub snapshot_revision: u64,
    /// What the whole state at `revision` must come to, where the sender says.
    pub state: Option<StateDigest>,
    /// Milliseconds that a sidecar leaves between two reports of advances.
    pub report_pause_ms: u32,
    /// The newest rotation of feed keys; 0 while there is none.
    pub rotation: u64,
}

/// A digest over the whole state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateDigest {
    /// Single tokens of buckets before this one are left out.
    pub oldest_bucket: Bucket,
    /// As [`crate::digests::StateDigests::root`] gives it.
    pub root: [u8; 32],
}

impl Heartbeat {
    /// The payload bytes, to be signed for [`crate::signature::Domain::Heartbeat`].
    pub fn encode(&self) -> Vec<u8> {
        wire::Heartbeat {
            realm_group: self.realm_group.clone(),
            epoch: self.epoch.0.to_vec(),
            revision: self.revision,
            oldest_revision: self.oldest_revision,
            time_ms: self.time.0,
            digest: self.digest.0.to_vec(),
            snapshot_revision: self.snapshot_revision,
            state_digest: self.state.map(|state| state.root.to_vec()).unwrap_or_default(),
            oldest_bucket: self.state.map_or(0, |state| state.oldest_bucket.0),
            report_pause_ms: self.report_pause_ms,
            rotation: self.rotation,
        }
        .encode_to_vec()
    }

    /// Reads a verified payload.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let heartbeat = wire::Heartbeat::decode(payload)?;
        let state = match &heartbeat.state_digest[..] {
            [] => None,
            root => Some(StateDigest {
                oldest_bucket: Bucket(heartbeat.oldest_bucket),
                root: convert::array("state_digest", root)?,
            }),
        };
        Ok(Self {
            realm_group: heartbeat.realm_group,
            epoch: Epoch(convert::array("epoch", &heartbeat.epoch)?),
            revision: heartbeat.revision,
            oldest_revision: heartbeat.oldest_revision,
            time: UnixMillis(heartbeat.time_ms),
            digest: Digest(convert::array("digest", &heartbeat.digest)?),
            snapshot_revision: heartbeat.snapshot_revision,
            state,
            report_pause_ms: heartbeat.report_pause_ms,
            rotation: heartbeat.rotation,
        })
    }
}

/// A change that was understood and could not be put in force. What was in force before stays.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The policy set does not compile here.
    #[error("policy set {version} does not compile here, the one before stays in force: {}", join(.errors))]
    Policies {
        /// The refused set's version.
        version: u64,
        /// Every mistake found.
        errors: Vec<PolicyError>,
    },
}

/// The first mistake in one line, and how many there are: the text travels in reports and stands in tables.
fn join(errors: &[PolicyError]) -> String {
    let Some(PolicyError { document, line, column, path, message, .. }) = errors.first() else {
        return String::new();
    };
    let more = match errors.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
    format!("document {}, line {line}, column {column}: {path}{message}{more}", document + 1)
}

/// Puts `change` in force in `view`. On an error the view is as it was before.
pub fn apply(change: &Change, view: &mut View) -> Result<(), ApplyError> {
    match change {
        Change::IssuerKeys { issuer, realm, keys, token_types } => {
            if keys.is_empty() {
                view.issuers.remove(issuer);
            } else {
                let trusted = Issuer::new(issuer.clone(), realm.clone(), keys.clone());
                view.issuers.set(trusted.with_token_types(token_types.clone()));
            }
            view.key_generation += 1;
        }
        Change::RevokedTokens { bucket, ids } => view.revocations.revoke_tokens(*bucket, ids),
        Change::Watermarks { kind, entries } => {
            for (id, instant) in entries {
                view.revocations.raise_watermark(*kind, *id, *instant);
            }
        }
        Change::Policies { version, documents } => {
            let set = policy::compile(documents)
                .map_err(|errors| ApplyError::Policies { version: *version, errors })?;
            view.policies = Arc::new(set.with_version(*version));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
