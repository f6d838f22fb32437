//! The registry of clients: who may ask for tokens, and for which.

use std::sync::Arc;

use atm_core::time::UnixMillis;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock::IssueClock;
use crate::revocation::{RevocationError, Revocations, Selector};
use crate::secret::{self, SecretError, SecretHasher, SecretKind};
use crate::store::{Store, StoreError, clients, transact};

mod validation;

pub use validation::FieldError;
pub(crate) use validation::check_common;

/// Whether a client may get tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientStatus {
    /// May authenticate.
    Active,
    /// Is refused everywhere; what it holds is revoked.
    Disabled,
}

impl ClientStatus {
    /// The name in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Disabled].into_iter().find(|status| status.as_str() == text)
    }
}

/// A registered client. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Client {
    /// Given by the caller, or 22 random characters.
    pub client_id: String,
    /// For people.
    pub name: Option<String>,
    /// What the client may ask for (RFC 6749 §3.3).
    pub scopes: Vec<String>,
    /// Whom its tokens may be for (RFC 8707).
    pub audiences: Vec<String>,
    /// Seconds; none: the configured default.
    pub access_token_lifetime_seconds: Option<u32>,
    /// Whether it may get tokens.
    pub status: ClientStatus,
    /// When it was registered.
    pub created_at: i64,
    /// When it was last changed.
    pub updated_at: i64,
}

impl Client {
    fn with(self, change: ClientChange, now: UnixMillis) -> Self {
        Self {
            name: change.name.or(self.name),
            scopes: change.scopes.unwrap_or(self.scopes),
            audiences: change.audiences.unwrap_or(self.audiences),
            access_token_lifetime_seconds: change
                .access_token_lifetime_seconds
                .or(self.access_token_lifetime_seconds),
            status: change.status.unwrap_or(self.status),
            updated_at: now.0,
            ..self
        }
    }
}

/// What registers a client.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewClient {
    /// 1 to 128 characters out of letters, digits and `-._~`; none: a random one.
    #[serde(default)]
    pub client_id: Option<String>,
    /// At most 256 characters.
    #[serde(default)]
    pub name: Option<String>,
    /// At most 256, each as RFC 6749 §3.3 allows.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// At most 64.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// 1 to 86,400 seconds; the configured maximum applies on top.
    #[serde(default)]
    pub access_token_lifetime_seconds: Option<u32>,
}

/// What changes a client; what is left out stays.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientChange {
    /// As in [`NewClient`].
    #[serde(default)]
    pub name: Option<String>,
    /// As in [`NewClient`].
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// As in [`NewClient`].
    #[serde(default)]
    pub audiences: Option<Vec<String>>,
    /// As in [`NewClient`].
    #[serde(default)]
    pub access_token_lifetime_seconds: Option<u32>,
    /// Disabling also revokes every token that the client holds.
    #[serde(default)]
    pub status: Option<ClientStatus>,
}

/// Why the registry refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Fields that cannot be accepted, all of them.
    #[error("{} fields cannot be accepted", .0.len())]
    Invalid(Vec<FieldError>),
    /// The id is taken.
    #[error("one with this id exists already")]
    Exists,
    /// No such client.
    #[error("there is none with this id")]
    NotFound,
    /// The client was changed, and its tokens could not be revoked; call again.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Why a client was not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// Unknown, disabled or a wrong secret; which one is nobody's business.
    #[error("client authentication failed")]
    Refused,
    /// Could not be told; never a refusal.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The registry; clones share everything.
#[derive(Debug, Clone)]
pub struct Registry {
    store: Store,
    clock: Arc<IssueClock>,
    hasher: SecretHasher,
    revocations: Revocations,
}

impl Registry {
    /// The registry over `store`; disabling and deleting revoke through `revocations`.
    pub fn new(store: Store, clock: Arc<IssueClock>, hasher: SecretHasher, revocations: Revocations) -> Self {
        Self { store, clock, hasher, revocations }
    }

    /// Registers a client. The secret is shown this once.
    pub async fn create_client(&self, new: NewClient) -> Result<(Client, Zeroizing<String>), RegistryError> {
        validation::check(&new).map_err(RegistryError::Invalid)?;
        let client_id = match new.client_id {
            Some(id) => id,
            None => secret::random_id()?,
        };
        let now = self.clock.wall().0;
        let client = Client {
            client_id,
            name: new.name,
            scopes: new.scopes,
            audiences: new.audiences,
            access_token_lifetime_seconds: new.access_token_lifetime_seconds,
            status: ClientStatus::Active,
            created_at: now,
            updated_at: now,
        };
        let secret = secret::mint(SecretKind::ClientSecret)?;
        let hash = self.hasher.hash(&secret);
        transact!(self.store, |transaction| -> Result<(), StoreError> {
            clients::insert(transaction, &client, &hash).await
        })
        .map_err(|error| match error {
            StoreError::Exists => RegistryError::Exists,
            other => other.into(),
        })?;
        Ok((client, secret))
    }

    /// The client with this id.
    pub async fn get(&self, client_id: &str) -> Result<Client, RegistryError> {
        let found = clients::get(&self.store, client_id).await?;
        found.map(|(client, _)| client).ok_or(RegistryError::NotFound)
    }

    /// Clients in the order of their ids, those after `after`, at most `limit`.
    pub async fn list(&self, after: Option<&str>, limit: u32) -> Result<Vec<Client>, RegistryError> {
        Ok(clients::list(&self.store, after.unwrap_or_default(), limit).await?)
    }

    /// Changes a client. Disabling one revokes what it holds, and returns once that is in the feed.
    pub async fn update(
        &self,
        client_id: &str,
        change: ClientChange,
        actor: &str,
    ) -> Result<Client, RegistryError> {
        let client = transact!(self.store, |transaction| -> Result<Client, RegistryError> {
            let before = clients::locked(transaction, client_id).await?.ok_or(RegistryError::NotFound)?;
            let client = before.with(change.clone(), self.clock.wall());
            validation::check_client(&client).map_err(RegistryError::Invalid)?;
            clients::update(transaction, &client).await?;
            Ok(client)
        })?;
        // After the commit: a token request that still saw the client as active took its instant before this
        // watermark. Disabling again revokes again, so a call that failed here can be repeated.
        if change.status == Some(ClientStatus::Disabled) {
            self.revoke_tokens_of(client_id, actor, "client disabled").await?;
        }
        Ok(client)
    }

    /// Removes a client and revokes what it holds. Returns the revision from which on its tokens are refused.
    pub async fn delete(&self, client_id: &str, actor: &str) -> Result<u64, RegistryError> {
        self.update(
            client_id,
            ClientChange { status: Some(ClientStatus::Disabled), ..Default::default() },
            actor,
        )
        .await?;
        clients::delete(&self.store, client_id).await?;
        Ok(self.revocations.position())
    }

    /// The client, if it is active and `secret` is its own. Take [`IssueClock::issue`] before calling this.
    pub async fn authenticate(&self, client_id: &str, secret: &str) -> Result<Client, AuthenticationError> {
        if !secret::is_well_formed(SecretKind::ClientSecret, secret) {
            return Err(AuthenticationError::Refused);
        }
        let found = clients::get(&self.store, client_id).await?;
        // An unknown client costs a hash too, so that time does not tell which ids exist.
        let stored = found.as_ref().map_or(&[0; 32][..], |(_, hash)| hash);
        let matches = self.hasher.matches(secret, stored);
        match found {
            Some((client, _)) if matches && client.status == ClientStatus::Active => Ok(client),
            _ => Err(AuthenticationError::Refused),
        }
    }

    async fn revoke_tokens_of(
        &self,
        client_id: &str,
        actor: &str,
        reason: &str,
    ) -> Result<(), RegistryError> {
        self.revocations.revoke(&[Selector::Client(client_id.to_owned())], actor, Some(reason)).await?;
        Ok(())
    }
}
