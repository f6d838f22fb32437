use atm_core::id::IdKind;
use atm_proto::change::Change;
use tokio_util::sync::CancellationToken;

use super::*;
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
    }
}

pub(crate) async fn keys(fixture: &Fixture, root: &RootKey, issuer: &str) -> Keys {
    let wrapper = root.wrapper().unwrap();
    Keys::load_or_create(fixture.store.clone(), fixture.feed.clone(), wrapper, settings(issuer))
        .await
        .unwrap()
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
    assert_eq!(again.active_signer().kid(), first.active_signer().kid());
    assert_eq!(states(&again).await, [SigningKeyState::Active]);
    assert_eq!(again.jwks()["keys"].as_array().unwrap().len(), 1);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let issuer = again.issuers();
    let key = issuer.get(ISSUER).unwrap().key(again.active_signer().kid()).unwrap();
    assert!(key.verify(message.as_bytes(), &signature).is_ok());
    let wrong = RootKey::generate().unwrap().0.wrapper().unwrap();
    let error =
        Keys::load_or_create(fixture.store.clone(), fixture.feed.clone(), wrong, settings(ISSUER)).await;
    assert!(matches!(error, Err(KeysError::Wrapped { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_key_does_not_sign_until_it_is_published() {
    let fixture = Fixture::start().await;
    let keys = keys(&fixture, &RootKey::generate().unwrap().0, ISSUER).await;
    let before = keys.active_signer().kid().to_owned();
    let rotation = keys.rotate().await.unwrap();
    assert_eq!(rotation.active, before);
    assert!(matches!(keys.rotate().await, Err(KeysError::RotationUnderWay { .. })));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(keys.clone().run(shutdown.clone()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(keys.active_signer().kid(), before, "NATS is away, so no sidecar has it");
    assert_eq!(states(&keys).await, [SigningKeyState::Active, SigningKeyState::Pending]);
    assert_eq!(keys.jwks()["keys"].as_array().unwrap().len(), 2);
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_replaced_at_once_and_leaves_the_key_set() {
    let fixture = Fixture::start().await;
    let keys = keys(&fixture, &RootKey::generate().unwrap().0, ISSUER).await;
    let clock = Arc::clone(&fixture.clock);
    let revocations =
        Revocations::new(fixture.store.clone(), fixture.feed.clone(), clock, keys.clone(), ISSUER);
    let stolen = keys.active_signer().kid().to_owned();
    let revoked = revocations.revoke(&[Selector::Key(stolen.clone())], "test", None).await.unwrap();
    assert_ne!(keys.active_signer().kid(), stolen);
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
