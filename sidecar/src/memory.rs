//! What the sidecar remembers between requests: verified signatures, what opaque credentials stand for, used DPoP proofs. Each
//! is bounded, and none of it decides: times, revocation, binding and policy are judged again at each request.

use std::sync::Arc;

use atm_core::binding::{NonceKey, VerifiedProof};
use atm_core::decision::{self, CredentialDigest, Known, ProofUse};
use atm_core::time::UnixMillis;
use atm_core::token::AuthenticToken;

mod counts;
mod introspected;
mod proofs;
mod verified;

pub use counts::CacheCounts;
pub use introspected::{Introspected, IntrospectionCache};
pub use proofs::UsedProofs;
pub use verified::VerifiedTokenCache;

/// All of it.
#[derive(Debug)]
pub struct Memory {
    /// Tokens whose signature was verified.
    pub verified: VerifiedTokenCache,
    /// What opaque credentials stand for.
    pub introspected: IntrospectionCache,
    /// DPoP proofs that were used.
    pub proofs: UsedProofs,
    nonces: NonceKey,
}

/// How much may be remembered.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of verified tokens.
    pub verified_bytes: u64,
    /// Bytes of introspected credentials.
    pub introspected_bytes: u64,
    /// DPoP proofs.
    pub proofs: usize,
}

impl Memory {
    /// An empty memory. Nonces are made with `nonces`: sidecars that have the same key take each other's.
    pub fn new(limits: Limits, nonces: NonceKey) -> Self {
        Self {
            verified: VerifiedTokenCache::new(limits.verified_bytes),
            introspected: IntrospectionCache::new(limits.introspected_bytes),
            proofs: UsedProofs::new(limits.proofs),
            nonces,
        }
    }
}

impl decision::Memory for Memory {
    fn verified(&self, token: &str, key_generation: u64) -> Option<Arc<AuthenticToken>> {
        self.verified.get(token, key_generation)
    }

    fn keep_verified(&self, token: &str, key_generation: u64, verified: Arc<AuthenticToken>) {
        self.verified.insert(token, key_generation, verified);
    }

    fn introspected(&self, digest: &CredentialDigest, now: UnixMillis) -> Known {
        self.introspected.get(digest, now)
    }

    fn first_use(&self, proof: &VerifiedProof, now: UnixMillis) -> ProofUse {
        self.proofs.first_use(proof.replay_id(), proof.expires_at(), now)
    }

    fn nonce_key(&self) -> Option<&NonceKey> {
        Some(&self.nonces)
    }
}

/// The memory as one look at a request has it.
#[derive(Debug)]
pub(crate) struct Look<'m> {
    /// What is remembered.
    pub(crate) memory: &'m Memory,
    /// Whether a signature may be verified.
    pub(crate) may_verify: bool,
    /// What was asked for during this request: the credential, and what came of it.
    pub(crate) answer: Option<(CredentialDigest, Known)>,
}

impl decision::Memory for Look<'_> {
    fn verified(&self, token: &str, key_generation: u64) -> Option<Arc<AuthenticToken>> {
        self.memory.verified(token, key_generation)
    }

    fn keep_verified(&self, token: &str, key_generation: u64, verified: Arc<AuthenticToken>) {
        self.memory.keep_verified(token, key_generation, verified);
    }

    fn may_verify(&self) -> bool {
        self.may_verify
    }

    fn introspected(&self, digest: &CredentialDigest, now: UnixMillis) -> Known {
        match &self.answer {
            Some((asked, answer)) if asked == digest => answer.clone(),
            _ => self.memory.introspected(digest, now),
        }
    }

    fn first_use(&self, proof: &VerifiedProof, now: UnixMillis) -> ProofUse {
        self.memory.first_use(proof, now)
    }

    fn nonce_key(&self) -> Option<&NonceKey> {
        self.memory.nonce_key()
    }
}
