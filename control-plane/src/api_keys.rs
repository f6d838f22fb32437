//! API keys: long-lived opaque credentials, shown once, kept as keyed hashes, looked up by sidecars through introspection.

use std::sync::Arc;

use atm_core::claims::{ISSUED_AT_MS, MAX_NETWORKS, NETWORKS};
use atm_core::id::{Id, IdKind};
use atm_core::opaque;
use atm_core::time::UnixMillis;
use atm_proto::change::Change;
use atm_proto::introspection::{IntrospectionReply, IntrospectionRequest, MAX_CACHE_SECONDS};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::clock::IssueClock;
use crate::feed::FeedHandle;
use crate::registry::{FieldError, RegistryError, check_common};
use crate::revocation::{Revocations, Selector};
use crate::secret::{self, SecretHasher, SecretKind};
use crate::store::outbox::{self, Ticket};
use crate::store::{Store, StoreError, api_keys, transact};

/// Seconds that a key lives where nothing else is said: a year.
const DEFAULT_LIFETIME_SECONDS: i64 = 365 * 86_400;
/// Seconds that a key may live: ten years.
const MAX_LIFETIME_SECONDS: i64 = 3_653 * 86_400;
/// Seconds for which a sidecar may keep that a credential is none of ours.
const INACTIVE_CACHE_SECONDS: u32 = 10;
/// Seconds that a key is taken beside its successor at most: 90 days.
const MAX_OVERLAP_SECONDS: u64 = 90 * 86_400;
/// Milliseconds between two writes of a key's last use.
const USE_NOTED_EVERY_MS: i64 = 3_600 * 1_000;
/// Bytes of a subject.
const MAX_SUBJECT: usize = 256;

/// Whether a key is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiKeyStatus {
    /// Until it expires.
    Active,
    /// Never again.
    Revoked,
}

impl ApiKeyStatus {
    /// The name in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Revoked => "revoked",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Revoked].into_iter().find(|status| status.as_str() == text)
    }
}

/// An API key, without the key. Times are milliseconds since the Unix epoch, but `expires_at`, which is in seconds as in a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// Random; the `jti` that sidecars and revocations know it by.
    pub id: String,
    /// For people.
    pub name: Option<String>,
    /// Whose requests it stands for (`sub`).
    pub subject: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// Whom it may be used with.
    pub audiences: Vec<String>,
    /// Where it may be used from, as prefixes like `10.0.0.0/8`; empty means anywhere.
    pub networks: Vec<String>,
    /// Whether it is taken.
    pub status: ApiKeyStatus,
    /// Seconds since the Unix epoch.
    pub expires_at: i64,
    /// Until when the key before a rotation is taken too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_expires_at: Option<i64>,
    /// About when a sidecar last asked about it: written at most once an hour, and sidecars ask every five minutes at most.
    pub last_used_at: Option<i64>,
    /// When it was made.
    pub created_at: i64,
    /// When it was last changed.
    pub updated_at: i64,
}

impl ApiKey {
    fn with(self, change: ApiKeyChange, now: UnixMillis) -> Self {
        Self {
            name: change.name.or(self.name),
            scopes: change.scopes.unwrap_or(self.scopes),
            audiences: change.audiences.unwrap_or(self.audiences),
            networks: change.networks.unwrap_or(self.networks),
            updated_at: now.0,
            ..self
        }
    }
}

/// What makes a key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewApiKey {
    /// At most 256 bytes.
    #[serde(default)]
    pub name: Option<String>,
    /// 1 to 256 bytes.
    pub subject: String,
    /// At most 256, each as RFC 6749 §3.3 allows.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// 1 to 64.
    pub audiences: Vec<String>,
    /// At most 64.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Seconds since the Unix epoch, at most ten years from now; a year from now when left out.
    #[serde(default)]
    pub expires_at: Option<i64>,
}

/// What changes a key; what is left out stays.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyChange {
    /// As in [`NewApiKey`].
    #[serde(default)]
    pub name: Option<String>,
    /// As in [`NewApiKey`].
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// As in [`NewApiKey`].
    #[serde(default)]
    pub audiences: Option<Vec<String>>,
    /// As in [`NewApiKey`]; an empty list lifts the restriction.
    #[serde(default)]
    pub networks: Option<Vec<String>>,
}

/// The API keys; clones share everything.
#[derive(Debug, Clone)]
pub struct ApiKeys {
    store: Store,
    clock: Arc<IssueClock>,
    hasher: SecretHasher,
    feed: FeedHandle,
    revocations: Revocations,
    issuer: Arc<str>,
}

impl ApiKeys {
    /// The keys in `store`, which stand for tokens of `issuer`.
    pub fn new(
        store: Store,
        clock: Arc<IssueClock>,
        hasher: SecretHasher,
        feed: FeedHandle,
        revocations: Revocations,
        issuer: &str,
    ) -> Self {
        Self { store, clock, hasher, feed, revocations, issuer: issuer.into() }
    }

    /// Makes a key. It is shown this once.
    pub async fn create(&self, new: NewApiKey) -> Result<(ApiKey, Zeroizing<String>), RegistryError> {
        let now = self.clock.wall();
        let key = ApiKey {
            id: secret::random_id()?,
            name: new.name,
            subject: new.subject,
            scopes: new.scopes,
            audiences: new.audiences,
            networks: new.networks,
            status: ApiKeyStatus::Active,
            expires_at: new.expires_at.unwrap_or(now.seconds() + DEFAULT_LIFETIME_SECONDS),
            previous_expires_at: None,
            last_used_at: None,
            created_at: now.0,
            updated_at: now.0,
        };
        check(&key, now).map_err(RegistryError::Invalid)?;
        let text = secret::mint(SecretKind::ApiKey)?;
        let hash = self.hash(&opaque::digest(&text));
        transact!(self.store, |transaction| -> Result<(), StoreError> {
            api_keys::insert(transaction, &key, &hash).await
        })?;
        Ok((key, text))
    }

    /// The key with this id.
    pub async fn get(&self, id: &str) -> Result<ApiKey, RegistryError> {
        api_keys::get(&self.store, id).await?.ok_or(RegistryError::NotFound)
    }

    /// Keys in the order of their ids, those after `after`, at most `limit`.
    pub async fn list(&self, after: Option<&str>, limit: u32) -> Result<Vec<ApiKey>, RegistryError> {
        Ok(api_keys::list(&self.store, after.unwrap_or_default(), limit).await?)
    }

    /// Changes a key. Every sidecar that is level with the feed asks about it anew: the change is in force there with the
    /// revision that this returns.
    pub async fn change(&self, id: &str, change: ApiKeyChange) -> Result<(ApiKey, u64), RegistryError> {
        let now = self.clock.wall();
        // With the change, so that a crash cannot leave sidecars with what was ...
        let early = self.out_of_date(id).await?;
        let key = transact!(self.store, |transaction| -> Result<ApiKey, RegistryError> {
            let before = api_keys::locked(transaction, id).await?.ok_or(RegistryError::NotFound)?;
            let key = before.with(change.clone(), now);
            check(&key, UnixMillis(key.created_at)).map_err(RegistryError::Invalid)?;
            api_keys::update(transaction, &key).await?;
            outbox::enqueue(transaction, &early, now).await?;
            Ok(key)
        })?;
        // ... and after it, so that no answer from before the commit is newer than the mark.
        let revision = self.ask_anew(id, now).await?;
        Ok((key, revision))
    }

    /// Gives a key another text, shown this once. The one before is taken for `overlap_seconds` more, at most 90 days; 0 ends
    /// it at every sidecar with the revision that this returns.
    pub async fn rotate(
        &self,
        id: &str,
        overlap_seconds: u64,
    ) -> Result<(ApiKey, Zeroizing<String>, u64), RegistryError> {
        if overlap_seconds > MAX_OVERLAP_SECONDS {
            let message = "must be 0 to 7776000 (90 days)".to_owned();
            return Err(RegistryError::Invalid(vec![FieldError {
                field: "overlap_seconds".into(),
                message,
            }]));
        }
        let text = secret::mint(SecretKind::ApiKey)?;
        let hash = self.hash(&opaque::digest(&text));
        let now = self.clock.wall();
        let overlap = i64::try_from(overlap_seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let early = self.out_of_date(id).await?;
        let key = transact!(self.store, |transaction| -> Result<ApiKey, RegistryError> {
            let mut key = api_keys::locked(transaction, id).await?.ok_or(RegistryError::NotFound)?;
            if key.status != ApiKeyStatus::Active {
                let message = "the key is revoked; make another one".to_owned();
                return Err(RegistryError::Invalid(vec![FieldError { field: "status".into(), message }]));
            }
            key.previous_expires_at = (overlap > 0).then(|| now.0.saturating_add(overlap));
            key.updated_at = now.0;
            api_keys::rotate(transaction, &key, &hash).await?;
            outbox::enqueue(transaction, &early, now).await?;
            Ok(key)
        })?;
        let revision = self.ask_anew(id, now).await?;
        Ok((key, text, revision))
    }

    /// After a commit: no answer from before it is newer than this mark. Returns the revision that carries it.
    async fn ask_anew(&self, id: &str, now: UnixMillis) -> Result<u64, RegistryError> {
        let late = self.out_of_date(id).await?;
        let ticket = transact!(self.store, |transaction| -> Result<Ticket, StoreError> {
            outbox::enqueue(transaction, &late, now).await
        })?;
        Ok(self.feed.sequenced(&ticket).await.map_err(crate::revocation::RevocationError::from)?)
    }

    /// Ends a key. Returns the revision from which on it is refused everywhere.
    pub async fn revoke(&self, id: &str, actor: &str) -> Result<u64, RegistryError> {
        let key = transact!(self.store, |transaction| -> Result<ApiKey, RegistryError> {
            let before = api_keys::locked(transaction, id).await?.ok_or(RegistryError::NotFound)?;
            let key = ApiKey { status: ApiKeyStatus::Revoked, updated_at: self.clock.wall().0, ..before };
            api_keys::update(transaction, &key).await?;
            Ok(key)
        })?;
        // A call that fails here can be repeated: revoking twice is revoking once.
        let selector = Selector::Token { jti: key.id, issuer: None, expires_at: Some(key.expires_at) };
        let revoked = self.revocations.revoke(&[selector], actor, Some("API key revoked")).await?;
        Ok(revoked.revision)
    }

    /// Answers a sidecar's question. The instant is taken before the look, so that a change in between makes the answer out of
    /// date instead of missed.
    pub async fn introspect(
        &self,
        request: &IntrospectionRequest,
        realm_group: &str,
    ) -> Result<IntrospectionReply, StoreError> {
        let time = self.clock.issue().await?;
        let now = self.clock.wall();
        let key = api_keys::by_digest(&self.store, &self.hash(&request.token_digest), now).await?;
        let key = key.filter(|key| key.status == ApiKeyStatus::Active && now.seconds() < key.expires_at);
        if let Some(key) = &key {
            self.note_use(key, now).await;
        }
        let now = now.seconds();
        let cache_seconds = match &key {
            None => INACTIVE_CACHE_SECONDS,
            Some(key) => u32::try_from(key.expires_at - now).unwrap_or(u32::MAX).min(MAX_CACHE_SECONDS),
        };
        Ok(IntrospectionReply {
            realm_group: realm_group.to_owned(),
            token_digest: request.token_digest,
            nonce: request.nonce,
            time,
            claims: key.map(|key| self.claims(&key)),
            cache_seconds,
        })
    }

    /// A use that cannot be noted is no reason to refuse it.
    async fn note_use(&self, key: &ApiKey, now: UnixMillis) {
        let since = UnixMillis(now.0 - USE_NOTED_EVERY_MS);
        if key.last_used_at.is_some_and(|last| last >= since.0) {
            return;
        }
        if let Err(error) = api_keys::used(&self.store, &key.id, now, since).await {
            tracing::warn!(%error, api_key = key.id, "the use of an API key is not noted");
        }
    }

    /// The claims of the key with this digest, if it is active.
    pub(crate) async fn active_claims(
        &self,
        digest: &[u8; 32],
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        let now = self.clock.wall();
        let key = api_keys::by_digest(&self.store, &self.hash(digest), now).await?;
        let key = key.filter(|key| key.status == ApiKeyStatus::Active && now.seconds() < key.expires_at);
        Ok(key.map(|key| self.claims(&key)))
    }

    /// The claims of an access token that says what the key does.
    fn claims(&self, key: &ApiKey) -> Map<String, Value> {
        let mut claims = Map::new();
        let mut add = |name: &str, value: Value| claims.insert(name.to_owned(), value);
        add("iss", (*self.issuer).into());
        add("sub", key.subject.as_str().into());
        add("aud", key.audiences.clone().into());
        // A key is its own client: revoking that client ends it, too.
        add("client_id", key.id.as_str().into());
        add("jti", key.id.as_str().into());
        add("iat", UnixMillis(key.created_at).seconds().into());
        add(ISSUED_AT_MS, key.created_at.into());
        add("exp", key.expires_at.into());
        if !key.scopes.is_empty() {
            add("scope", key.scopes.join(" ").into());
        }
        if !key.networks.is_empty() {
            add(NETWORKS, json!(key.networks));
        }
        claims
    }

    /// Sidecars ask anew about what they learnt until now.
    async fn out_of_date(&self, id: &str) -> Result<Change, StoreError> {
        let id = Id::of(IdKind::Token, &self.issuer, id);
        let entries = vec![(id, self.clock.revoke().await?)];
        Ok(Change::Watermarks { kind: IdKind::Introspection, entries })
    }

    fn hash(&self, digest: &[u8; 32]) -> [u8; 32] {
        self.hasher.hash(&hex::encode(digest))
    }
}

fn check(key: &ApiKey, now: UnixMillis) -> Result<(), Vec<FieldError>> {
    let mut errors = check_common(key.name.as_deref(), &key.scopes, &key.audiences);
    let mut refuse =
        |field: String, message: &str| errors.push(FieldError { field, message: message.to_owned() });
    if key.subject.is_empty() || key.subject.len() > MAX_SUBJECT || key.subject.chars().any(char::is_control)
    {
        refuse("subject".into(), "must be 1 to 256 bytes without control characters");
    }
    if key.audiences.is_empty() {
        refuse("audiences".into(), "must name at least one; a key without one is refused everywhere");
    }
    let seconds = now.seconds();
    if key.expires_at <= seconds || key.expires_at > seconds + MAX_LIFETIME_SECONDS {
        refuse("expires_at".into(), "must lie in the future, at most ten years from now, in seconds");
    }
    if key.networks.len() > MAX_NETWORKS {
        refuse("networks".into(), "must be at most 64");
    }
    for (at, network) in key.networks.iter().enumerate() {
        if network.parse::<IpNet>().is_err() {
            refuse(format!("networks[{at}]"), "must be a prefix, as in 10.0.0.0/8 or 2001:db8::/32");
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
