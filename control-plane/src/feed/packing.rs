//! Packs unsequenced changes into as few, bounded change sets as possible.

use std::collections::{BTreeMap, BTreeSet};

use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_proto::change::Change;

use crate::store::outbox::Unsequenced;

/// Bytes of changes in one set. With its envelope a set stays below what a resync reply carries (512 KiB).
const MAX_BYTES: usize = 480 * 1024;

/// The changes of one set, and the outbox rows that they stand for.
#[derive(Debug, Default)]
pub(super) struct Pack {
    pub(super) ids: Vec<String>,
    pub(super) changes: Vec<Change>,
}

/// Splits `rows` in order; within a pack, changes that merge are merged.
pub(super) fn pack(rows: Vec<Unsequenced>) -> Vec<Pack> {
    let mut packs: Vec<Pack> = Vec::new();
    let mut bytes = usize::MAX;
    for row in rows {
        if bytes.saturating_add(row.size) > MAX_BYTES {
            packs.push(Pack::default());
            bytes = 0;
        }
        bytes += row.size;
        if let Some(pack) = packs.last_mut() {
            pack.ids.push(row.id);
            pack.changes.push(row.change);
        }
    }
    for pack in &mut packs {
        pack.changes = merge(std::mem::take(&mut pack.changes));
    }
    packs
}

/// Revocations commute, so they are united; of what replaces as a whole, the last one counts.
fn merge(changes: Vec<Change>) -> Vec<Change> {
    let mut tokens: BTreeMap<u32, BTreeSet<Id>> = BTreeMap::new();
    let mut watermarks: BTreeMap<u8, (IdKind, BTreeMap<Id, UnixMillis>)> = BTreeMap::new();
    let mut issuers: BTreeMap<String, Change> = BTreeMap::new();
    let mut policies = None;
    for change in changes {
        match change {
            Change::RevokedTokens { bucket, ids } => tokens.entry(bucket.0).or_default().extend(ids),
            Change::Watermarks { kind, entries } => {
                let (_, merged) = watermarks.entry(kind as u8).or_insert_with(|| (kind, BTreeMap::new()));
                for (id, instant) in entries {
                    let highest = merged.entry(id).or_insert(instant);
                    *highest = (*highest).max(instant);
                }
            }
            Change::IssuerKeys { ref issuer, .. } => {
                issuers.insert(issuer.clone(), change);
            }
            Change::Policies { .. } => policies = Some(change),
        }
    }
    let tokens = tokens.into_iter().map(|(bucket, ids)| Change::RevokedTokens {
        bucket: Bucket(bucket),
        ids: ids.into_iter().collect(),
    });
    let watermarks = watermarks
        .into_values()
        .map(|(kind, entries)| Change::Watermarks { kind, entries: entries.into_iter().collect() });
    issuers.into_values().chain(policies).chain(watermarks).chain(tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(change: Change, size: usize) -> Unsequenced {
        Unsequenced { id: size.to_string(), change, size }
    }

    fn id(byte: u8) -> Id {
        Id::from_bytes([byte; 16])
    }

    #[test]
    fn revocations_are_united_sorted_and_take_the_highest_instant() {
        let tokens = |bytes: &[u8]| Change::RevokedTokens {
            bucket: Bucket(7),
            ids: bytes.iter().map(|byte| id(*byte)).collect(),
        };
        let mark = |at| Change::Watermarks { kind: IdKind::Client, entries: vec![(id(1), UnixMillis(at))] };
        let rows = vec![row(tokens(&[3]), 1), row(mark(9), 1), row(tokens(&[1, 3]), 1), row(mark(5), 1)];
        let packs = pack(rows);
        assert_eq!(packs.len(), 1);
        assert_eq!(packs[0].ids.len(), 4);
        let [Change::Watermarks { entries, .. }, Change::RevokedTokens { ids, .. }] = &packs[0].changes[..]
        else {
            panic!("{:?}", packs[0].changes);
        };
        assert_eq!(entries[..], [(id(1), UnixMillis(9))]);
        assert_eq!(ids[..], [id(1), id(3)]);
    }

    #[test]
    fn of_policy_sets_the_last_one_counts_and_large_rows_split() {
        let policies = |version| Change::Policies { version, documents: vec![] };
        let packs = pack(vec![row(policies(1), 10), row(policies(2), 10)]);
        assert!(matches!(packs[0].changes[..], [Change::Policies { version: 2, .. }]));
        let packs = pack(vec![row(policies(1), 300 * 1024), row(policies(2), 300 * 1024)]);
        assert_eq!(packs.len(), 2);
        assert!(pack(vec![]).is_empty());
    }
}
