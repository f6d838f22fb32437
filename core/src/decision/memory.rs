//! What a validator remembers between requests, lent to the decision.

use std::sync::Arc;

use super::CredentialDigest;
use crate::binding::{NonceKey, VerifiedProof};
use crate::reason::Reason;
use crate::time::UnixMillis;
use crate::token::AuthenticToken;

/// What is known of an opaque credential.
#[derive(Debug, Clone)]
pub enum Known {
    /// Nothing: the control plane is to be asked.
    Unknown,
    /// The control plane said, a short while ago, that it is none of its own or no longer valid.
    Inactive,
    /// What it stands for, and when that was learnt, by the own clock.
    Active(Arc<AuthenticToken>, UnixMillis),
    /// The control plane was asked for this request, and did not answer.
    Failed(Reason),
}

/// Whether a proof of possession may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofUse {
    /// It was never seen here, and is remembered from now on.
    First,
    /// It was used before.
    Again,
    /// No more can be remembered.
    Full,
}

/// What a validator remembers between requests. Everything has a default that remembers nothing.
pub trait Memory {
    /// The verified form of exactly this token, if it was verified at this key generation.
    fn verified(&self, token: &str, key_generation: u64) -> Option<Arc<AuthenticToken>> {
        let _ = (token, key_generation);
        None
    }

    /// Keeps a token that was verified at this key generation; or does not. It saves the signature the next time and nothing
    /// else: times, revocation, binding and policy are judged at each request.
    fn keep_verified(&self, token: &str, key_generation: u64, verified: Arc<AuthenticToken>) {
        let _ = (token, key_generation, verified);
    }

    /// Whether signatures may be verified now. Where not, the verdict on a token that is not known is
    /// [`Verdict::Verify`](super::Verdict::Verify).
    fn may_verify(&self) -> bool {
        true
    }

    /// What the control plane said of an opaque credential.
    fn introspected(&self, digest: &CredentialDigest, now: UnixMillis) -> Known {
        let _ = (digest, now);
        Known::Unknown
    }

    /// Notes the use of a DPoP proof. What remembers nothing takes none.
    fn first_use(&self, proof: &VerifiedProof, now: UnixMillis) -> ProofUse {
        let _ = (proof, now);
        ProofUse::Full
    }

    /// What nonces are made with, where rules may ask for them.
    fn nonce_key(&self) -> Option<&NonceKey> {
        None
    }
}

/// Remembers nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMemory;

impl Memory for NoMemory {}

/// Remembers what another one does, and notes nothing: for decisions that do not count.
pub(super) struct Unrecorded<'m, M>(pub(super) &'m M);

impl<M: Memory> Memory for Unrecorded<'_, M> {
    fn verified(&self, token: &str, key_generation: u64) -> Option<Arc<AuthenticToken>> {
        self.0.verified(token, key_generation)
    }

    fn introspected(&self, digest: &CredentialDigest, now: UnixMillis) -> Known {
        self.0.introspected(digest, now)
    }

    fn first_use(&self, _proof: &VerifiedProof, _now: UnixMillis) -> ProofUse {
        ProofUse::First
    }

    fn nonce_key(&self) -> Option<&NonceKey> {
        self.0.nonce_key()
    }
}
