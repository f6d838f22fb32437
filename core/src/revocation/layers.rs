//! A sorted set that is cheap to clone and to add to: immutable layers, each several times the size of the next, and a
//! small front (the logarithmic method of Bentley and Saxe, 1980). Each part has a sieve before it, so that looking for what
//! is not there mostly reads one word a part.

use std::sync::Arc;

use crate::id::Id;
use crate::time::UnixMillis;

/// Entries in the front at most: it is copied by the first addition after a clone.
const FRONT: usize = 256;
/// A layer is merged into the one below it unless that is at least so many times as large.
const RATIO: usize = 4;

/// What a layer holds: one entry an id.
pub(super) trait Entry: Copy {
    fn id(&self) -> &Id;
    /// Of two entries for one id, the one that counts.
    fn prevailing(self, other: Self) -> Self;
    /// Whether `self` says no more than `known`.
    fn is_covered_by(&self, known: &Self) -> bool;
}

impl Entry for Id {
    fn id(&self) -> &Id {
        self
    }

    fn prevailing(self, _other: Self) -> Self {
        self
    }

    fn is_covered_by(&self, _known: &Self) -> bool {
        true
    }
}

/// Everything of the scope `id` issued up to `instant` is revoked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watermark {
    pub(super) id: Id,
    pub(super) instant: UnixMillis,
}

impl Entry for Watermark {
    fn id(&self) -> &Id {
        &self.id
    }

    fn prevailing(self, other: Self) -> Self {
        if other.instant > self.instant { other } else { self }
    }

    fn is_covered_by(&self, known: &Self) -> bool {
        self.instant <= known.instant
    }
}

#[derive(Debug, Clone)]
pub(super) struct Layers<E> {
    front: Run<Vec<E>>,
    /// The largest first. An id may be in several only where entries supersede.
    settled: Vec<Run<Arc<[E]>>>,
    /// Distinct ids.
    len: usize,
}

/// Entries sorted by id, without duplicates, and the sieve over them.
#[derive(Debug, Clone, Default)]
struct Run<S> {
    sieve: Sieve,
    entries: S,
}

impl<E> Default for Layers<E> {
    fn default() -> Self {
        Self { front: Run { sieve: Sieve::default(), entries: Vec::new() }, settled: Vec::new(), len: 0 }
    }
}

impl<E: Entry> Layers<E> {
    /// How many distinct ids there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The prevailing entry of `id`.
    #[inline]
    pub(super) fn get(&self, id: &Id) -> Option<E> {
        if self.len == 0 {
            return None;
        }
        let in_front = self.front.sieve.may_contain(id).then(|| search(&self.front.entries, id)).flatten();
        let layers = self.settled.iter().filter(|layer| layer.sieve.may_contain(id));
        layers.filter_map(|layer| search(&layer.entries, id)).chain(in_front).reduce(E::prevailing)
    }

    /// Every entry, in no order; superseded ones among them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &E> {
        self.settled.iter().flat_map(|layer| layer.entries.iter()).chain(&self.front.entries)
    }

    /// Adds entries, in any order; what is covered already is left out. Gives those that were added.
    pub(super) fn extend(&mut self, entries: impl IntoIterator<Item = E>) -> Vec<E> {
        let mut fresh = Vec::from_iter(entries);
        fresh.sort_unstable_by(|a, b| a.id().cmp(b.id()));
        fresh.dedup_by(|later, kept| {
            let same = later.id() == kept.id();
            if same {
                *kept = kept.prevailing(*later);
            }
            same
        });
        let mut known_ids = 0;
        fresh.retain(|entry| match self.get(entry.id()) {
            Some(known) if entry.is_covered_by(&known) => false,
            known => {
                known_ids += usize::from(known.is_some());
                true
            }
        });
        if fresh.is_empty() {
            return fresh;
        }
        self.len += fresh.len() - known_ids;
        let front = merge(&self.front.entries, &fresh);
        if front.len() > FRONT {
            self.front = Run { sieve: Sieve::default(), entries: Vec::new() };
            self.push_layer(front);
        } else {
            self.front = Run { sieve: Sieve::over(&front), entries: front };
        }
        fresh
    }

    /// Bytes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let layers = self.settled.iter().map(|layer| size_of_val(&*layer.entries) + layer.sieve.bytes());
        layers.sum::<usize>() + self.front.entries.capacity() * size_of::<E>() + self.front.sieve.bytes()
    }

    /// Adds a layer, and merges upwards until every layer is [`RATIO`] times the next.
    fn push_layer(&mut self, mut top: Vec<E>) {
        while let Some(below) =
            self.settled.pop_if(|below| below.entries.len() < top.len().saturating_mul(RATIO))
        {
            top = merge(&below.entries, &top);
        }
        self.settled.push(Run { sieve: Sieve::over(&top), entries: top.into() });
    }
}

/// Says of an id that it is not in a run, or that it may be: a Bloom filter that sets four bits of one word (Putze, Sanders and
/// Singler, 2007), with a word for four ids.
#[derive(Debug, Clone, Default)]
struct Sieve(Arc<[u64]>);

impl Sieve {
    fn over<E: Entry>(entries: &[E]) -> Self {
        let mut words = vec![0; entries.len().div_ceil(4)];
        for entry in entries {
            let (at, bits) = Self::place(entry.id(), words.len());
            words[at] |= bits;
        }
        Self(words.into())
    }

    #[inline]
    fn may_contain(&self, id: &Id) -> bool {
        let (at, bits) = Self::place(id, self.0.len());
        self.0.get(at).is_some_and(|word| word & bits == bits)
    }

    /// The word of an id and its bits in it, by its last eight bytes: a layer is sorted by the first.
    #[inline]
    fn place(id: &Id, words: usize) -> (usize, u64) {
        let hash = id.as_bytes().last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let bits = (0..4).fold(0, |bits, turn| bits | 1_u64 << (hash >> (6 * turn) & 63));
        (scaled(hash, words), bits)
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

/// The union of two sorted runs.
fn merge<E: Entry>(left: &[E], right: &[E]) -> Vec<E> {
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.iter().copied().peekable(), right.iter().copied().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        match a.id().cmp(b.id()) {
            std::cmp::Ordering::Less => merged.extend(left.next()),
            std::cmp::Ordering::Greater => merged.extend(right.next()),
            std::cmp::Ordering::Equal => {
                merged.push(a.prevailing(*b));
                left.next();
                right.next();
            }
        }
    }
    merged.extend(left);
    merged.extend(right);
    merged
}

/// Finds `id` in a sorted layer. Ids are hashes and so lie evenly: the search starts where the id would be expected and
/// widens by doubling, which touches two or three cache lines instead of twenty. Uneven ids only cost more steps.
fn search<E: Entry>(layer: &[E], id: &Id) -> Option<E> {
    let [first, .., last] = layer else {
        return layer.first().filter(|entry| entry.id() == id).copied();
    };
    if id < first.id() || id > last.id() {
        return None;
    }
    let guess = expected_position(id, layer.len());
    let mut reach = 8;
    let (mut low, mut high) = (guess.saturating_sub(reach), (guess + reach).min(layer.len() - 1));
    while id < layer[low].id() {
        reach *= 2;
        low = low.saturating_sub(reach);
    }
    while id > layer[high].id() {
        reach *= 2;
        high = (high + reach).min(layer.len() - 1);
    }
    layer[low..=high].binary_search_by(|entry| entry.id().cmp(id)).ok().map(|at| layer[low + at])
}

/// Where the id would lie among `len` evenly spread ones.
fn expected_position(id: &Id, len: usize) -> usize {
    scaled(id.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)), len)
}

/// `fraction` of 2^64, as the same fraction of `len`; below it.
fn scaled(fraction: u64, len: usize) -> usize {
    // The product shifted by 64 bits is below `len`, so it fits.
    usize::try_from((u128::from(fraction) * len as u128) >> 64).unwrap_or(0)
}
