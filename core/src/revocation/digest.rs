//! Digests by which two holders of revocations see whether they hold the same, part by part.
//!
//! A part's digest is the sum modulo 2^128 of a keyed SipHash-2-4 over its entries, and their number: it does not depend on
//! the order in which they came, grows by one addition an entry, and unlike exclusive-or does not cancel what comes twice.

use aws_lc_rs::digest::{Context, SHA256};
use siphasher::sip128::SipHasher24;

use super::Bucket;
use crate::id::{Id, IdKind};
use crate::time::UnixMillis;

/// Both sides know it: it keeps these hashes apart from any other use, and entries are hashes that nobody chooses.
const KEY: &[u8; 16] = b"atm-set-digest-1";

/// What one digest is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Single tokens of one bucket.
    Tokens(Bucket),
    /// Watermarks of one kind.
    Watermarks(IdKind),
}

impl Part {
    /// Eight bytes that sort as parts do: 0 and the bucket, or 1 and the kind's number, both as big-endian `u32`.
    pub fn to_bytes(self) -> [u8; 8] {
        let (class, number) = match self {
            Self::Tokens(bucket) => (0_u32, bucket.0),
            Self::Watermarks(kind) => (1, u32::from(kind as u8)),
        };
        (u64::from(class) << 32 | u64::from(number)).to_be_bytes()
    }
}

/// The digest of a set of entries, each of which is added once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetDigest {
    count: u64,
    sum: u128,
}

impl SetDigest {
    /// Of nothing.
    pub const EMPTY: Self = Self { count: 0, sum: 0 };

    /// Of these tokens, which are all different.
    pub fn of_tokens<'i>(ids: impl IntoIterator<Item = &'i Id>) -> Self {
        let mut digest = Self::EMPTY;
        for id in ids {
            digest.add_token(id);
        }
        digest
    }

    /// How many entries were added.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Adds a token that was not added before.
    pub fn add_token(&mut self, id: &Id) {
        self.add_hash(hash(id.as_bytes()));
    }

    /// Adds a register that was not added before. Its kind is the part's.
    pub fn add_watermark(&mut self, id: &Id, instant: UnixMillis) {
        self.add_hash(hash(&watermark(id, instant)));
    }

    /// Takes back a register that was added, to add it with another instant.
    pub fn remove_watermark(&mut self, id: &Id, instant: UnixMillis) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(&watermark(id, instant)));
    }

    /// Of both sets, which have no entry in common.
    #[must_use]
    pub const fn joined(self, other: Self) -> Self {
        Self { count: self.count.wrapping_add(other.count), sum: self.sum.wrapping_add(other.sum) }
    }

    /// Count and sum, big endian.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.count.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sum.to_be_bytes());
        bytes
    }

    /// What [`SetDigest::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8; 24]) -> Self {
        let (mut count, mut sum) = ([0; 8], [0; 16]);
        count.copy_from_slice(&bytes[..8]);
        sum.copy_from_slice(&bytes[8..]);
        Self { count: u64::from_be_bytes(count), sum: u128::from_be_bytes(sum) }
    }

    fn add_hash(&mut self, hash: u128) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash);
    }
}

/// One digest over the digests of all parts: SHA-256 over those that are not empty, in the order of [`Part`]. Both sides leave
/// out the buckets that [`Bucket::oldest_alive`] says are over, or their clocks would show as a difference.
pub fn root_digest(parts: impl IntoIterator<Item = (Part, SetDigest)>) -> [u8; 32] {
    let mut parts: Vec<_> = parts.into_iter().filter(|(_, digest)| digest.count > 0).collect();
    parts.sort_unstable_by_key(|(part, _)| *part);
    let mut context = Context::new(&SHA256);
    context.update(b"atm-root-digest-v1");
    for (part, digest) in parts {
        context.update(&part.to_bytes());
        context.update(&digest.to_bytes());
    }
    let mut root = [0; 32];
    root.copy_from_slice(context.finish().as_ref());
    root
}

fn hash(bytes: &[u8]) -> u128 {
    SipHasher24::new_with_key(KEY).hash(bytes).as_u128()
}

fn watermark(id: &Id, instant: UnixMillis) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(id.as_bytes());
    bytes[16..].copy_from_slice(&instant.0.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> Id {
        Id::from_bytes([number; 16])
    }

    #[test]
    fn order_does_not_count_and_number_does() {
        let forward = SetDigest::of_tokens(&[id(1), id(2), id(3)]);
        assert_eq!(forward, SetDigest::of_tokens(&[id(3), id(1), id(2)]));
        assert_eq!(forward, SetDigest::of_tokens(&[id(2)]).joined(SetDigest::of_tokens(&[id(1), id(3)])));
        assert_ne!(forward, SetDigest::of_tokens(&[id(1), id(2), id(3), id(3), id(3)]));
        assert_eq!(forward.count(), 3);
        assert_eq!(SetDigest::from_bytes(&forward.to_bytes()), forward);
    }

    /// Other programs compute it, too: what it is never changes.
    #[test]
    fn the_hash_is_fixed() {
        assert_eq!(
            hex::encode(SetDigest::of_tokens(&[id(7)]).to_bytes()),
            "000000000000000193f05d418f29f7536defa9e4d44a7cef"
        );
    }

    #[test]
    fn a_raised_watermark_takes_the_place_of_the_lower_one() {
        let mut raised = SetDigest::EMPTY;
        raised.add_watermark(&id(1), UnixMillis(5));
        raised.remove_watermark(&id(1), UnixMillis(5));
        raised.add_watermark(&id(1), UnixMillis(6));
        let mut direct = SetDigest::EMPTY;
        direct.add_watermark(&id(1), UnixMillis(6));
        assert_eq!(raised, direct);
    }

    #[test]
    fn the_root_knows_parts_apart_and_no_order() {
        let one = SetDigest::of_tokens(&[id(1)]);
        let (hour, next) = (Part::Tokens(Bucket(1)), Part::Tokens(Bucket(2)));
        assert_eq!(root_digest([(hour, one), (next, one)]), root_digest([(next, one), (hour, one)]));
        assert_ne!(root_digest([(hour, one)]), root_digest([(next, one)]));
        assert_ne!(root_digest([(hour, one)]), root_digest([(Part::Watermarks(IdKind::Session), one)]));
        assert_eq!(root_digest([(hour, one), (next, SetDigest::EMPTY)]), root_digest([(hour, one)]));
    }
}
