use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use atm_core::id::IdKind;
use atm_proto::change::Change;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::provider::{Bounds, KeyProvider, NewKey};
use super::*;
use crate::audit::tests::recording;
use crate::feed::tests::Fixture;
use crate::revocation::{Revocations, Selector};
use crate::secret::RootKey;

pub(crate) const ISSUER: &str = "https://issuer.test";

pub(crate) fn settings(issuer: &str) -> KeySettings {
    KeySettings {
        issuer: issuer.into(),
        realm: "default".into(),
        algorithm: Algorithm::ES256,
        max_token_lifetime: Duration::from_mins(1),
        rotate_every: None,
        fleet_wait: Duration::from_mins(1),
    }
}

pub(crate) async fn keys(fixture: &Fixture, root: &RootKey, issuer: &str) -> Keys {
    let custody = Custody::local(root.wrapper().unwrap());
    keys_with(fixture, custody, settings(issuer)).await.0
}

/// Keys, and where they record what happens to them.
pub(crate) async fn keys_with(fixture: &Fixture, custody: Custody, settings: KeySettings) -> (Keys, Audit) {
    let audit = recording(&fixture.store).await;
    let (store, feed) = (fixture.store.clone(), fixture.feed.clone());
    let keys = Keys::load_or_create(store, feed, custody, audit.clone(), settings).await.unwrap();
    (keys, audit)
}

fn revocations(fixture: &Fixture, keys: &Keys, audit: &Audit) -> Revocations {
    let (store, feed, clock) = (fixture.store.clone(), fixture.feed.clone(), Arc::clone(&fixture.clock));
    Revocations::new(store, feed, clock, keys.clone(), audit.clone(), ISSUER)
}

async fn states(keys: &Keys) -> Vec<SigningKeyState> {
    keys.list().await.unwrap().into_iter().map(|key| key.state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_key_is_in_the_log_and_survives_a_restart() {
    let fixture = Fixture::start().await;
    let root = RootKey::generate().unwrap().0;
    let first = keys(&fixture, &root, ISSUER).await;
    let token = first.sign_jwt("at+jwt", &serde_json::json!({ "sub": "x" })).await.unwrap();
    assert_eq!(token.split('.').count(), 3);
    let again = keys(&fixture, &root, ISSUER).await;
    assert_eq!(again.active_kid().unwrap(), first.active_kid().unwrap());
    assert_eq!(states(&again).await, [SigningKeyState::Active]);
    assert_eq!(again.jwks()["keys"].as_array().unwrap().len(), 1);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let issuer = again.issuers();
    let key = issuer.get(ISSUER).unwrap().key(&again.active_kid().unwrap()).unwrap();
    assert!(key.verify(message.as_bytes(), &signature).is_ok());
    let wrong = Custody::local(RootKey::generate().unwrap().0.wrapper().unwrap());
    let (store, feed) = (fixture.store.clone(), fixture.feed.clone());
    let audit = recording(&store).await;
    let error = Keys::load_or_create(store, feed, wrong, audit, settings(ISSUER)).await;
    assert!(matches!(error, Err(KeysError::Wrapped { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_key_does_not_sign_until_it_is_published() {
    let fixture = Fixture::start().await;
    let keys = keys(&fixture, &RootKey::generate().unwrap().0, ISSUER).await;
    let before = keys.active_kid().unwrap();
    let rotation = keys.rotate().await.unwrap();
    assert_eq!(rotation.active.as_ref(), Some(&before));
    assert!(matches!(keys.rotate().await, Err(KeysError::RotationUnderWay { .. })));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(keys.clone().run(shutdown.clone()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(keys.active_kid().unwrap(), before, "NATS is away, so no sidecar has it");
    assert_eq!(states(&keys).await, [SigningKeyState::Active, SigningKeyState::Pending]);
    assert_eq!(keys.jwks()["keys"].as_array().unwrap().len(), 2);
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_replaced_at_once_and_leaves_the_key_set() {
    let fixture = Fixture::start().await;
    let custody = Custody::local(RootKey::generate().unwrap().0.wrapper().unwrap());
    let (keys, audit) = keys_with(&fixture, custody, settings(ISSUER)).await;
    let revocations = revocations(&fixture, &keys, &audit);
    let stolen = keys.active_kid().unwrap();
    let revoked = revocations.revoke(&[Selector::Key(stolen.clone())], "test", None).await.unwrap();
    assert_ne!(keys.active_kid().unwrap(), stolen);
    assert_eq!(states(&keys).await, [SigningKeyState::Compromised, SigningKeyState::Active]);
    assert!(keys.issuers().get(ISSUER).unwrap().key(&stolen).is_none());
    let sets = fixture.sets().await;
    let changes: Vec<&Change> =
        sets.iter().filter(|set| set.revision <= revoked.revision).flat_map(|set| &set.changes).collect();
    assert!(changes.iter().any(|change| matches!(change, Change::Watermarks { kind: IdKind::Key, .. })));
    let last = changes.iter().rev().find_map(|change| match change {
        Change::IssuerKeys { keys, .. } => Some(keys),
        _ => None,
    });
    assert!(last.unwrap().iter().all(|key| key.kid() != stolen));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_former_issuer_are_withdrawn() {
    let fixture = Fixture::start().await;
    let root = RootKey::generate().unwrap().0;
    let former = keys(&fixture, &root, "https://former.test").await;
    keys(&fixture, &root, ISSUER).await;
    assert_eq!(states(&former).await, [SigningKeyState::Retired]);
}

/// A provider in memory that can be switched off.
#[derive(Default)]
struct Token {
    is_away: AtomicBool,
    kept: std::sync::Mutex<BTreeMap<Vec<u8>, EcdsaKeyPair>>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    fn set_away(&self, away: bool) {
        self.is_away.store(away, Ordering::SeqCst);
    }

    fn keys(&self) -> usize {
        self.kept.lock().unwrap().len()
    }

    fn answers(&self) -> Result<(), ProviderError> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(ProviderError::Unavailable { provider: "token", problem: "switched off".into() });
        }
        Ok(())
    }
}

impl KeyProvider for Token {
    fn name(&self) -> &'static str {
        "token"
    }

    fn generate(&self, _: Algorithm) -> BoxFuture<'_, Result<NewKey, ProviderError>> {
        async move {
            self.answers()?;
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let spki = pair.public_key().as_der().unwrap().as_ref().to_vec();
            let reference = crate::secret::sha256(&spki).to_vec();
            self.kept.lock().unwrap().insert(reference.clone(), pair);
            Ok(NewKey { spki, reference })
        }
        .boxed()
    }

    fn sign<'a>(
        &'a self,
        _: Algorithm,
        reference: &'a [u8],
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ProviderError>> {
        async move {
            self.answers()?;
            let kept = self.kept.lock().unwrap();
            Ok(kept[reference].sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec())
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, reference: &'a [u8]) -> BoxFuture<'a, Result<(), ProviderError>> {
        async move {
            self.answers()?;
            self.kept.lock().unwrap().remove(reference);
            Ok(())
        }
        .boxed()
    }
}

/// Keys that a [`Token`] keeps.
async fn with_token(fixture: &Fixture) -> (Arc<Token>, Keys, Revocations) {
    let token = Arc::new(Token::default());
    let provider: Arc<dyn KeyProvider> = Arc::clone(&token) as _;
    let wrapper = RootKey::generate().unwrap().0.wrapper().unwrap();
    let custody = Custody::local(wrapper).with(provider, Bounds::default());
    let (keys, audit) = keys_with(fixture, custody, settings(ISSUER)).await;
    let revocations = revocations(fixture, &keys, &audit);
    (token, keys, revocations)
}

async fn signs(keys: &Keys) -> bool {
    keys.sign_jwt("at+jwt", &serde_json::json!({})).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_key_dies_although_its_provider_is_away_and_its_successor_comes_with_the_provider() {
    let fixture = Fixture::start().await;
    let (token, keys, revocations) = with_token(&fixture).await;
    let stolen = keys.active_kid().unwrap();
    token.set_away(true);
    revocations.revoke(&[Selector::Key(stolen)], "test", None).await.unwrap();
    assert_eq!(states(&keys).await, [SigningKeyState::Compromised]);
    let refused = keys.sign_jwt("at+jwt", &serde_json::json!({})).await;
    assert!(matches!(refused, Err(KeysError::NoActiveKey)), "{refused:?}");
    assert!(keys.outage().is_some());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(keys.clone().run(shutdown.clone()));
    token.set_away(false);
    let healed = async {
        while !signs(&keys).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), healed).await.unwrap();
    assert_eq!(states(&keys).await, [SigningKeyState::Compromised, SigningKeyState::Active]);
    assert_eq!(keys.outage(), None);
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_keeps_the_keys_that_are_of_use_and_no_others() {
    let fixture = Fixture::start().await;
    let (token, keys, revocations) = with_token(&fixture).await;
    revocations.revoke(&[Selector::Key("of another issuer".into())], "test", None).await.unwrap();
    assert_eq!(token.keys(), 1, "no successor is made for a key that is not ours");
    let first = keys.active_kid().unwrap();
    let rotation = keys.rotate().await.unwrap();
    assert!(matches!(keys.rotate().await, Err(KeysError::RotationUnderWay { .. })));
    assert_eq!(token.keys(), 2, "one that signs, one that is pending");
    revocations.revoke(&[Selector::Key(first)], "test", None).await.unwrap();
    assert_eq!(keys.active_kid(), Some(rotation.pending), "the pending one takes over at once");
    assert_eq!(token.keys(), 1, "the dead one is removed, and none was made");
    assert!(signs(&keys).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_provider_is_told_and_no_other_key_takes_over() {
    let fixture = Fixture::start().await;
    let (token, keys, _) = with_token(&fixture).await;
    token.set_away(true);
    assert!(matches!(
        keys.sign_jwt("at+jwt", &serde_json::json!({})).await,
        Err(KeysError::Provider(ProviderError::Unavailable { .. }))
    ));
    assert!(keys.outage().is_some_and(|problem| problem.contains("switched off")));
    assert!(keys.rotate().await.is_err());
    assert_eq!(states(&keys).await, [SigningKeyState::Active]);
    token.set_away(false);
    assert!(signs(&keys).await);
    assert_eq!((keys.outage(), keys.signing_failures()), (None, 1));
}
