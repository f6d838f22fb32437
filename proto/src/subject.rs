//! NATS names: subjects under `atm.<realm group>.`, and the stream that keeps the log.

/// Name of the JetStream stream that keeps the change sets.
pub const STREAM: &str = "ATM_FEED";

/// Name of the JetStream stream that keeps decisions that sidecars record and the audit chains of control planes.
pub const AUDIT_STREAM: &str = "ATM_AUDIT";

/// Name of the JetStream stream that keeps snapshots, one message a subject.
pub const SNAPSHOT_STREAM: &str = "ATM_SNAPSHOTS";

/// Bytes of one message of a segment; NATS's default message limit is 1 MiB.
pub const SEGMENT_CHUNK: usize = 256 * 1024;

/// Header that carries a change set's revision in decimal, so that a reader can map revisions to stream sequences without
/// decoding payloads. It is a hint: what counts is the signed revision inside.
pub const REVISION_HEADER: &str = "Atm-Revision";

/// The subjects of one realm group.
#[derive(Debug, Clone)]
pub struct Subjects {
    prefix: String,
}

/// A realm group's or a sidecar's name that cannot be part of a NATS subject.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} cannot be part of a NATS subject: use 1 to 64 letters, digits, '-' or '_'")]
pub struct InvalidToken(pub String);

impl Subjects {
    /// The subjects of `realm_group`, which is one NATS subject token: 1 to 64 letters, digits, `-` or `_`.
    pub fn new(realm_group: &str) -> Result<Self, InvalidToken> {
        check_token(realm_group)?;
        Ok(Self { prefix: format!("atm.{realm_group}") })
    }

    /// Where the control plane publishes change sets; captured by [`STREAM`].
    pub fn feed(&self) -> String {
        self.under("feed")
    }

    /// Where the stream republishes each stored change set; sidecars hold a core subscription on it.
    pub fn live(&self) -> String {
        self.under("live")
    }

    /// Signed heartbeats, once a second.
    pub fn heartbeat(&self) -> String {
        self.under("heartbeat")
    }

    /// Where the sidecar `id` reports.
    pub fn fleet(&self, id: &str) -> Result<String, InvalidToken> {
        check_token(id)?;
        Ok(self.under(&format!("fleet.{id}")))
    }

    /// All sidecars' reports.
    pub fn fleet_all(&self) -> String {
        self.under("fleet.*")
    }

    /// The newest snapshot's signed manifest, kept by [`SNAPSHOT_STREAM`].
    pub fn snapshot_manifest(&self) -> String {
        self.under("snapshot.manifest")
    }

    /// Chunk `number` (from 0) of the segment with that SHA-256, kept by [`SNAPSHOT_STREAM`].
    pub fn snapshot_chunk(&self, sha256: &[u8; 32], number: u32) -> String {
        self.under(&format!("snapshot.segment.{}.{number}", hex::encode(sha256)))
    }

    /// All chunks of all segments.
    pub fn snapshot_chunks(&self) -> String {
        self.under("snapshot.segment.*.*")
    }

    /// The rotation of feed keys with that number, kept by [`SNAPSHOT_STREAM`].
    pub fn feed_keys(&self, number: u64) -> String {
        self.under(&format!("snapshot.feedkeys.{number}"))
    }

    /// Everything that [`SNAPSHOT_STREAM`] keeps.
    pub fn snapshots(&self) -> String {
        self.under("snapshot.>")
    }

    /// What the control plane asks of all sidecars, signed.
    pub fn command(&self) -> String {
        self.under("command")
    }

    /// Request/reply for the digests of the state.
    pub fn digests(&self) -> String {
        self.under("digests")
    }

    /// Request/reply for change sets that the stream does not hold.
    pub fn resync(&self) -> String {
        self.under("resync")
    }

    /// Request/reply for what opaque credentials stand for.
    pub fn introspect(&self) -> String {
        self.under("introspect")
    }

    /// Decisions that sidecars record.
    pub fn audit(&self) -> String {
        self.under("audit")
    }

    /// The audit chains of control planes; captured by [`AUDIT_STREAM`].
    pub fn audit_events(&self) -> String {
        self.under("audit.events")
    }

    fn under(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }
}

fn check_token(token: &str) -> Result<(), InvalidToken> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if token.is_empty() || token.len() > 64 || !token.bytes().all(allowed) {
        return Err(InvalidToken(token.chars().take(64).collect()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_widen_a_subject_is_refused() {
        for name in ["", "a.b", "*", ">", "a b", "é", &"x".repeat(65)] {
            assert!(Subjects::new(name).is_err(), "{name:?}");
        }
        let subjects = Subjects::new("default").unwrap();
        assert_eq!(subjects.feed(), "atm.default.feed");
        assert!(subjects.fleet("a.>").is_err());
    }
}
