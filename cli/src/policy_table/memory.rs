//! What a sidecar would remember when the request of a test comes.

use std::sync::Arc;

use atm_core::binding::{NonceKey, VerifiedProof};
use atm_core::decision::{AuthenticToken, CredentialDigest, Known, Memory, ProofUse};
use atm_core::time::UnixMillis;

/// Knows the one opaque credential of a test, takes each proof once, and hands out nonces.
pub(super) struct TableMemory {
    introspected: Option<(CredentialDigest, Arc<AuthenticToken>)>,
    nonces: NonceKey,
    proofs_were_used: bool,
}

impl Default for TableMemory {
    fn default() -> Self {
        // Nobody has to guess these nonces: they live as long as one test.
        Self { introspected: None, nonces: NonceKey::new(&[7; 32]), proofs_were_used: false }
    }
}

impl TableMemory {
    /// The control plane said of this credential that it is this token.
    pub(super) fn know(&mut self, digest: CredentialDigest, token: AuthenticToken) {
        self.introspected = Some((digest, Arc::new(token)));
    }

    /// Every proof was seen before.
    pub(super) fn refuse_proofs(&mut self) {
        self.proofs_were_used = true;
    }

    /// A nonce that is taken.
    pub(super) fn nonce(&self, now: UnixMillis) -> String {
        self.nonces.issue(now)
    }
}

impl Memory for TableMemory {
    fn introspected(&self, digest: &CredentialDigest, now: UnixMillis) -> Known {
        match &self.introspected {
            Some((known, token)) if known == digest => Known::Active(Arc::clone(token), now),
            _ => Known::Inactive,
        }
    }

    fn first_use(&self, _proof: &VerifiedProof, _now: UnixMillis) -> ProofUse {
        if self.proofs_were_used { ProofUse::Again } else { ProofUse::First }
    }

    fn nonce_key(&self) -> Option<&NonceKey> {
        Some(&self.nonces)
    }
}
