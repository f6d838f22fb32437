//! Snapshots: a signed manifest that names segments by their content, and the segments themselves.
//!
//! A segment is verified whole before any of it is used: its length, its SHA-256 as signed in the manifest, the order of its
//! rows, and their digest.

use atm_core::id::{Id, IdKind};
use atm_core::revocation::{Bucket, Part, SetDigest};
use atm_core::time::UnixMillis;
use aws_lc_rs::digest::{SHA256, digest};
use prost::Message;

use crate::change::{Change, DecodeError, Digest, Epoch};
use crate::convert::{self, refuse};
use crate::digests::StateDigests;
use crate::wire;

/// Bytes of a segment at most: one is held in memory whole, by whoever makes and by whoever loads it.
pub const MAX_SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// Single tokens of one segment that its maker aims at; segments are cut by leading bits of the ids, so that a new id changes
/// one segment and leaves the others of its bucket as they are.
pub const SEGMENT_TOKENS: u64 = 64 * 1024;
/// Bytes of a row of watermarks.
pub const WATERMARK_ROW: usize = 24;

/// The head of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The realms that share the log.
    pub realm_group: String,
    /// The log's life.
    pub epoch: Epoch,
    /// The state is the one after this revision.
    pub revision: u64,
    /// Digest of the change set at `revision`, which the next one names.
    pub digest: Digest,
    /// When it was made, by its maker's clock.
    pub time: UnixMillis,
    /// Single tokens of earlier buckets are left out.
    pub oldest_bucket: Bucket,
    /// [`StateDigests::root`] of the state with `oldest_bucket`.
    pub state_digest: [u8; 32],
    /// Everything, in pieces.
    pub segments: Vec<Segment>,
}

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// Single tokens of one bucket: ascending 16-byte ids.
    Tokens(Bucket),
    /// Watermarks of one kind: rows of 24 bytes, ascending by id.
    Watermarks(IdKind),
    /// Key sets and policies, as length-delimited changes.
    Values,
}

impl Content {
    /// The part of the state that it belongs to; none for values.
    pub fn part(self) -> Option<Part> {
        match self {
            Self::Tokens(bucket) => Some(Part::Tokens(bucket)),
            Self::Watermarks(kind) => Some(Part::Watermarks(kind)),
            Self::Values => None,
        }
    }
}

/// One piece, as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// What it holds.
    pub content: Content,
    /// How many bytes.
    pub size: u64,
    /// SHA-256 over its bytes: its name.
    pub sha256: [u8; 32],
    /// How many rows.
    pub count: u64,
    /// Of its rows; of values empty.
    pub digest: SetDigest,
}

/// Why a segment was refused.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Not the bytes that the manifest names.
    #[error("segment {name} is not what the manifest says: {problem}")]
    Content {
        /// The SHA-256 of the manifest, in hexadecimal.
        name: String,
        /// What differs.
        problem: &'static str,
    },
    /// The right bytes, which this version does not understand.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// A segment's rows.
#[derive(Debug, Clone)]
pub enum Rows {
    /// Ascending, without duplicates.
    Tokens(Vec<Id>),
    /// Ascending by id, without duplicates.
    Watermarks(Vec<(Id, UnixMillis)>),
    /// Key sets and policies.
    Values(Vec<Change>),
}

impl Segment {
    /// A segment of these bytes, and what names it.
    pub fn of(content: Content, bytes: &[u8], count: u64, digest: SetDigest) -> Self {
        Self { content, size: bytes.len() as u64, sha256: sha256(bytes), count, digest }
    }

    /// The SHA-256 in hexadecimal.
    pub fn name(&self) -> String {
        hex::encode(self.sha256)
    }

    /// The rows of `bytes`, if these are the very bytes that the manifest names.
    pub fn open(&self, bytes: &[u8]) -> Result<Rows, SegmentError> {
        let refuse = |problem| SegmentError::Content { name: self.name(), problem };
        if bytes.len() as u64 != self.size || bytes.len() > MAX_SEGMENT_BYTES {
            return Err(refuse("its length differs"));
        }
        if sha256(bytes) != self.sha256 {
            return Err(refuse("its SHA-256 differs"));
        }
        let (rows, count, digest) = match self.content {
            Content::Tokens(_) => {
                let ids = tokens(bytes).ok_or_else(|| refuse("ids do not ascend"))?;
                let digest = SetDigest::of_tokens(&ids);
                (Rows::Tokens(ids), digest.count(), digest)
            }
            Content::Watermarks(_) => {
                let marks = watermarks(bytes).ok_or_else(|| refuse("watermarks do not ascend"))?;
                let mut digest = SetDigest::EMPTY;
                for (id, instant) in &marks {
                    digest.add_watermark(id, *instant);
                }
                (Rows::Watermarks(marks), digest.count(), digest)
            }
            Content::Values => {
                let changes = values(bytes)?;
                let count = changes.len() as u64;
                (Rows::Values(changes), count, SetDigest::EMPTY)
            }
        };
        if digest != self.digest || count != self.count {
            return Err(refuse("its rows have another digest"));
        }
        Ok(rows)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sha256
}

fn tokens(bytes: &[u8]) -> Option<Vec<Id>> {
    let (ids, rest) = bytes.as_chunks::<16>();
    let ids: Vec<Id> = ids.iter().map(|id| Id::from_bytes(*id)).collect();
    (rest.is_empty() && ids.is_sorted_by(|a, b| a < b)).then_some(ids)
}

fn watermarks(bytes: &[u8]) -> Option<Vec<(Id, UnixMillis)>> {
    let (rows, rest) = bytes.as_chunks::<WATERMARK_ROW>();
    let marks: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let (id, instant) = row.split_first_chunk::<16>()?;
            Some((Id::from_bytes(*id), UnixMillis(i64::from_be_bytes(instant.try_into().ok()?))))
        })
        .collect();
    (rest.is_empty() && marks.is_sorted_by(|a, b| a.0 < b.0)).then_some(marks)
}

fn values(mut bytes: &[u8]) -> Result<Vec<Change>, DecodeError> {
    let mut changes = Vec::new();
    while !bytes.is_empty() {
        match convert::change_from_wire(wire::Change::decode_length_delimited(&mut bytes)?)? {
            change @ (Change::IssuerKeys { .. } | Change::Policies { .. }) => changes.push(change),
            _ => return Err(refuse("segments.values", "holds a change that belongs elsewhere")),
        }
    }
    Ok(changes)
}

/// The row of one watermark.
pub fn watermark_row(id: &Id, instant: UnixMillis) -> [u8; WATERMARK_ROW] {
    let mut row = [0; WATERMARK_ROW];
    row[..16].copy_from_slice(id.as_bytes());
    row[16..].copy_from_slice(&instant.0.to_be_bytes());
    row
}

/// The row of one value.
pub fn value_row(change: &Change) -> Vec<u8> {
    convert::change_to_wire(change).encode_length_delimited_to_vec()
}

impl Manifest {
    /// The payload bytes, to be signed for [`crate::signature::Domain::SnapshotManifest`].
    pub fn encode(&self) -> Vec<u8> {
        wire::SnapshotManifest {
            realm_group: self.realm_group.clone(),
            epoch: self.epoch.as_bytes().to_vec(),
            revision: self.revision,
            digest: self.digest.as_bytes().to_vec(),
            time_ms: self.time.0,
            segments: self.segments.iter().map(segment_to_wire).collect(),
            oldest_bucket: self.oldest_bucket.0,
            state_digest: self.state_digest.to_vec(),
        }
        .encode_to_vec()
    }

    /// Reads a verified payload. The segments' digests must add up to the digest of the state: a manifest that contradicts
    /// itself is refused before anything is fetched for it.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let manifest = wire::SnapshotManifest::decode(payload)?;
        let decoded = Self {
            realm_group: manifest.realm_group,
            epoch: Epoch::from_bytes(convert::array("epoch", &manifest.epoch)?),
            revision: manifest.revision,
            digest: Digest::from_bytes(convert::array("digest", &manifest.digest)?),
            time: UnixMillis(manifest.time_ms),
            oldest_bucket: Bucket(manifest.oldest_bucket),
            state_digest: convert::array("state_digest", &manifest.state_digest)?,
            segments: manifest.segments.iter().map(segment_from_wire).collect::<Result<_, _>>()?,
        };
        if decoded.digests().root(decoded.oldest_bucket) != decoded.state_digest {
            return Err(refuse("state_digest", "is not the digest of the segments"));
        }
        Ok(decoded)
    }

    /// The digests of all parts.
    pub fn digests(&self) -> StateDigests {
        let mut digests = StateDigests::default();
        for segment in &self.segments {
            if let Some(part) = segment.content.part() {
                digests.join(part, segment.digest);
            }
        }
        digests
    }
}

fn segment_to_wire(segment: &Segment) -> wire::Segment {
    let (kind, bucket, watermark_kind) = match segment.content {
        Content::Tokens(bucket) => (wire::SegmentKind::Tokens, bucket.0, 0),
        Content::Watermarks(kind) => (wire::SegmentKind::Watermarks, 0, kind as i32),
        Content::Values => (wire::SegmentKind::Values, 0, 0),
    };
    wire::Segment {
        kind: kind.into(),
        bucket,
        watermark_kind,
        count: segment.count,
        size: segment.size,
        sha256: segment.sha256.to_vec(),
        set_digest: if segment.content == Content::Values {
            vec![]
        } else {
            segment.digest.to_bytes().to_vec()
        },
    }
}

fn segment_from_wire(segment: &wire::Segment) -> Result<Segment, DecodeError> {
    let content = match segment.kind() {
        wire::SegmentKind::Tokens => Content::Tokens(Bucket(segment.bucket)),
        wire::SegmentKind::Watermarks => Content::Watermarks(convert::watermark_kind(
            "segments.watermark_kind",
            segment.watermark_kind(),
            segment.watermark_kind,
        )?),
        wire::SegmentKind::Values => Content::Values,
        wire::SegmentKind::Unspecified => {
            return Err(refuse(
                "segments.kind",
                format!("{} is not known; upgrade the sidecar", segment.kind),
            ));
        }
    };
    if segment.size > MAX_SEGMENT_BYTES as u64 {
        return Err(refuse("segments.size", format!("{} bytes are over {MAX_SEGMENT_BYTES}", segment.size)));
    }
    let digest = if content == Content::Values {
        SetDigest::EMPTY
    } else {
        SetDigest::from_bytes(&convert::array("segments.set_digest", &segment.set_digest)?)
    };
    Ok(Segment {
        content,
        size: segment.size,
        sha256: convert::array("segments.sha256", &segment.sha256)?,
        count: segment.count,
        digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> Id {
        Id::from_bytes([byte; 16])
    }

    fn token_segment(bytes: &[u8]) -> Segment {
        let (ids, _) = bytes.as_chunks::<16>();
        let ids: Vec<Id> = ids.iter().map(|id| Id::from_bytes(*id)).collect();
        Segment::of(Content::Tokens(Bucket(7)), bytes, ids.len() as u64, SetDigest::of_tokens(&ids))
    }

    fn manifest(segments: Vec<Segment>) -> Manifest {
        let mut manifest = Manifest {
            realm_group: "default".into(),
            epoch: Epoch::from_bytes([1; 16]),
            revision: 9,
            digest: Digest::of(b"nine"),
            time: UnixMillis(1),
            oldest_bucket: Bucket(3),
            state_digest: [0; 32],
            segments,
        };
        manifest.state_digest = manifest.digests().root(manifest.oldest_bucket);
        manifest
    }

    #[test]
    fn a_segment_opens_for_its_own_bytes_alone() {
        let bytes: Vec<u8> = [id(1), id(2), id(9)].iter().flat_map(|id| *id.as_bytes()).collect();
        let segment = token_segment(&bytes);
        let Rows::Tokens(ids) = segment.open(&bytes).unwrap() else { panic!() };
        assert_eq!(ids, [id(1), id(2), id(9)]);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(segment.open(&changed).is_err(), "byte {at}");
        }
        assert!(segment.open(&bytes[..32]).is_err());
        assert!(segment.open(&[&bytes[..], &[0; 16]].concat()).is_err());
    }

    #[test]
    fn rows_out_of_order_and_other_digests_are_refused() {
        let bytes: Vec<u8> = [id(2), id(1)].iter().flat_map(|id| *id.as_bytes()).collect();
        assert!(matches!(token_segment(&bytes).open(&bytes), Err(SegmentError::Content { .. })));
        let bytes: Vec<u8> = [id(1), id(2)].iter().flat_map(|id| *id.as_bytes()).collect();
        let mut other = token_segment(&bytes);
        other.digest = SetDigest::of_tokens(&[id(1), id(3)]);
        assert!(matches!(other.open(&bytes), Err(SegmentError::Content { .. })));
    }

    #[test]
    fn watermarks_and_values_come_back() {
        let row = watermark_row(&id(1), UnixMillis(-5));
        let mut digest = SetDigest::EMPTY;
        digest.add_watermark(&id(1), UnixMillis(-5));
        let segment = Segment::of(Content::Watermarks(IdKind::Client), &row, 1, digest);
        let Rows::Watermarks(marks) = segment.open(&row).unwrap() else { panic!() };
        assert_eq!(marks, [(id(1), UnixMillis(-5))]);
        let change = Change::Policies { version: 3, documents: vec!["a".into()] };
        let bytes = [value_row(&change), value_row(&change)].concat();
        let segment = Segment::of(Content::Values, &bytes, 2, SetDigest::EMPTY);
        let Rows::Values(changes) = segment.open(&bytes).unwrap() else { panic!() };
        assert!(matches!(changes[..], [Change::Policies { version: 3, .. }, _]));
        let bytes = value_row(&Change::RevokedTokens { bucket: Bucket(1), ids: vec![] });
        let segment = Segment::of(Content::Values, &bytes, 1, SetDigest::EMPTY);
        assert!(matches!(segment.open(&bytes), Err(SegmentError::Decode(_))));
    }

    #[test]
    fn a_manifest_comes_back_and_must_agree_with_itself() {
        let bytes: Vec<u8> = [id(1), id(2)].iter().flat_map(|id| *id.as_bytes()).collect();
        let whole = manifest(vec![token_segment(&bytes), token_segment(&bytes[..16])]);
        assert_eq!(Manifest::decode(&whole.encode()).unwrap(), whole);
        let mut lying = whole.clone();
        lying.segments.pop();
        assert!(Manifest::decode(&lying.encode()).is_err());
        assert!(Manifest::decode(b"\xff").is_err());
    }
}
