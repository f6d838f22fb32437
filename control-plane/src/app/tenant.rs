//! What serves one realm, from what all realms stand on.

use std::sync::Arc;
use std::time::Duration;

use atm_core::binding::NonceKey;
use atm_core::key::Algorithm;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::StartError;
use crate::admin_access::AdminAccess;
use crate::anomalies::Anomalies;
use crate::api_keys::ApiKeys;
use crate::assertions::AssertionGrants;
use crate::audit::Audit;
use crate::authentication::Authenticator;
use crate::authentication::certificate::Authorities;
use crate::authentication::key_sets::KeySets;
use crate::clock::IssueClock;
use crate::config::{Config, RegistrationConfig};
use crate::events::Events;
use crate::feed::FeedHandle;
use crate::http::{Services, admin, oauth};
use crate::introspection::Introspection;
use crate::issuance::{Issuance, IssuanceSettings};
use crate::issuers::Issuers;
use crate::keys::root::WrappingKeys;
use crate::keys::{Custody, KeySettings, Keys};
use crate::lifecycle::Readiness;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::realms::{DEFAULT_REALM, Realm, RealmStatus, Realms, Served, issuer_of};
use crate::registration::{Registration, RegistrationSettings};
use crate::registry::Registry;
use crate::revocation::{Revocations, Transmitters};
use crate::secret::SecretHasher;
use crate::sessions::{SessionSettings, Sessions};
use crate::store::Store;

/// What all realms stand on; clones share everything.
#[derive(Clone)]
pub(super) struct Plant {
    pub(super) store: Store,
    pub(super) clock: Arc<IssueClock>,
    pub(super) feed: FeedHandle,
    pub(super) hasher: SecretHasher,
    pub(super) custody: Custody,
    pub(super) issuers: Issuers,
    pub(super) events: Events,
    pub(super) audit: Audit,
    pub(super) anomalies: Anomalies,
    pub(super) admin_access: AdminAccess,
    pub(super) transmitters: Transmitters,
    pub(super) wrapping_keys: Arc<WrappingKeys>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Readiness,
    pub(super) config: Arc<Config>,
    pub(super) registration_token: Option<Zeroizing<String>>,
    pub(super) dpop_nonces: Option<Arc<NonceKey>>,
    pub(super) authorities: Option<Authorities>,
    pub(super) key_sets: KeySets,
    /// Cancelled when background tasks end.
    pub(super) ends: CancellationToken,
}

/// What tells one realm from another.
pub(super) struct Tenant {
    name: String,
    issuer: String,
    issuer_path: String,
    admin_path: String,
    algorithm: Algorithm,
    token_lifetime: Duration,
    sessions: SessionSettings,
}

impl Tenant {
    /// The realm of the configured issuer.
    pub(super) fn default_of(config: &Config) -> Self {
        Self {
            name: DEFAULT_REALM.to_owned(),
            issuer: config.issuer.clone(),
            issuer_path: config.issuer_path().to_owned(),
            admin_path: "/admin/v1".to_owned(),
            algorithm: config.algorithm,
            token_lifetime: config.token_lifetime,
            sessions: config.oauth.sessions,
        }
    }

    fn of(realm: &Realm, config: &Config) -> Self {
        let default = Self::default_of(config);
        let settings = &realm.settings;
        let seconds =
            |own: Option<u32>, configured| own.map_or(configured, |own| Duration::from_secs(own.into()));
        Self {
            name: realm.name.clone(),
            issuer: issuer_of(&config.issuer, &realm.name),
            issuer_path: issuer_of(config.issuer_path(), &realm.name),
            admin_path: format!("/admin/v1/realms/{}", realm.name),
            // Checked when the realm was made.
            algorithm: settings
                .algorithm
                .as_ref()
                .and_then(|name| name.parse().ok())
                .unwrap_or(default.algorithm),
            token_lifetime: seconds(settings.access_token_lifetime_seconds, default.token_lifetime),
            sessions: SessionSettings {
                idle: seconds(settings.session_idle_seconds, default.sessions.idle),
                lifetime: seconds(settings.session_lifetime_seconds, default.sessions.lifetime),
                ..default.sessions
            },
        }
    }
}

impl Plant {
    /// The realm's keys; a realm without any gets its first.
    pub(super) async fn keys(&self, tenant: &Tenant) -> Result<Keys, StartError> {
        let settings = KeySettings {
            issuer: tenant.issuer.clone(),
            realm: tenant.name.clone(),
            algorithm: tenant.algorithm,
            max_token_lifetime: self.config.max_token_lifetime,
            rotate_every: self.config.keys.rotate_every,
            fleet_wait: self.config.keys.fleet_wait,
        };
        let (store, feed, custody) = (self.store.clone(), self.feed.clone(), self.custody.clone());
        Ok(Keys::load_or_create(store, feed, custody, self.audit.clone(), settings).await?)
    }

    /// What the interfaces of the realm work with. `realms`: those beside it, for the default one.
    pub(super) fn services(&self, tenant: &Tenant, keys: Keys, realms: Option<Realms>) -> Services {
        let (store, clock, hasher) = (&self.store, &self.clock, &self.hasher);
        let (realm, issuer, oauth) = (tenant.name.as_str(), tenant.issuer.as_str(), &self.config.oauth);
        let revocations = Revocations::new(
            store.clone(),
            self.feed.clone(),
            Arc::clone(clock),
            keys.clone(),
            self.audit.clone(),
            issuer,
        );
        let registry =
            Registry::new(store.clone(), Arc::clone(clock), hasher.clone(), revocations.clone(), realm);
        let api_keys = ApiKeys::new(
            store.clone(),
            Arc::clone(clock),
            hasher.clone(),
            self.feed.clone(),
            revocations.clone(),
            issuer,
        );
        let introspection = Introspection::new(
            store.clone(),
            Arc::clone(clock),
            hasher.clone(),
            keys.clone(),
            revocations.clone(),
            api_keys.clone(),
        );
        let settings = IssuanceSettings {
            issuer: issuer.to_owned(),
            realm: realm.to_owned(),
            lifetime: tenant.token_lifetime,
            max_lifetime: self.config.max_token_lifetime,
        };
        let issuance = Issuance::new(keys.clone(), store.clone(), hasher.clone(), settings);
        let sessions = Sessions::new(
            store.clone(),
            Arc::clone(clock),
            hasher.clone(),
            registry.clone(),
            revocations.clone(),
            issuance.clone(),
            self.events.clone(),
            tenant.sessions,
        );
        Services {
            origin: self.config.issuer_origin(),
            issuer_path: tenant.issuer_path.clone(),
            admin_path: tenant.admin_path.clone(),
            authenticator: Authenticator::new(
                store.clone(),
                Arc::clone(clock),
                hasher.clone(),
                realm,
                issuer,
                self.authorities.clone(),
                self.key_sets.clone(),
            ),
            registration: self.registration(tenant, &registry),
            assertions: AssertionGrants::new(store.clone(), Arc::clone(clock), realm, issuer),
            dpop_nonces: self.dpop_nonces.clone(),
            takes_client_certificates: oauth.client_certificates || oauth.trusted_proxy.is_some(),
            trusted_proxy: oauth.trusted_proxy.clone(),
            limits: Limits::new(oauth.limits),
            issuer: issuer.to_owned(),
            admin_access: self.admin_access.clone(),
            // Their subjects are those of the default realm.
            transmitters: realms.as_ref().map(|_| self.transmitters.clone()).unwrap_or_default(),
            wrapping_keys: Arc::clone(&self.wrapping_keys),
            audit: self.audit.clone(),
            anomalies: self.anomalies.clone(),
            policies: Policies::new(store.clone(), self.feed.clone(), Arc::clone(clock)),
            store: store.clone(),
            clock: Arc::clone(clock),
            feed: self.feed.clone(),
            issuers: self.issuers.clone(),
            events: self.events.clone(),
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
            keys,
            registry,
            sessions,
            api_keys,
            introspection,
            issuance,
            revocations,
            realms,
        }
    }

    /// How clients register themselves, where they may: in the default realm.
    fn registration(&self, tenant: &Tenant, registry: &Registry) -> Option<Registration> {
        let configured = self.config.oauth.registration.clone().filter(|_| tenant.name == DEFAULT_REALM);
        let (registration, token) = configured.zip(self.registration_token.clone())?;
        let RegistrationConfig { scopes, audiences, .. } = registration;
        let settings = RegistrationSettings { token, scopes, audiences };
        Some(Registration::new(registry.clone(), self.hasher.clone(), settings, &tenant.issuer, &tenant.name))
    }

    /// Serves a realm beside the default one, until what is returned is dropped.
    pub(super) async fn serve(self, realm: Realm) -> Result<Served, StartError> {
        let tenant = Tenant::of(&realm, &self.config);
        let keys = self.keys(&tenant).await?;
        let ends = self.ends.child_token();
        tokio::spawn(keys.clone().run(ends.clone()));
        let services = Arc::new(self.services(&tenant, keys, None));
        let is_active = realm.status == RealmStatus::Active;
        Ok(Served {
            oauth: is_active.then(|| oauth::router(Arc::clone(&services))),
            revocations: services.revocations.clone(),
            admin: admin::realm_router(services),
            ends: ends.drop_guard(),
        })
    }
}
