use atm_core::key::{Issuer, Issuers};
use zeroize::Zeroizing;

use super::*;
use crate::audit::tests::recording;
use crate::authentication::key_sets::{KeySetSettings, KeySets};
use crate::authentication::{Authenticator, Credential, Presented};
use crate::feed::tests::Fixture;
use crate::keys::tests::{ISSUER, keys, keys_with, settings};
use crate::keys::{Custody, KeySettings};
use crate::registry::{ClientChange, ClientConfiguration, ClientStatus, NewClient, Registry, RegistryError};
use crate::secret::RootKey;

async fn revocations(fixture: &Fixture, root: &RootKey) -> Revocations {
    let keys = keys(fixture, root, ISSUER).await;
    let audit = recording(&fixture.store).await;
    Revocations::new(
        fixture.store.clone(),
        fixture.feed.clone(),
        Arc::clone(&fixture.clock),
        keys,
        audit,
        ISSUER,
    )
}

fn token(jti: &str, expires_at: Option<i64>) -> Selector {
    Selector::Token { jti: jti.into(), issuer: None, expires_at }
}

#[test]
fn selectors_read_as_the_api_writes_them() {
    let selector: Selector = serde_json::from_str(r#"{"token":{"jti":"a","expires_at":7200}}"#).unwrap();
    assert_eq!(selector, token("a", Some(7200)));
    let selector: Selector = serde_json::from_str(r#"{"subject":"alice"}"#).unwrap();
    assert_eq!(selector, Selector::Subject("alice".into()));
    for bad in [r#"{"token":{"jti":"a","x":1}}"#, r#"{"nobody":"x"}"#, r#"{"client":1}"#] {
        assert!(serde_json::from_str::<Selector>(bad).is_err(), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_is_one_revision_that_holds_all_of_it() {
    let fixture = Fixture::start().await;
    let root = RootKey::generate().unwrap().0;
    let revocations = revocations(&fixture, &root).await;
    let issued = fixture.clock.issue().await.unwrap();
    let selectors = [token("a", Some(7300)), token("b", None), Selector::Client("c".into())];
    let revoked = revocations.revoke(&selectors, "operator", Some("lost laptop")).await.unwrap();
    assert_eq!(revoked.revoked, 3);
    let sets = fixture.sets().await;
    let set = sets.iter().find(|set| set.revision == revoked.revision).unwrap();
    let (mut buckets, mut watermark) = (vec![], None);
    for change in &set.changes {
        match change {
            Change::RevokedTokens { bucket, .. } => buckets.push(bucket.0),
            Change::Watermarks { kind: IdKind::Client, entries } => watermark = Some(entries[0].1),
            _ => {}
        }
    }
    assert_eq!(buckets, [0, 2]);
    assert!(issued <= watermark.unwrap() && fixture.clock.issue().await.unwrap() > watermark.unwrap());
    let records = revocations.list(&RevocationFilter::default(), None, 10).await.unwrap();
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| record.actor == "operator"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_one_bad_selector_does_nothing() {
    let fixture = Fixture::start().await;
    let revocations = revocations(&fixture, &RootKey::generate().unwrap().0).await;
    let selectors = [token("a", None), token("", None), token("c", Some(-1))];
    let Err(RevocationError::Invalid(errors)) = revocations.revoke(&selectors, "x", None).await else {
        panic!()
    };
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["selectors[1].token", "selectors[2].token.expires_at"]);
    assert!(matches!(revocations.revoke(&[], "x", None).await, Err(RevocationError::Invalid(_))));
    assert!(revocations.list(&RevocationFilter::default(), None, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_revokes_nothing_of_another_one() {
    let fixture = Fixture::start().await;
    let root = RootKey::generate().unwrap().0;
    let issuer = format!("{ISSUER}/realms/a");
    let settings = KeySettings { realm: "a".into(), ..settings(&issuer) };
    let (keys, audit) = keys_with(&fixture, Custody::local(root.wrapper().unwrap()), settings).await;
    let (store, feed, clock) = (fixture.store.clone(), fixture.feed.clone(), Arc::clone(&fixture.clock));
    let of_a = Revocations::new(store, feed, clock, keys, audit, &issuer);
    let of_issuer =
        |issuer: &str| Selector::Token { jti: "t".into(), issuer: Some(issuer.to_owned()), expires_at: None };
    let others = [
        Selector::Realm("b".into()),
        Selector::Realm("default".into()),
        Selector::Issuer(ISSUER.into()),
        of_issuer(ISSUER),
        Selector::Client("c".into()),
        of_issuer(&issuer),
    ];
    let before = of_a.position();
    let order = Order { selectors: &others, before: None, actor: "x", reason: None };
    let refused = [
        of_a.carry_out_order(order).await.err(),
        of_a.preview(order).await.err(),
        of_a.schedule(order, fixture.clock.wall().0 + 60_000).await.err(),
        of_a.revoke_part("f", 0, order).await.err(),
    ];
    for error in refused {
        let Some(RevocationError::Invalid(errors)) = error else { panic!("{error:?}") };
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(
            fields,
            ["selectors[0].realm", "selectors[1].realm", "selectors[2].issuer", "selectors[3].token.issuer"]
        );
        assert!(errors[0].message.starts_with("must be a:"), "{}", errors[0].message);
        assert!(errors[3].message.starts_with(&format!("must be {issuer}:")), "{}", errors[3].message);
    }
    assert_eq!(of_a.position(), before, "nothing was done");
    let own = [Selector::Realm("a".into()), Selector::Issuer(issuer.clone()), of_issuer(&issuer)];
    of_a.revoke(&own, "x", None).await.unwrap();
    let of_default = revocations(&fixture, &root).await;
    of_default.revoke(&others, "x", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_travels_in_bounded_change_sets() {
    let fixture = Fixture::start().await;
    let revocations = revocations(&fixture, &RootKey::generate().unwrap().0).await;
    let selectors: Vec<_> = (0..60_000).map(|number| token(&format!("jti-{number}"), None)).collect();
    let revoked = revocations.revoke(&selectors, "x", None).await.unwrap();
    let sets = fixture.sets().await;
    assert!(revoked.revision >= 3);
    let mut ids = 0;
    for set in &sets {
        assert!(set.encode().len() < 512 * 1024);
        for change in &set.changes {
            if let Change::RevokedTokens { ids: some, .. } = change {
                ids += some.len();
            }
        }
    }
    assert_eq!(ids, 60_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_authenticates_until_it_is_disabled_and_its_tokens_go_with_it() {
    let fixture = Fixture::start().await;
    let root = RootKey::generate().unwrap().0;
    let revocations = revocations(&fixture, &root).await;
    let registry = Registry::new(
        fixture.store.clone(),
        Arc::clone(&fixture.clock),
        root.hasher().unwrap(),
        revocations.clone(),
        "default",
    );
    let authenticator = Authenticator::new(
        fixture.store.clone(),
        Arc::clone(&fixture.clock),
        root.hasher().unwrap(),
        "default",
        ISSUER,
        None,
        KeySets::new(KeySetSettings::default()),
    );
    let authenticate = async |id: &str, secret: &str| {
        let credential = Credential::Secret(Zeroizing::new(secret.to_owned()));
        authenticator.authenticate(&Presented { client_id: Some(id.to_owned()), credential }, None).await
    };
    let configuration =
        ClientConfiguration { scopes: vec!["orders.read".into()], ..ClientConfiguration::default() };
    let new = NewClient { client_id: None, configuration };
    let (client, secret) = registry.create_client(new).await.unwrap();
    let (id, secret) = (client.client_id.as_str(), secret.unwrap());
    assert_eq!(authenticate(id, &secret).await.unwrap(), client);
    let other = secret::mint(secret::SecretKind::ClientSecret).unwrap();
    for (id, secret) in [(id, other.as_str()), ("nobody", secret.as_str()), (id, "")] {
        assert!(authenticate(id, secret).await.is_err());
    }
    let again = NewClient { client_id: Some(id.into()), ..NewClient::default() };
    assert!(matches!(registry.create_client(again).await, Err(RegistryError::Exists)));
    let change = ClientChange { status: Some(ClientStatus::Disabled), ..ClientChange::default() };
    let disabled = registry.update(id, change, "operator").await.unwrap();
    assert_eq!((disabled.status, &disabled.configuration), (ClientStatus::Disabled, &client.configuration));
    assert!(authenticate(id, &secret).await.is_err());
    assert_eq!(revocations.list(&RevocationFilter::default(), None, 1).await.unwrap()[0].value, id);
    registry.delete(id, "operator").await.unwrap();
    assert!(matches!(registry.get(id).await, Err(RegistryError::NotFound)));
    assert!(matches!(registry.delete(id, "operator").await, Err(RegistryError::NotFound)));
}

/// A verified token of our issuer, issued at `issued_at`.
fn signed(issued_at: UnixMillis, jti: &str, subject: &str) -> AuthenticToken {
    let seconds = issued_at.0.div_euclid(1000);
    let claims = serde_json::json!({
        "iss": ISSUER, "sub": subject, "aud": "a", "client_id": "client", "jti": jti, "sid": "session",
        "iat": seconds, "exp": seconds + 300, "atm_iat_ms": issued_at.0,
    });
    let mut issuers = Issuers::default();
    issuers.set(Issuer::new(ISSUER, Some("default".into()), vec![]));
    let mut token =
        AuthenticToken::introspected(claims.as_object().unwrap().clone(), &issuers, issued_at).unwrap();
    token.ids.key = Some(Id::of(IdKind::Key, ISSUER, "kid"));
    token
}

#[tokio::test(flavor = "multi_thread")]
async fn introspection_sees_every_selector_and_spares_later_tokens() {
    for selector in [
        Selector::Session("session".into()),
        Selector::Subject("alice".into()),
        Selector::Client("client".into()),
        Selector::Realm("default".into()),
        Selector::Issuer(ISSUER.into()),
        Selector::Key("kid".into()),
        token("a", None),
    ] {
        let fixture = Fixture::start().await;
        let revocations = revocations(&fixture, &RootKey::generate().unwrap().0).await;
        let before = signed(fixture.clock.issue().await.unwrap(), "a", "alice");
        assert!(!revocations.is_revoked(&before).await.unwrap(), "{selector:?}");
        revocations.revoke(std::slice::from_ref(&selector), "x", None).await.unwrap();
        assert!(revocations.is_revoked(&before).await.unwrap(), "{selector:?}");
        let after = signed(fixture.clock.issue().await.unwrap(), "b", "alice");
        let dead = matches!(selector, Selector::Key(_));
        assert_eq!(revocations.is_revoked(&after).await.unwrap(), dead, "{selector:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_found_in_the_bucket_of_its_own_expiry() {
    let fixture = Fixture::start().await;
    let revocations = revocations(&fixture, &RootKey::generate().unwrap().0).await;
    let held = signed(fixture.clock.issue().await.unwrap(), "a", "alice");
    let selector = token("a", Some(held.claims.expires_at));
    revocations.revoke(&[selector], "x", None).await.unwrap();
    assert!(revocations.is_revoked(&held).await.unwrap());
}
