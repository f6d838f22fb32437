//! Segments: the events of one group commit, as one row of the store.
//!
//! A row a token would be what stops a store; a row a group is not. The row keeps the events' exact bytes, a line each, and a
//! sorted list of 4-byte hashes of what they refer to, so that one token's events are found without reading all.

use std::hash::Hasher;

use atm_proto::audit::{Link, Place};
use siphasher::sip::SipHasher13;

use super::event::REFERENCES;
use crate::store::audit::StoredSegment;

/// Bytes of events in one segment at most: one exported page, and one message of the stream.
pub(super) const MAX_BYTES: usize = 256 * 1024;
/// Events of one segment at most.
pub(super) const MAX_EVENTS: usize = 1_024;

/// The hash by which a reference is found.
pub(super) fn reference(name: &str, value: &str) -> u32 {
    let mut hasher = SipHasher13::new_with_keys(0x61_74_6d, 0x61_75_64_69_74);
    hasher.write(name.as_bytes());
    hasher.write_u8(0);
    hasher.write(value.as_bytes());
    // The lower half; another event with the same one costs a look.
    u32::try_from(hasher.finish() & u64::from(u32::MAX)).unwrap_or_default()
}

/// A segment in the making.
#[derive(Debug)]
pub(super) struct Builder {
    previous: Link,
    link: Link,
    first: u64,
    next: u64,
    events: Vec<u8>,
    references: Vec<u32>,
    times: Option<(i64, i64)>,
}

impl Builder {
    /// A segment behind the event `last`, whose link is `link`.
    pub(super) fn behind(last: u64, link: Link) -> Self {
        Self {
            previous: link,
            link,
            first: last + 1,
            next: last + 1,
            events: Vec::new(),
            references: Vec::new(),
            times: None,
        }
    }

    /// The number of the event to come.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether no more fits in.
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= MAX_BYTES || self.next - self.first >= MAX_EVENTS as u64
    }

    /// Takes the next event's record and what it is found by.
    pub(super) fn add(&mut self, record: &str, time_ms: i64, references: impl Iterator<Item = u32>) {
        self.link = self.link.then(self.next, record.as_bytes());
        self.next += 1;
        self.events.extend_from_slice(record.as_bytes());
        self.events.push(b'\n');
        self.references.extend(references);
        let (first, last) = self.times.unwrap_or((time_ms, time_ms));
        self.times = Some((first.min(time_ms), last.max(time_ms)));
    }

    /// The row; none where there is nothing in it.
    pub(super) fn build(mut self, chain: &str) -> Option<StoredSegment> {
        let (first_ms, last_ms) = self.times?;
        self.references.sort_unstable();
        self.references.dedup();
        Some(StoredSegment {
            chain: chain.to_owned(),
            first: self.first,
            last: self.next - 1,
            first_ms,
            last_ms,
            previous: self.previous,
            link: self.link,
            references: self.references.iter().flat_map(|hash| hash.to_be_bytes()).collect(),
            events: self.events,
        })
    }
}

impl StoredSegment {
    /// The events' records, in order.
    pub(super) fn records(&self) -> impl Iterator<Item = &str> {
        let text = std::str::from_utf8(&self.events).unwrap_or_default();
        text.split_terminator('\n')
    }

    /// What is not as the writer made it: a row that was changed by another hand. None: in order.
    pub(super) fn problem(&self) -> Option<String> {
        let mut builder = Builder::behind(self.first.saturating_sub(1), self.previous);
        for record in self.records() {
            let Ok(place) = Place::of(record) else {
                return Some("holds an event that cannot be read".to_owned());
            };
            if place.chain != self.chain || place.seq != builder.next() {
                return Some(format!("holds event {} of chain {}", place.seq, place.chain));
            }
            builder.add(record, place.time_ms, references_of(record).into_iter());
        }
        match builder.build(&self.chain) {
            None => Some("holds nothing".to_owned()),
            Some(again) if again == *self => None,
            Some(again) if again.link != self.link => Some("holds events that were changed".to_owned()),
            Some(_) => Some("has columns that do not fit its events".to_owned()),
        }
    }
}

/// Whether an event with this reference may be in the segment with these hashes.
pub(super) fn may_hold(references: &[u8], reference: u32) -> bool {
    let (hashes, _) = references.as_chunks::<4>();
    hashes.binary_search(&reference.to_be_bytes()).is_ok()
}

/// What a written record is found by.
fn references_of(record: &str) -> Vec<u32> {
    let record: serde_json::Value = serde_json::from_str(record).unwrap_or_default();
    REFERENCES.into_iter().filter_map(|name| Some(reference(name, record.get(name)?.as_str()?))).collect()
}
