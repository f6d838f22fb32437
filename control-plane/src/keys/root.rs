//! The root key: what hashes of secrets and wrapped private keys hang on. It is random, lives in the store, and is sealed there by
//! the wrapping key that the operator keeps, so that the operator can change the wrapping key without touching anything else.

use crate::clock::wall_now;
use crate::secret::{RootKey, SecretError};
use crate::store::{Store, StoreError, sealed_keys, transact};

/// The row of the root key.
const NAME: &str = "root";

/// Why the root key is not there.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The wrapping key is another one than it was sealed by, or the library failed.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The operator's wrapping keys.
#[derive(Debug)]
pub struct WrappingKeys {
    /// In use.
    pub current: RootKey,
    /// The one before, until everything is sealed by the current one.
    pub previous: Option<RootKey>,
}

/// What sealing anew came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Rewrapped {
    /// Names the wrapping key that seals now.
    pub sealed_by: String,
    /// Whether another one sealed before.
    pub changed: bool,
}

impl WrappingKeys {
    /// Opens the root key of `store`, or makes it. A store from before there was one keeps what it hangs on: the wrapping key
    /// itself becomes its root key.
    pub async fn open(&self, store: &Store) -> Result<RootKey, RootError> {
        let fresh = RootKey::generate()?.0;
        let fresh_sealed = self.current.seal(NAME, &fresh)?;
        let former_sealed = self.current.seal(NAME, &self.current)?;
        let sealed = transact!(store, |transaction| -> Result<Vec<u8>, RootError> {
            if let Some((sealed, _)) = sealed_keys::get(transaction, NAME).await? {
                return Ok(sealed);
            }
            let sealed =
                if sealed_keys::is_in_use(transaction).await? { &former_sealed } else { &fresh_sealed };
            sealed_keys::put(transaction, NAME, sealed, &self.current.id(), wall_now()).await?;
            Ok(sealed.clone())
        })?;
        Ok(self.unseal(&sealed)?)
    }

    /// Seals the root key by the current wrapping key. The one before is needed no more, once every replica has the current.
    pub async fn rewrap(&self, store: &Store) -> Result<Rewrapped, RootError> {
        let id = self.current.id();
        transact!(store, |transaction| -> Result<Rewrapped, RootError> {
            let Some((sealed, sealed_by)) = sealed_keys::get(transaction, NAME).await? else {
                return Err(SecretError::Unwrap.into());
            };
            if sealed_by == id {
                return Ok(Rewrapped { sealed_by, changed: false });
            }
            let root = self.unseal(&sealed)?;
            let sealed = self.current.seal(NAME, &root)?;
            sealed_keys::put(transaction, NAME, &sealed, &id, wall_now()).await?;
            Ok(Rewrapped { sealed_by: id.clone(), changed: true })
        })
    }

    fn unseal(&self, sealed: &[u8]) -> Result<RootKey, SecretError> {
        let keys = std::iter::once(&self.current).chain(&self.previous);
        let mut outcome = Err(SecretError::Unwrap);
        for key in keys {
            outcome = key.unseal(NAME, sealed);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hash(keys: &WrappingKeys, store: &Store) -> Result<[u8; 32], RootError> {
        Ok(keys.open(store).await?.hasher()?.hash("secret"))
    }

    #[tokio::test]
    async fn the_wrapping_key_changes_and_nothing_that_hangs_on_the_root_key_does() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_embedded(&dir.path().join("atm.db")).await.unwrap();
        let (first, text) = RootKey::generate().unwrap();
        let (second, text2) = RootKey::generate().unwrap();
        let old = WrappingKeys { current: first, previous: None };
        let expected = hash(&old, &store).await.unwrap();
        let alone = WrappingKeys { current: second, previous: None };
        assert!(matches!(hash(&alone, &store).await, Err(RootError::Secret(SecretError::Unwrap))));
        let both = WrappingKeys {
            current: RootKey::from_base64url(&text2).unwrap(),
            previous: Some(RootKey::from_base64url(&text).unwrap()),
        };
        assert_eq!(hash(&both, &store).await.unwrap(), expected, "opened by the one before");
        assert!(both.rewrap(&store).await.unwrap().changed);
        assert!(!both.rewrap(&store).await.unwrap().changed);
        assert_eq!(hash(&alone, &store).await.unwrap(), expected);
        assert!(hash(&old, &store).await.is_err());
    }
}
