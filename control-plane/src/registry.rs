//! The registry of clients: who may ask for tokens, and for which.

use std::sync::Arc;

use atm_core::time::UnixMillis;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::clock::IssueClock;
use crate::revocation::{RevocationError, Revocations, Selector};
use crate::secret::{self, SecretError, SecretHasher, SecretKind};
use crate::store::{Store, StoreError, clients, transact};

mod client;
mod validation;

pub(crate) use client::SecretHashes;
pub use client::{
    AccessTokenFormat, AuthenticationMethod, Client, ClientChange, ClientConfiguration, ClientLimits,
    ClientStatus, ExchangeRules, GrantType, NewClient,
};
pub use validation::FieldError;
pub(crate) use validation::check_common;

/// Seconds that a secret is taken beside its successor at most: 90 days.
const MAX_OVERLAP_SECONDS: u64 = 90 * 86_400;

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

/// The clients of one realm; clones share everything.
#[derive(Debug, Clone)]
pub struct Registry {
    store: Store,
    clock: Arc<IssueClock>,
    hasher: SecretHasher,
    revocations: Revocations,
    realm: Arc<str>,
}

impl Registry {
    /// The clients of `realm` in `store`; disabling and deleting revoke through `revocations`.
    pub fn new(
        store: Store,
        clock: Arc<IssueClock>,
        hasher: SecretHasher,
        revocations: Revocations,
        realm: &str,
    ) -> Self {
        Self { store, clock, hasher, revocations, realm: realm.into() }
    }

    /// Registers a client. Its secret, where its way to authenticate has one, is shown this once.
    pub async fn create_client(
        &self,
        new: NewClient,
    ) -> Result<(Client, Option<Zeroizing<String>>), RegistryError> {
        validation::check(&new).map_err(RegistryError::Invalid)?;
        let client_id = match new.client_id {
            Some(id) => id,
            None => secret::random_id()?,
        };
        let now = self.clock.wall().0;
        let client = Client {
            client_id,
            configuration: new.configuration,
            status: ClientStatus::Active,
            previous_secret_expires_at: None,
            created_at: now,
            updated_at: now,
        };
        let has_secret = client.configuration.token_endpoint_auth_method.has_secret();
        let secret = has_secret.then(|| secret::mint(SecretKind::ClientSecret)).transpose()?;
        let hashes = self.hashes(secret.as_ref());
        transact!(self.store, |transaction| -> Result<(), StoreError> {
            clients::insert(transaction, &self.realm, &client, &hashes).await
        })
        .map_err(|error| match error {
            StoreError::Exists => RegistryError::Exists,
            other => other.into(),
        })?;
        Ok((client, secret))
    }

    /// The client with this id.
    pub async fn get(&self, client_id: &str) -> Result<Client, RegistryError> {
        let found = clients::get(&self.store, &self.realm, client_id).await?;
        found.map(|(client, _)| client).ok_or(RegistryError::NotFound)
    }

    /// Clients in the order of their ids, those after `after`, at most `limit`.
    pub async fn list(&self, after: Option<&str>, limit: u32) -> Result<Vec<Client>, RegistryError> {
        Ok(clients::list(&self.store, &self.realm, after.unwrap_or_default(), limit).await?)
    }

    /// Changes a client. Disabling one revokes what it holds, and returns once that is in the feed. A client whose way to
    /// authenticate comes to have a secret gets one by [`Self::rotate_secret`].
    pub async fn update(
        &self,
        client_id: &str,
        change: ClientChange,
        actor: &str,
    ) -> Result<Client, RegistryError> {
        let client = transact!(self.store, |transaction| -> Result<Client, RegistryError> {
            let found = clients::locked(transaction, &self.realm, client_id).await?;
            let (before, mut hashes) = found.ok_or(RegistryError::NotFound)?;
            let client = changed(before, change.clone(), self.clock.wall())?;
            if !client.configuration.token_endpoint_auth_method.has_secret() {
                hashes = SecretHashes::default();
            }
            clients::update(transaction, &self.realm, &client, &hashes).await?;
            Ok(client)
        })?;
        // After the commit: a token request that still saw the client as active took its instant before this
        // watermark. Disabling again revokes again, so a call that failed here can be repeated.
        if change.status == Some(ClientStatus::Disabled) {
            self.revoke_tokens_of(client_id, actor, "client disabled").await?;
        }
        Ok(client)
    }

    /// Replaces all of a client's configuration; its secrets and its status stay.
    pub(crate) async fn replace_configuration(
        &self,
        client_id: &str,
        configuration: ClientConfiguration,
    ) -> Result<Client, RegistryError> {
        validation::check_configuration(&configuration).map_err(RegistryError::Invalid)?;
        transact!(self.store, |transaction| -> Result<Client, RegistryError> {
            let found = clients::locked(transaction, &self.realm, client_id).await?;
            let (before, hashes) = found.ok_or(RegistryError::NotFound)?;
            let configuration = configuration.clone();
            let client = Client { configuration, updated_at: self.clock.wall().0, ..before };
            clients::update(transaction, &self.realm, &client, &hashes).await?;
            Ok(client)
        })
    }

    /// Gives a client a new secret, shown this once. The one before is taken for `overlap_seconds` more, at most 90 days; 0
    /// ends it at once. One that was before that ends in any case.
    pub async fn rotate_secret(
        &self,
        client_id: &str,
        overlap_seconds: u64,
    ) -> Result<(Client, Zeroizing<String>), RegistryError> {
        if overlap_seconds > MAX_OVERLAP_SECONDS {
            return Err(invalid("overlap_seconds", "must be 0 to 7776000 (90 days)"));
        }
        let secret = secret::mint(SecretKind::ClientSecret)?;
        let fresh = self.hashes(Some(&secret));
        let client = transact!(self.store, |transaction| -> Result<Client, RegistryError> {
            let found = clients::locked(transaction, &self.realm, client_id).await?;
            let (mut client, before) = found.ok_or(RegistryError::NotFound)?;
            if !client.configuration.token_endpoint_auth_method.has_secret() {
                return Err(invalid(
                    "token_endpoint_auth_method",
                    "the client authenticates without a secret",
                ));
            }
            let now = self.clock.wall().0;
            let overlap = i64::try_from(overlap_seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
            let previous = before.current.filter(|_| overlap > 0);
            client.previous_secret_expires_at = previous.as_ref().map(|_| now.saturating_add(overlap));
            client.updated_at = now;
            let hashes = SecretHashes { current: fresh.current.clone(), previous };
            clients::update(transaction, &self.realm, &client, &hashes).await?;
            Ok(client)
        })?;
        Ok((client, secret))
    }

    /// Ends the secret before the current one.
    pub async fn end_previous_secret(&self, client_id: &str) -> Result<Client, RegistryError> {
        transact!(self.store, |transaction| -> Result<Client, RegistryError> {
            let found = clients::locked(transaction, &self.realm, client_id).await?;
            let (mut client, mut hashes) = found.ok_or(RegistryError::NotFound)?;
            (client.previous_secret_expires_at, hashes.previous) = (None, None);
            client.updated_at = self.clock.wall().0;
            clients::update(transaction, &self.realm, &client, &hashes).await?;
            Ok(client)
        })
    }

    /// Removes a client and revokes what it holds. Returns the revision from which on its tokens are refused.
    pub async fn delete(&self, client_id: &str, actor: &str) -> Result<u64, RegistryError> {
        let change = ClientChange { status: Some(ClientStatus::Disabled), members: Map::new() };
        self.update(client_id, change, actor).await?;
        clients::delete(&self.store, &self.realm, client_id).await?;
        Ok(self.revocations.position())
    }

    fn hashes(&self, secret: Option<&Zeroizing<String>>) -> SecretHashes {
        let current = secret.map(|secret| self.hasher.hash(secret).to_vec());
        SecretHashes { current, previous: None }
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

fn changed(before: Client, change: ClientChange, now: UnixMillis) -> Result<Client, RegistryError> {
    let members: Map<String, Value> = change.members;
    let configuration =
        before.configuration.merged(members).map_err(|message| invalid("client", &message))?;
    validation::check_configuration(&configuration).map_err(RegistryError::Invalid)?;
    Ok(Client { configuration, status: change.status.unwrap_or(before.status), updated_at: now.0, ..before })
}

fn invalid(field: &str, message: &str) -> RegistryError {
    RegistryError::Invalid(vec![FieldError { field: field.to_owned(), message: message.to_owned() }])
}
