//! Whom this sidecar believes: the feed keys of its configuration, and those to which the trust was handed over since.
//!
//! A rotation is signed by a key that is trusted when it comes, and names all that are trusted from then on. The signed
//! rotations are kept in a file beside the store and verified again, in order, at every start: the file adds no trust of
//! its own, and outlives a store that is rebuilt.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use atm_proto::change::DecodeError;
use atm_proto::rotation::Rotation;
use atm_proto::signature::{Domain, SignatureError, TrustedFeedKeys};

/// The feed keys that are believed now; clones share them.
#[derive(Debug, Clone)]
pub struct FeedTrust(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    realm_group: String,
    current: ArcSwap<Current>,
    /// Accepted rotations, as they came.
    chain: Mutex<Vec<Vec<u8>>>,
    file: Option<PathBuf>,
}

#[derive(Debug)]
struct Current {
    /// The last accepted rotation; 0 before the first.
    number: u64,
    keys: TrustedFeedKeys,
}

/// Why a rotation was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Not signed by a key that is trusted.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Signed, and not understood.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// An older one, or one of another log.
    #[error("is {0}")]
    Refused(&'static str),
    /// It counts, and would be forgotten by a restart.
    #[error("feed keys cannot be kept in {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl FeedTrust {
    /// Trusts `pinned`, and what the rotations kept in `file` make of it. What is in the file and does not follow from `pinned`
    /// counts for nothing: whoever pins other keys begins anew.
    pub fn open(realm_group: &str, pinned: TrustedFeedKeys, file: Option<PathBuf>) -> Self {
        let kept = file.as_deref().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        let trust = Self(Arc::new(Shared {
            realm_group: realm_group.to_owned(),
            current: ArcSwap::from_pointee(Current { number: 0, keys: pinned }),
            chain: Mutex::default(),
            file,
        }));
        for line in kept.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let accepted = hex::decode(line).is_ok_and(|signed| trust.accept(&signed).is_ok());
            if !accepted {
                tracing::warn!(
                    "a kept rotation of feed keys does not follow from the pinned keys; passed over"
                );
            }
        }
        trust
    }

    /// The payload of a signed message, if a trusted key signed exactly these bytes for `domain`.
    pub fn verify(&self, domain: Domain, signed: &[u8]) -> Result<Vec<u8>, SignatureError> {
        self.0.current.load().keys.verify(domain, signed)
    }

    /// The last accepted rotation; 0 before the first.
    pub fn number(&self) -> u64 {
        self.0.current.load().number
    }

    /// The keys that are trusted now.
    pub fn keys(&self) -> TrustedFeedKeys {
        self.0.current.load().keys.clone()
    }

    /// Takes a signed rotation: from here on only the keys that it names are trusted.
    pub fn rotate(&self, signed: &[u8]) -> Result<u64, RotationError> {
        let number = self.accept(signed)?;
        self.keep()?;
        Ok(number)
    }

    fn accept(&self, signed: &[u8]) -> Result<u64, RotationError> {
        // The lock orders those who rotate; who verifies takes none.
        let mut chain = self.0.chain.lock().unwrap_or_else(PoisonError::into_inner);
        let rotation = Rotation::decode(&self.verify(Domain::Rotation, signed)?)?;
        if rotation.realm_group != self.0.realm_group {
            return Err(RotationError::Refused("of another realm group"));
        }
        if rotation.number <= self.number() {
            return Err(RotationError::Refused("no newer than the last one"));
        }
        let keys = TrustedFeedKeys::new(rotation.trusted);
        self.0.current.store(Arc::new(Current { number: rotation.number, keys }));
        chain.push(signed.to_vec());
        Ok(rotation.number)
    }

    /// Written beside and renamed: whoever starts next reads it whole.
    fn keep(&self) -> Result<(), RotationError> {
        let Some(path) = &self.0.file else { return Ok(()) };
        let chain = self.0.chain.lock().unwrap_or_else(PoisonError::into_inner);
        let text: String = chain.iter().map(|signed| hex::encode(signed) + "\n").collect();
        let write = || {
            let beside = path.with_extension("feedkeys-part");
            let mut file = std::fs::File::create(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, path)
        };
        write().map_err(|source| RotationError::File { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use atm_core::time::UnixMillis;
    use atm_proto::signature::FeedSigner;

    use super::*;

    fn signer(seed: u8) -> FeedSigner {
        FeedSigner::from_seed(&[seed; 32]).unwrap()
    }

    fn rotation(by: u8, number: u64, trusted: &[u8]) -> Vec<u8> {
        let rotation = Rotation {
            realm_group: "default".into(),
            number,
            time: UnixMillis(0),
            trusted: trusted.iter().map(|seed| *signer(*seed).public_key()).collect(),
        };
        signer(by).sign(Domain::Rotation, &rotation.encode())
    }

    fn pinned(seeds: &[u8]) -> TrustedFeedKeys {
        TrustedFeedKeys::new(seeds.iter().map(|seed| *signer(*seed).public_key()).collect())
    }

    fn believes(trust: &FeedTrust, seed: u8) -> bool {
        trust.verify(Domain::Heartbeat, &signer(seed).sign(Domain::Heartbeat, b"x")).is_ok()
    }

    #[test]
    fn trust_is_handed_over_kept_and_taken_from_the_old_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("db.feedkeys");
        let trust = FeedTrust::open("default", pinned(&[1]), Some(file.clone()));
        assert!(believes(&trust, 1) && !believes(&trust, 2));
        assert_eq!(trust.rotate(&rotation(1, 1, &[1, 2])).unwrap(), 1);
        assert!(believes(&trust, 1) && believes(&trust, 2));
        assert_eq!(trust.rotate(&rotation(2, 2, &[2])).unwrap(), 2);
        assert!(!believes(&trust, 1) && believes(&trust, 2));
        let again = FeedTrust::open("default", pinned(&[1]), Some(file.clone()));
        assert_eq!(again.number(), 2);
        assert!(!believes(&again, 1) && believes(&again, 2), "the old key stays out after a restart");
        let other = FeedTrust::open("default", pinned(&[3]), Some(file));
        assert!(believes(&other, 3) && !believes(&other, 2), "the file alone makes nobody trusted");
    }

    #[test]
    fn only_a_trusted_key_hands_over_and_never_backwards() {
        let trust = FeedTrust::open("default", pinned(&[1]), None);
        assert!(matches!(trust.rotate(&rotation(2, 1, &[2])), Err(RotationError::Signature(_))));
        trust.rotate(&rotation(1, 5, &[1, 2])).unwrap();
        assert!(matches!(trust.rotate(&rotation(1, 5, &[1])), Err(RotationError::Refused(_))));
        assert!(matches!(trust.rotate(&rotation(1, 4, &[1])), Err(RotationError::Refused(_))));
        let heartbeat = signer(1).sign(Domain::Heartbeat, &[]);
        assert!(matches!(trust.rotate(&heartbeat), Err(RotationError::Signature(_))));
        let elsewhere = FeedTrust::open("other", pinned(&[1]), None);
        assert!(matches!(elsewhere.rotate(&rotation(1, 6, &[1])), Err(RotationError::Refused(_))));
        trust.rotate(&rotation(2, 6, &[2])).unwrap();
        assert!(matches!(trust.rotate(&rotation(1, 7, &[1])), Err(RotationError::Signature(_))));
    }
}
