//! Who keeps which private key, and where new ones are made.

use std::collections::BTreeMap;
use std::sync::Arc;

use atm_core::key::Algorithm;
use tokio::sync::Semaphore;

use super::provider::{Bounds, KeyProvider, ProviderError, RemoteKey};
use super::{KeysError, Signer};
use crate::secret::Wrapper;
use crate::store::signing_keys::StoredKey;

/// The name of the provider that keeps keys in the store, wrapped.
pub const LOCAL: &str = "local";

/// The providers. New keys are made by one of them; keys that others made are used for as long as their provider is configured.
#[derive(Debug, Clone)]
pub struct Custody {
    wrapper: Wrapper,
    remote: BTreeMap<&'static str, Remote>,
    /// Where new keys are made; none: here.
    new_keys: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct Remote {
    provider: Arc<dyn KeyProvider>,
    slots: Arc<Semaphore>,
    bounds: Bounds,
}

impl Custody {
    /// Keys are made here, and kept in the store under `wrapper`.
    pub fn local(wrapper: Wrapper) -> Self {
        Self { wrapper, remote: BTreeMap::new(), new_keys: None }
    }

    /// As before, and `provider` makes new keys from now on.
    #[must_use]
    pub fn with(mut self, provider: Arc<dyn KeyProvider>, bounds: Bounds) -> Self {
        let name = provider.name();
        let slots = Arc::new(Semaphore::new(bounds.concurrency));
        self.remote.insert(name, Remote { provider, slots, bounds });
        self.new_keys = Some(name);
        self
    }

    /// As before, and new keys are made here: the providers go on with the keys that they have.
    #[must_use]
    pub fn making_local_keys(mut self) -> Self {
        self.new_keys = None;
        self
    }

    /// The name of the provider of new keys.
    pub fn of_new_keys(&self) -> &'static str {
        self.new_keys.unwrap_or(LOCAL)
    }

    /// A new key. One of a provider has signed once, so that it is known to work.
    pub(super) async fn generate(&self, algorithm: Algorithm) -> Result<Signer, KeysError> {
        let Some(remote) = self.new_keys.and_then(|name| self.remote.get(name)) else {
            // RSA takes long enough to hold up a runtime thread.
            let generate = move || Signer::generate(algorithm);
            return tokio::task::spawn_blocking(generate).await.map_err(|_| KeysError::Library)?;
        };
        let made = remote.provider.generate(algorithm).await?;
        let key = remote.key(algorithm, made.reference);
        let signer = Signer::remote(algorithm, made.spki, key);
        signer.check().await?;
        Ok(signer)
    }

    /// What the store keeps of a key: the provider's name, and the wrapped key or the reference.
    pub(super) fn kept(&self, signer: &Signer) -> Result<(&'static str, Vec<u8>), KeysError> {
        match signer.reference() {
            Some((provider, reference)) => Ok((provider, reference.to_vec())),
            None => Ok((LOCAL, signer.wrap(&self.wrapper)?)),
        }
    }

    /// The stored key, ready to sign. A provider is not asked yet.
    pub(super) fn open(&self, key: &StoredKey) -> Result<Signer, KeysError> {
        let record = &key.record;
        if record.provider == LOCAL {
            return Signer::unwrap(&self.wrapper, &record.kid, record.algorithm, &key.wrapped);
        }
        let remote = self.remote.get(record.provider.as_str()).ok_or_else(|| KeysError::NoProvider {
            kid: record.kid.clone(),
            provider: record.provider.clone(),
        })?;
        let reference = remote.key(record.algorithm, key.wrapped.clone());
        Ok(Signer::remote(record.algorithm, key.spki.clone(), reference))
    }

    /// Has the provider remove a key that signs no more. A failure leaves a key behind that nobody uses.
    pub(super) async fn destroy(&self, provider: &str, reference: &[u8]) -> Result<(), ProviderError> {
        match self.remote.get(provider) {
            Some(remote) => remote.provider.destroy(reference).await,
            None => Ok(()),
        }
    }
}

impl Remote {
    fn key(&self, algorithm: Algorithm, reference: Vec<u8>) -> RemoteKey {
        let slots = Arc::clone(&self.slots);
        RemoteKey::new(Arc::clone(&self.provider), algorithm, reference, slots, self.bounds.timeout)
    }
}
