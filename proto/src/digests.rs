//! The digests of all parts of the state, as both ends of the feed keep and compare them.

use std::collections::BTreeMap;

use atm_core::id::IdKind;
use atm_core::revocation::{Bucket, Part, SetDigest, root_digest};
use prost::Message;

use crate::change::{DecodeError, Epoch};
use crate::convert::{self, refuse};
use crate::wire;

/// A digest for each part of the state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateDigests(BTreeMap<Part, SetDigest>);

impl StateDigests {
    /// The digest of `part`.
    pub fn get(&self, part: Part) -> SetDigest {
        self.0.get(&part).copied().unwrap_or_default()
    }

    /// Adds entries that `part` does not have.
    pub fn join(&mut self, part: Part, digest: SetDigest) {
        let known = self.0.entry(part).or_default();
        *known = known.joined(digest);
    }

    /// Every part that is not empty, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Part, SetDigest)> + '_ {
        self.0.iter().filter(|(_, digest)| digest.count() > 0).map(|(part, digest)| (*part, *digest))
    }

    /// Forgets the tokens of every bucket before `oldest`, except those of unknown expiry.
    pub fn drop_buckets_before(&mut self, oldest: Bucket) {
        self.0.retain(|part, _| is_kept(*part, oldest));
    }

    /// One digest over all parts, leaving out the tokens of buckets before `oldest`: each side forgets those in its own time.
    pub fn root(&self, oldest: Bucket) -> [u8; 32] {
        root_digest(self.iter().filter(|(part, _)| is_kept(*part, oldest)))
    }
}

impl FromIterator<(Part, SetDigest)> for StateDigests {
    fn from_iter<I: IntoIterator<Item = (Part, SetDigest)>>(parts: I) -> Self {
        Self(parts.into_iter().collect())
    }
}

/// What is in `whole` beyond `part`, if `part` is in it: the digest with which `part` joins to `whole`.
pub fn difference(whole: SetDigest, part: SetDigest) -> SetDigest {
    let (whole, part) = (whole.to_bytes(), part.to_bytes());
    let (Some((whole_count, whole_sum)), Some((part_count, part_sum))) =
        (whole.split_first_chunk::<8>(), part.split_first_chunk::<8>())
    else {
        return SetDigest::EMPTY; // 24 bytes hold 8
    };
    let sum = |bytes: &[u8]| bytes.try_into().map_or(0, u128::from_be_bytes);
    let mut bytes = [0; 24];
    let count = u64::from_be_bytes(*whole_count).wrapping_sub(u64::from_be_bytes(*part_count));
    bytes[..8].copy_from_slice(&count.to_be_bytes());
    bytes[8..].copy_from_slice(&sum(whole_sum).wrapping_sub(sum(part_sum)).to_be_bytes());
    SetDigest::from_bytes(&bytes)
}

/// What the control plane answers to whoever finds that its copy differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// The realms that share the log.
    pub realm_group: String,
    /// The log's life.
    pub epoch: Epoch,
    /// The digests are those of the state at this revision.
    pub revision: u64,
    /// Of all parts.
    pub parts: StateDigests,
}

impl Digests {
    /// The payload bytes, to be signed for [`crate::signature::Domain::Digests`].
    pub fn encode(&self) -> Vec<u8> {
        let part = |(part, digest): (Part, SetDigest)| {
            let (kind, bucket) = match part {
                Part::Tokens(bucket) => (IdKind::Token, bucket.0),
                Part::Watermarks(kind) => (kind, 0),
            };
            wire::PartDigest { kind: kind as u32, bucket, digest: digest.to_bytes().to_vec() }
        };
        wire::DigestsReply {
            realm_group: self.realm_group.clone(),
            epoch: self.epoch.as_bytes().to_vec(),
            revision: self.revision,
            parts: self.parts.iter().map(part).collect(),
        }
        .encode_to_vec()
    }

    /// Reads a verified payload.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let reply = wire::DigestsReply::decode(payload)?;
        let part = |part: &wire::PartDigest| {
            let kind = u8::try_from(part.kind).ok().and_then(IdKind::from_number);
            let kind = kind.ok_or_else(|| refuse("parts.kind", "is not known; upgrade the sidecar"))?;
            let digest = SetDigest::from_bytes(&convert::array("parts.digest", &part.digest)?);
            let part = match kind {
                IdKind::Token => Part::Tokens(Bucket(part.bucket)),
                kind => Part::Watermarks(kind),
            };
            Ok::<_, DecodeError>((part, digest))
        };
        Ok(Self {
            realm_group: reply.realm_group,
            epoch: Epoch::from_bytes(convert::array("epoch", &reply.epoch)?),
            revision: reply.revision,
            parts: reply.parts.iter().map(part).collect::<Result<_, _>>()?,
        })
    }
}

/// Whether `part` counts while tokens of buckets before `oldest` do not.
pub fn is_kept(part: Part, oldest: Bucket) -> bool {
    match part {
        Part::Tokens(bucket) => bucket == Bucket::UNKNOWN || bucket >= oldest,
        Part::Watermarks(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use atm_core::id::{Id, IdKind};

    use super::*;

    #[test]
    fn a_difference_joins_to_the_whole() {
        let ids: Vec<Id> = (0..9).map(|number| Id::from_bytes([number; 16])).collect();
        let (whole, part) = (SetDigest::of_tokens(&ids), SetDigest::of_tokens(&ids[..4]));
        assert_eq!(difference(whole, part), SetDigest::of_tokens(&ids[4..]));
        assert_eq!(part.joined(difference(whole, part)), whole);
        assert_eq!(whole.joined(difference(part, whole)), part, "also where it is the other way round");
    }

    #[test]
    fn digests_come_back_from_the_wire() {
        let some = SetDigest::of_tokens(&[Id::from_bytes([4; 16])]);
        let parts = [(Part::Tokens(Bucket(8)), some), (Part::Watermarks(IdKind::Key), some)];
        let digests = Digests {
            realm_group: "default".into(),
            epoch: Epoch::from_bytes([1; 16]),
            revision: 9,
            parts: parts.into_iter().collect(),
        };
        assert_eq!(Digests::decode(&digests.encode()).unwrap(), digests);
        assert!(Digests::decode(b"\xff").is_err());
    }

    #[test]
    fn the_root_leaves_out_what_is_forgotten_and_nothing_else() {
        let some = SetDigest::of_tokens(&[Id::of(IdKind::Token, "https://issuer", "1")]);
        let of = |part| StateDigests::from_iter([(part, some)]);
        let nothing = StateDigests::default().root(Bucket(0));
        assert_eq!(of(Part::Tokens(Bucket(8))).root(Bucket(9)), nothing);
        assert_ne!(of(Part::Tokens(Bucket(9))).root(Bucket(9)), nothing);
        assert_ne!(of(Part::Tokens(Bucket::UNKNOWN)).root(Bucket(9)), nothing);
        assert_ne!(of(Part::Watermarks(IdKind::Client)).root(Bucket(9)), nothing);
        let mut dropped = of(Part::Tokens(Bucket(8)));
        dropped.drop_buckets_before(Bucket(9));
        assert_eq!(dropped.iter().count(), 0);
    }
}
