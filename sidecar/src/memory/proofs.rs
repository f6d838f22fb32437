//! DPoP proofs that were used here (RFC 9449 §11.1). The scope is this process: another sidecar does not know of them, and a
//! restart forgets them. A nonce, which only the sidecars with one key take, closes both where a rule asks for it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use atm_core::decision::ProofUse;
use atm_core::time::UnixMillis;
use std::collections::HashSet;

/// Locks beside each other, so that threads seldom wait for one.
const SHARDS: usize = 16;

/// Names of proofs, each until its proof would be too old anyway. Full means refuse: forgetting one early would let it be used
/// twice.
#[derive(Debug)]
pub struct UsedProofs {
    shards: Vec<Mutex<Shard>>,
    /// Names in one shard at most.
    bound: usize,
}

#[derive(Debug, Default)]
struct Shard {
    names: HashSet<[u8; 16], foldhash::quality::RandomState>,
    /// In the order of use, which is nearly that of their ends.
    ends: VecDeque<(UnixMillis, [u8; 16])>,
}

impl UsedProofs {
    /// Room for `bound` proofs.
    pub fn new(bound: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, bound: bound.div_ceil(SHARDS).max(1) }
    }

    /// Notes the use of a proof until `until`.
    pub fn first_use(&self, name: [u8; 16], until: UnixMillis, now: UnixMillis) -> ProofUse {
        // A lock that a panic left behind guards a set that is whole: every change is one insertion or removal.
        let mut shard =
            self.shards[usize::from(name[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((end, old)) = shard.ends.front().copied() {
            if end >= now {
                break;
            }
            shard.ends.pop_front();
            shard.names.remove(&old);
        }
        if shard.names.contains(&name) {
            return ProofUse::Again;
        }
        if shard.names.len() >= self.bound {
            return ProofUse::Full;
        }
        shard.names.insert(name);
        shard.ends.push_back((until, name));
        ProofUse::First
    }

    /// Proofs that are remembered now.
    pub fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).names.len();
        self.shards.iter().map(len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u8) -> [u8; 16] {
        [number; 16]
    }

    #[test]
    fn a_proof_is_used_once_until_it_has_ended() {
        let used = UsedProofs::new(64);
        let at = UnixMillis;
        assert_eq!(used.first_use(name(1), at(100), at(0)), ProofUse::First);
        assert_eq!(used.first_use(name(1), at(100), at(100)), ProofUse::Again);
        assert_eq!(used.first_use(name(2), at(150), at(100)), ProofUse::First);
        // What has ended is forgotten by the next use in its shard; its proof is too old by itself then.
        assert_eq!(used.first_use(name(17), at(200), at(101)), ProofUse::First);
        assert_eq!(used.len(), 2);
    }

    #[test]
    fn full_means_refuse_until_one_has_ended() {
        let used = UsedProofs::new(SHARDS);
        let at = UnixMillis;
        assert_eq!(used.first_use(name(1), at(100), at(0)), ProofUse::First);
        assert_eq!(used.first_use(name(17), at(100), at(0)), ProofUse::Full);
        assert_eq!(used.first_use(name(1), at(100), at(0)), ProofUse::Again);
        assert_eq!(used.first_use(name(17), at(201), at(101)), ProofUse::First);
    }
}
