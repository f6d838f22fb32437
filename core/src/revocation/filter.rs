//! Membership filters over many ids: about 19 bits an id, no false «no», one false «maybe» in 65,536.
//!
//! The filter is a row of binary fuse filters (Graf and Lemire, 2022), each over the ids that begin with the same bits. Ids
//! come sorted, so that one shard after the other is built and never more than one shard's ids are held.

use xorf::{BinaryFuse16, Descriptor, Filter};

use super::digest::SetDigest;
use crate::id::Id;

/// Ids of a shard at least, where there are several, and twice as many at most: its construction needs some 30 bytes an id for
/// the moment, and its look-ups stay on a few pages.
const SHARD_IDS: usize = 1 << 15;
/// Shards at most. Past it they grow.
const MAX_SHARD_BITS: u32 = 16;

/// Says of an id whether it may be in the set, or is not.
#[derive(Debug, Clone)]
pub struct IdFilter {
    /// A shard for each value of this many leading bits.
    shard_bits: u32,
    shards: Box<[Shard]>,
}

#[derive(Debug, Clone)]
enum Shard {
    Empty,
    Fuse(BinaryFuse16),
    /// Sorted; for a shard of which no fuse filter could be made.
    Exact(Box<[u64]>),
}

impl IdFilter {
    /// Whether `id` may be in the set. `false` is certain.
    #[inline]
    pub fn may_contain(&self, id: &Id) -> bool {
        let key = key(id);
        match self.shards.get(shard_of(key, self.shard_bits)) {
            Some(Shard::Fuse(filter)) => filter.contains(&key),
            Some(Shard::Exact(keys)) => keys.binary_search(&key).is_ok(),
            Some(Shard::Empty) | None => false,
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        let contents = self.shards.iter().map(|shard| match shard {
            Shard::Empty => 0,
            Shard::Fuse(filter) => size_of_val(&*filter.fingerprints),
            Shard::Exact(keys) => size_of_val(&**keys),
        });
        contents.sum::<usize>() + size_of_val(&*self.shards)
    }

    /// The bytes to store; [`IdFilter::decode`] reads them.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes() + 8);
        bytes.extend(FORMAT.to_be_bytes());
        bytes.extend(self.shard_bits.to_be_bytes());
        for shard in &self.shards {
            match shard {
                Shard::Empty => bytes.push(0),
                Shard::Fuse(BinaryFuse16 { descriptor, fingerprints }) => {
                    bytes.push(1);
                    bytes.extend(descriptor.seed.to_be_bytes());
                    bytes.extend(descriptor.segment_length.to_be_bytes());
                    bytes.extend(descriptor.segment_count_length.to_be_bytes());
                    bytes.extend((fingerprints.len() as u64).to_be_bytes());
                    bytes.extend(fingerprints.iter().flat_map(|fingerprint| fingerprint.to_le_bytes()));
                }
                Shard::Exact(keys) => {
                    bytes.push(2);
                    bytes.extend((keys.len() as u64).to_be_bytes());
                    bytes.extend(keys.iter().flat_map(|key| key.to_be_bytes()));
                }
            }
        }
        bytes
    }

    /// Reads what [`IdFilter::encode`] wrote; `None` for anything else. The bytes come from a store with checksums of its own: what
    /// is checked here is that no look-up can go astray.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        if u32::from_be_bytes(input.take()?) != FORMAT {
            return None;
        }
        let shard_bits = u32::from_be_bytes(input.take()?);
        if shard_bits > MAX_SHARD_BITS {
            return None;
        }
        let shards = (0..1_u32 << shard_bits).map(|_| input.shard()).collect::<Option<_>>()?;
        input.0.is_empty().then_some(Self { shard_bits, shards })
    }
}

const FORMAT: u32 = 1;

/// What is left to be read.
struct Input<'b>(&'b [u8]);

impl<'b> Input<'b> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    /// `width` bytes for each of as many items as the next eight bytes say.
    fn items(&mut self, width: usize) -> Option<&'b [u8]> {
        let count = usize::try_from(u64::from_be_bytes(self.take()?)).ok()?;
        let (items, rest) = self.0.split_at_checked(count.checked_mul(width)?)?;
        self.0 = rest;
        Some(items)
    }

    fn shard(&mut self) -> Option<Shard> {
        match self.take::<1>()? {
            [0] => Some(Shard::Empty),
            [1] => self.fuse().map(Shard::Fuse),
            [2] => {
                let (keys, _) = self.items(8)?.as_chunks::<8>();
                Some(Shard::Exact(keys.iter().map(|key| u64::from_be_bytes(*key)).collect()))
            }
            _ => None,
        }
    }

    fn fuse(&mut self) -> Option<BinaryFuse16> {
        let seed = u64::from_be_bytes(self.take()?);
        let segment_length = u32::from_be_bytes(self.take()?);
        let segment_count_length = u32::from_be_bytes(self.take()?);
        let (fingerprints, _) = self.items(2)?.as_chunks::<2>();
        // A look-up reads within three neighbouring segments, the first of which begins within `segment_count_length`.
        let reach = u64::from(segment_count_length) + 2 * u64::from(segment_length);
        let sound = segment_length.is_power_of_two()
            && segment_count_length > 0
            && segment_count_length.is_multiple_of(segment_length)
            && reach <= fingerprints.len() as u64;
        sound.then(|| BinaryFuse16 {
            descriptor: Descriptor {
                seed,
                segment_length,
                segment_length_mask: segment_length - 1,
                segment_count_length,
            },
            fingerprints: fingerprints.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect(),
        })
    }
}

/// Builds an [`IdFilter`] and the digest of its ids from a sorted stream, of whatever length.
#[derive(Debug, Default)]
pub struct FilterBuilder {
    /// None until so many ids came that their number can be told from how far they reach.
    shard_bits: Option<u32>,
    shards: Vec<Shard>,
    /// Of the shard that is being filled: sorted, without duplicates.
    keys: Vec<u64>,
    last: Option<Id>,
    digest: SetDigest,
}

/// Ids of which one is not above the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ids must ascend")]
pub struct Unsorted;

impl FilterBuilder {
    /// Adds the next id; the same one twice in a row counts once.
    pub fn push(&mut self, id: &Id) -> Result<(), Unsorted> {
        match self.last {
            Some(last) if last == *id => return Ok(()),
            Some(last) if last > *id => return Err(Unsorted),
            _ => self.last = Some(*id),
        }
        self.digest.add_token(id);
        let key = key(id);
        if let Some(bits) = self.shard_bits {
            while self.shards.len() < shard_of(key, bits) {
                self.close_shard();
            }
        }
        if self.keys.last() != Some(&key) {
            self.keys.push(key);
        }
        // The ids are hashes and so lie evenly: the first shard ends where twice as many would end at most.
        if self.shard_bits.is_none() && self.keys.len() == SHARD_IDS {
            self.shard_bits = Some(key.leading_zeros().min(MAX_SHARD_BITS));
        }
        Ok(())
    }

    /// The filter, and the digest of what it was built from.
    pub fn finish(mut self) -> (IdFilter, SetDigest) {
        let shard_bits = self.shard_bits.unwrap_or(0);
        while self.shards.len() < 1 << shard_bits {
            self.close_shard();
        }
        (IdFilter { shard_bits, shards: self.shards.into() }, self.digest)
    }

    fn close_shard(&mut self) {
        let shard = if self.keys.is_empty() {
            Shard::Empty
        } else {
            match BinaryFuse16::try_from(&self.keys[..]) {
                Ok(filter) => Shard::Fuse(filter),
                Err(_) => Shard::Exact(self.keys.as_slice().into()),
            }
        };
        self.keys.clear();
        self.shards.push(shard);
    }
}

/// What stands for an id in a filter. Different ids with one key are one to the filter; a hit is confirmed by the whole id.
fn key(id: &Id) -> u64 {
    id.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn shard_of(key: u64, shard_bits: u32) -> usize {
    // At most 16 bits remain, and none where there is one shard.
    usize::try_from(key.checked_shr(64 - shard_bits).unwrap_or(0)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::IdKind;

    fn spread(number: u64) -> Id {
        Id::of(IdKind::Token, "https://issuer", &number.to_string())
    }

    fn built(mut ids: Vec<Id>) -> (IdFilter, SetDigest) {
        ids.sort_unstable();
        let mut builder = FilterBuilder::default();
        for id in &ids {
            builder.push(id).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn all_that_went_in_is_found_and_hardly_anything_else() {
        let ids: Vec<_> = (0..200_000).map(spread).collect();
        let (filter, digest) = built(ids.clone());
        assert!(ids.iter().all(|id| filter.may_contain(id)));
        let false_hits = (200_000..400_000).filter(|number| filter.may_contain(&spread(*number))).count();
        assert!(false_hits < 30, "{false_hits} of 200,000");
        assert_eq!(digest, SetDigest::of_tokens(&ids));
        assert!(filter.bytes() < 200_000 * 5 / 2, "{} bytes", filter.bytes());
    }

    #[test]
    fn ids_that_do_not_lie_evenly_are_found() {
        // Many with small keys, and then some that share one.
        let small = |number: u64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            Id::from_bytes(bytes)
        };
        let same_key = |number: u64| {
            let mut bytes = [0xff; 16];
            bytes[8..].copy_from_slice(&number.to_be_bytes());
            Id::from_bytes(bytes)
        };
        let ids: Vec<_> = (0..70_000).map(small).chain((0..200).map(same_key)).collect();
        let (filter, digest) = built(ids.clone());
        assert!(ids.iter().all(|id| filter.may_contain(id)));
        assert_eq!(digest.count(), 70_200);
        assert!(!filter.may_contain(&Id::from_bytes([0x7f; 16])));
    }

    #[test]
    fn descending_ids_are_refused() {
        let mut builder = FilterBuilder::default();
        builder.push(&Id::from_bytes([2; 16])).unwrap();
        builder.push(&Id::from_bytes([2; 16])).unwrap();
        assert_eq!(builder.push(&Id::from_bytes([1; 16])), Err(Unsorted));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_stored_filter_answers_as_before(numbers in prop::collection::btree_set(0..5_000_u64, 0..300)) {
            let ids: Vec<_> = numbers.iter().copied().map(spread).collect();
            let (filter, _) = built(ids.clone());
            let read = IdFilter::decode(&filter.encode()).unwrap();
            for number in 0..5_000 {
                prop_assert_eq!(read.may_contain(&spread(number)), filter.may_contain(&spread(number)));
            }
            prop_assert!(ids.iter().all(|id| read.may_contain(id)));
        }

        #[test]
        fn noise_is_no_filter_or_one_that_can_be_asked(
            numbers in prop::collection::btree_set(0..5_000_u64, 1..50),
            at: prop::sample::Index,
            flip in 1..=u8::MAX,
            cut: prop::sample::Index,
        ) {
            let (filter, _) = built(numbers.iter().copied().map(spread).collect());
            let bytes = filter.encode();
            prop_assert!(IdFilter::decode(&bytes[..cut.index(bytes.len())]).is_none());
            let mut flipped = bytes;
            let at = at.index(flipped.len());
            flipped[at] ^= flip;
            if let Some(read) = IdFilter::decode(&flipped) {
                let _ = (0..1_000).filter(|number| read.may_contain(&spread(*number))).count();
            }
        }
    }
}
