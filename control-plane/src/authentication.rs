//! Client authentication at the OAuth endpoints: what a request presents against what the client is registered with.

use std::fmt;
use std::sync::Arc;

use atm_core::time::UnixMillis;
use quick_cache::sync::Cache;
use zeroize::Zeroizing;

use crate::clock::IssueClock;
use crate::registry::{AuthenticationMethod, Client, ClientStatus, SecretHashes};
use crate::secret::{self, SecretHasher, SecretKind};
use crate::store::versions::Topic;
use crate::store::{Store, StoreError, clients, single_use};

pub mod assertion;
pub mod certificate;
pub(crate) mod distinguished_name;
pub mod key_sets;

use assertion::AssertionError;
use certificate::{Authorities, PresentedCertificate};
use key_sets::{KeySets, KeysAway};

/// Clients that are kept in memory.
const KNOWN_CLIENTS: usize = 10_000;

/// What a request presents besides the certificate of its connection. No `Debug`: secrets are among them.
pub enum Credential {
    /// A secret (RFC 6749 §2.3.1).
    Secret(Zeroizing<String>),
    /// A signed assertion (RFC 7523 §2.2).
    Assertion(String),
    /// Nothing: the connection's certificate speaks, or the client is a public one.
    None,
}

/// Who a request says that it is of, and how it shows that. No `Debug`: see [`Credential`].
pub struct Presented {
    /// `client_id`; none: the assertion says.
    pub client_id: Option<String>,
    /// What it presents.
    pub credential: Credential,
}

/// Why a client was not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// Unknown, disabled, another method than registered, or a wrong credential; which one is nobody's business.
    #[error("client authentication failed")]
    Refused,
    /// The assertion says more of itself than the client's secret does: what is wrong with it helps who wrote it.
    #[error(transparent)]
    Assertion(#[from] AssertionError),
    /// The assertion was used before.
    #[error("the assertion has been used before; its jti must be new each time")]
    Replayed,
    /// The client's keys are where nothing answers; never a refusal.
    #[error(transparent)]
    Keys(#[from] KeysAway),
    /// Could not be told; never a refusal.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Authenticates the clients of one realm; clones share everything.
#[derive(Clone)]
pub struct Authenticator {
    store: Store,
    clock: Arc<IssueClock>,
    hasher: SecretHasher,
    realm: Arc<str>,
    issuer: Arc<str>,
    authorities: Option<Authorities>,
    key_sets: KeySets,
    /// What the store said of clients, with the version of the registry that it said so at. Of unknown ones nothing is kept.
    known: Arc<Cache<String, (u64, Arc<Known>)>>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("realm", &self.realm).finish_non_exhaustive()
    }
}

/// A client and the hashes of its secrets.
struct Known {
    client: Client,
    hashes: SecretHashes,
}

impl Authenticator {
    /// For clients of `realm`, whose assertions are for `issuer`, whose certificates are of `authorities`, and whose keys, where
    /// they publish them, are in `key_sets`.
    pub fn new(
        store: Store,
        clock: Arc<IssueClock>,
        hasher: SecretHasher,
        realm: &str,
        issuer: &str,
        authorities: Option<Authorities>,
        key_sets: KeySets,
    ) -> Self {
        let known = Arc::new(Cache::new(KNOWN_CLIENTS));
        Self {
            store,
            clock,
            hasher,
            realm: realm.into(),
            issuer: issuer.into(),
            authorities,
            key_sets,
            known,
        }
    }

    /// The client, if it is active and shows that it is itself, as it is registered to do. Take [`IssueClock::issue`] before.
    pub async fn authenticate(
        &self,
        presented: &Presented,
        certificate: Option<&PresentedCertificate>,
    ) -> Result<Client, AuthenticationError> {
        let claimed = match (&presented.client_id, &presented.credential) {
            (Some(client_id), _) => Some(client_id.clone()),
            (None, Credential::Assertion(assertion)) => assertion::claimed_client(assertion),
            (None, _) => None,
        };
        let claimed = claimed.ok_or(AuthenticationError::Refused)?;
        let found = self.find(&claimed).await?;
        let now = self.clock.wall();
        if let Credential::Secret(secret) = &presented.credential {
            return self.by_secret(found.as_deref(), secret, now);
        }
        let client = found.map(|known| known.client.clone()).ok_or(AuthenticationError::Refused)?;
        if client.status != ClientStatus::Active {
            return Err(AuthenticationError::Refused);
        }
        let method = client.configuration.token_endpoint_auth_method;
        let is_shown = match (method, &presented.credential, certificate) {
            (AuthenticationMethod::PrivateKeyJwt, Credential::Assertion(assertion), _) => {
                self.by_assertion(&client, assertion, now).await?;
                true
            }
            (AuthenticationMethod::TlsClientAuth, Credential::None, Some(certificate)) => {
                self.authorities.as_ref().is_some_and(|authorities| authorities.vouch_for(certificate))
                    && certificate.is_named(&client.configuration)
            }
            (AuthenticationMethod::SelfSignedTlsClientAuth, Credential::None, Some(certificate)) => {
                certificate.is_registered(&client.configuration)
            }
            (AuthenticationMethod::None, Credential::None, _) => true,
            _ => false,
        };
        if is_shown { Ok(client) } else { Err(AuthenticationError::Refused) }
    }

    /// The client, out of memory where nothing has changed in the registry since it was read. What other replicas change is known
    /// here since the instant that the caller took from the issue clock: see [`crate::store::versions`].
    async fn find(&self, client_id: &str) -> Result<Option<Arc<Known>>, StoreError> {
        let version = self.store.version(Topic::Clients);
        if let Some((at, known)) = self.known.get(client_id)
            && at == version
        {
            return Ok(Some(known));
        }
        let found = clients::get(&self.store, &self.realm, client_id).await?;
        let Some((client, hashes)) = found else { return Ok(None) };
        let known = Arc::new(Known { client, hashes });
        self.known.insert(client_id.to_owned(), (version, Arc::clone(&known)));
        Ok(Some(known))
    }

    /// The hash is made for an unknown client, too, so that time does not tell which ids exist.
    fn by_secret(
        &self,
        found: Option<&Known>,
        secret: &str,
        now: UnixMillis,
    ) -> Result<Client, AuthenticationError> {
        if !secret::is_well_formed(SecretKind::ClientSecret, secret) {
            return Err(AuthenticationError::Refused);
        }
        let matches =
            |hash: Option<&[u8]>| self.hasher.matches(secret, hash.unwrap_or(&[0; 32])) && hash.is_some();
        let hashes = found.map(|known| &known.hashes);
        let is_current = matches(hashes.and_then(|hashes| hashes.current.as_deref()));
        let client = found.map(|known| &known.client);
        let overlap = client.and_then(|client| client.previous_secret_expires_at);
        let is_previous = !is_current
            && overlap.is_some_and(|end| now.0 < end)
            && matches(hashes.and_then(|hashes| hashes.previous.as_deref()));
        let client = client.filter(|client| {
            client.status == ClientStatus::Active
                && client.configuration.token_endpoint_auth_method.has_secret()
        });
        client.filter(|_| is_current || is_previous).cloned().ok_or(AuthenticationError::Refused)
    }

    async fn by_assertion(
        &self,
        client: &Client,
        assertion: &str,
        now: UnixMillis,
    ) -> Result<(), AuthenticationError> {
        let configuration = &client.configuration;
        let keys = match &configuration.jwks_uri {
            None => configuration.jwks.as_ref().map(assertion::keys).unwrap_or_default().into(),
            Some(uri) => {
                let kid = assertion::key_id(assertion);
                self.key_sets.keys(uri, kid.as_deref(), !configuration.registered_itself).await?
            }
        };
        let assertion = assertion::verify(assertion, &client.client_id, &keys, &self.issuer, now)?;
        if single_use::first_use(&self.store, &assertion.replay_id, assertion.expires_at).await? {
            Ok(())
        } else {
            Err(AuthenticationError::Replayed)
        }
    }
}
