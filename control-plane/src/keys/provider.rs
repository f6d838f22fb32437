//! Where private keys are made and used: here (wrapped in the store), in a PKCS #11 token, in Vault's transit engine, in AWS KMS.
//!
//! A provider makes a key and gives its public half and a reference that the store keeps; it opens a reference for signing. Keys
//! of one provider are never used with another: what a provider cannot do is an error, and never another key.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use atm_core::key::{Algorithm, KeyState, VerificationKey};
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

pub mod der;
pub mod kms;
pub mod pkcs11;
pub mod sigv4;
pub mod vault;

/// What is kept of a key that a provider made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// By which the provider finds the key again. No secret.
    pub reference: Vec<u8>,
}

/// Why a provider did not do what it was asked. Never holds a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProviderError {
    /// It is away, overloaded or too slow: trying again may help.
    #[error("the key provider {provider} does not answer: {problem}")]
    Unavailable {
        /// Which one.
        provider: &'static str,
        /// What it says.
        problem: String,
    },
    /// It refuses: a mistake in its configuration or ours.
    #[error("the key provider {provider} refuses: {problem}")]
    Refused {
        /// Which one.
        provider: &'static str,
        /// What it says.
        problem: String,
    },
    /// It cannot make or use keys of this algorithm.
    #[error(
        "the key provider {provider} has no keys of algorithm {algorithm}; choose another keys.algorithm"
    )]
    Algorithm {
        /// Which one.
        provider: &'static str,
        /// As configured.
        algorithm: Algorithm,
    },
}

/// A place that keeps private keys and signs with them.
pub trait KeyProvider: fmt::Debug + Send + Sync {
    /// The name in configuration, store and metrics.
    fn name(&self) -> &'static str;

    /// Makes a key that never leaves the provider.
    fn generate(&self, algorithm: Algorithm) -> BoxFuture<'_, Result<NewKey, ProviderError>>;

    /// The signature over `message` as JWS has it (RFC 7518 §3), by the key `reference`.
    fn sign<'a>(
        &'a self,
        algorithm: Algorithm,
        reference: &'a [u8],
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ProviderError>>;

    /// Removes a key that signs no more, or has it removed. One that is not there is as good as removed.
    fn destroy<'a>(&'a self, reference: &'a [u8]) -> BoxFuture<'a, Result<(), ProviderError>>;
}

/// How much is asked of a provider at a time, and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Signatures under way at most; more wait.
    pub concurrency: usize,
    /// From the call to the signature, waiting included.
    pub timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { concurrency: 64, timeout: Duration::from_secs(2) }
    }
}

/// A key at a provider. Signing is bounded in number and time.
#[derive(Debug)]
pub struct RemoteKey {
    provider: Arc<dyn KeyProvider>,
    algorithm: Algorithm,
    reference: Vec<u8>,
    slots: Arc<Semaphore>,
    timeout: Duration,
}

impl RemoteKey {
    /// The key `reference` of `provider`; `slots` are shared by all keys of the provider.
    pub fn new(
        provider: Arc<dyn KeyProvider>,
        algorithm: Algorithm,
        reference: Vec<u8>,
        slots: Arc<Semaphore>,
        timeout: Duration,
    ) -> Self {
        Self { provider, algorithm, reference, slots, timeout }
    }

    /// The provider's name.
    pub fn provider(&self) -> &'static str {
        self.provider.name()
    }

    /// By which the provider finds the key.
    pub fn reference(&self) -> &[u8] {
        &self.reference
    }

    /// The signature over `message`.
    pub async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ProviderError> {
        let sign = async {
            // Never closed: nobody closes it.
            let _slot = self.slots.acquire().await.map_err(|_| self.slow("is closed"))?;
            self.provider.sign(self.algorithm, &self.reference, message).await
        };
        match tokio::time::timeout(self.timeout, sign).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.slow(&format!("no signature within {} ms", self.timeout.as_millis()))),
        }
    }

    /// Whether the provider signs with the key of `spki`: a wrong reference must be found before tokens are refused everywhere.
    pub async fn check(&self, kid: &str, spki: &[u8]) -> Result<(), ProviderError> {
        const PROBE: &[u8] = b"atm signing key check v1";
        let refused = |problem: &str| ProviderError::Refused {
            provider: self.provider.name(),
            problem: format!("signing key {kid}: {problem}"),
        };
        let key = VerificationKey::from_spki(kid, self.algorithm, spki, KeyState::Active)
            .map_err(|_| refused("its public key cannot be read"))?;
        let signature = self.sign(PROBE).await?;
        key.verify(PROBE, &signature).map_err(|_| refused("it signs with another key than the one on record"))
    }

    fn slow(&self, problem: &str) -> ProviderError {
        ProviderError::Unavailable { provider: self.provider.name(), problem: problem.to_owned() }
    }
}
