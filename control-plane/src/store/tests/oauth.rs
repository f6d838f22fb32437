//! Clients, sessions and what may be used once: what one row decides for all replicas.

use serde_json::json;

use super::*;
use crate::api_keys::{ApiKey, ApiKeyStatus};
use crate::keys::{KeyRecord, SigningKeyState};
use crate::realms::{Realm, RealmSettings, RealmStatus};
use crate::registry::{Client, ClientConfiguration, ClientStatus, SecretHashes};
use crate::sessions::{DisabledSubject, Session, SessionDetails, SessionStatus};
use crate::store::retention::{DAY_MS, Kept};
use crate::store::sessions::{Refresh, Scopes};
use crate::store::signing_keys::{self, StoredKey};
use crate::store::{api_keys, clients, opaque_tokens, realms, sessions, single_use, subjects};

contract!(
    a_client_is_kept_whole_and_within_its_realm,
    a_client_from_before_its_configuration_column_is_read,
    a_generation_is_rotated_once_whoever_asks,
    a_rotation_is_repeated_within_its_grace_only,
    whatever_ends_a_session_stops_its_refresh,
    a_session_is_not_opened_for_who_is_disabled,
    something_is_used_once_at_all_replicas,
    opaque_tokens_are_kept_until_they_are_over,
    an_api_key_before_a_rotation_is_found_until_its_overlap_ends,
    sessions_are_listed_by_their_subject_and_purged_when_they_are_over,
    realms_are_kept_and_their_changes_are_told,
    issuers_are_those_of_their_realm,
);

const ISSUER: &str = "https://id.example.com";

pub(super) fn client(id: &str) -> Client {
    Client {
        client_id: id.into(),
        configuration: ClientConfiguration {
            name: Some("n".into()),
            scopes: vec!["a".into()],
            claims: json!({"tenant": "acme"}).as_object().unwrap().clone(),
            ..ClientConfiguration::default()
        },
        status: ClientStatus::Active,
        previous_secret_expires_at: Some(9),
        created_at: 1,
        updated_at: 2,
    }
}

pub(super) async fn insert_client(store: &Store, realm: &str, client: &Client) -> Result<(), StoreError> {
    let hashes = SecretHashes { current: Some(vec![1; 32]), previous: None };
    transact!(store, |transaction| -> Result<(), StoreError> {
        clients::insert(transaction, realm, client, &hashes).await
    })
}

pub(super) fn session(id: &str) -> Session {
    Session {
        id: id.into(),
        realm: "default".into(),
        client_id: "c".into(),
        subject: "alice".into(),
        details: SessionDetails {
            scopes: vec!["a".into()],
            audiences: vec!["api".into()],
            ..Default::default()
        },
        bound_to: String::new(),
        generation: 1,
        status: SessionStatus::Active,
        opened_at: 1_000,
        refreshed_at: 1_000,
        idle_expires_at: 5_000,
        expires_at: 9_000,
        ended_at: None,
    }
}

pub(super) fn api_key(id: &str) -> ApiKey {
    ApiKey {
        id: id.into(),
        name: None,
        subject: "robot".into(),
        scopes: Vec::new(),
        audiences: vec!["api".into()],
        networks: Vec::new(),
        status: ApiKeyStatus::Active,
        expires_at: 1_000,
        previous_expires_at: None,
        last_used_at: None,
        created_at: 1,
        updated_at: 1,
    }
}

pub(super) fn subject_id() -> Id {
    Id::of(IdKind::Subject, ISSUER, "alice")
}

async fn opened(store: &Store, session: &Session) -> bool {
    sessions::insert(store, session, subject_id(), &session.client_id).await.unwrap()
}

fn scopes(id: &str) -> Scopes {
    Scopes::of(ISSUER, "default", "c", id)
}

fn asked(id: &str, generation: u64, now: i64) -> Refresh<'_> {
    Refresh {
        id,
        generation,
        realm: "default",
        client_id: "c",
        proofs: ["", ""],
        now: UnixMillis(now),
        grace_since: UnixMillis(now - 100),
        idle_expires_at: UnixMillis(now + 4_000),
    }
}

async fn refreshed(store: &Store, refresh: &Refresh<'_>) -> Option<Session> {
    sessions::refresh(store, refresh, scopes(refresh.id)).await.unwrap()
}

/// A store with an active client and one session.
async fn with_session(place: &Place) -> Store {
    let store = place.open().await;
    insert_client(&store, "default", &client("c")).await.unwrap();
    assert!(opened(&store, &session("s")).await);
    store
}

async fn a_client_is_kept_whole_and_within_its_realm(place: Place) {
    let store = place.open().await;
    insert_client(&store, "default", &client("c")).await.unwrap();
    insert_client(&store, "tenant", &client("c")).await.unwrap();
    assert!(matches!(insert_client(&store, "tenant", &client("c")).await, Err(StoreError::Exists)));
    let (read, hashes) = clients::get(&store, "tenant", "c").await.unwrap().unwrap();
    // The end of an overlap is written with a rotation, not with the client.
    assert_eq!(read, Client { previous_secret_expires_at: None, ..client("c") });
    assert_eq!(hashes.current, Some(vec![1; 32]));
    assert!(
        clients::get(&store, "default", "tenant/c").await.unwrap().is_none(),
        "no way into another realm"
    );
    let changed = Client { status: ClientStatus::Disabled, ..client("c") };
    let hashes = SecretHashes { current: Some(vec![2; 32]), previous: Some(vec![1; 32]) };
    transact!(store, |transaction| -> Result<(), StoreError> {
        assert!(clients::locked(transaction, "tenant", "c").await?.is_some());
        clients::update(transaction, "tenant", &changed, &hashes).await
    })
    .unwrap();
    assert!(clients::get(&store, "tenant", "c").await.unwrap().unwrap() == (changed, hashes));
    assert_eq!(clients::get(&store, "default", "c").await.unwrap().unwrap().0.status, ClientStatus::Active);
    insert_client(&store, "tenant", &client("d")).await.unwrap();
    let ids = async |after| -> Vec<String> {
        let listed = clients::list(&store, "tenant", after, 10).await.unwrap();
        listed.into_iter().map(|client| client.client_id).collect()
    };
    assert_eq!(ids("").await, ["c", "d"]);
    assert_eq!(ids("c").await, ["d"]);
    clients::delete(&store, "tenant", "c").await.unwrap();
    assert!(clients::get(&store, "tenant", "c").await.unwrap().is_none());
    assert!(clients::get(&store, "default", "c").await.unwrap().is_some());
}

async fn a_client_from_before_its_configuration_column_is_read(place: Place) {
    let store = place.open().await;
    query(
        "INSERT INTO clients (client_id, name, secret_hash, scopes, audiences, access_token_lifetime_s, status, \
         created_at, updated_at) VALUES ('old', 'n', $1, '[\"a\"]', '[\"api\"]', 60, 'active', 1, 2)",
    )
    .bind(vec![1; 32])
    .execute_alone(&store)
    .await
    .unwrap();
    let (read, _) = clients::get(&store, "default", "old").await.unwrap().unwrap();
    let expected = ClientConfiguration {
        name: Some("n".into()),
        scopes: vec!["a".into()],
        audiences: vec!["api".into()],
        access_token_lifetime_seconds: Some(60),
        ..ClientConfiguration::default()
    };
    assert_eq!(read.configuration, expected);
}

async fn a_generation_is_rotated_once_whoever_asks(place: Place) {
    let store = with_session(&place).await;
    let another = if store.is_shared() { place.open().await } else { store.clone() };
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..20 {
        let store = if number % 2 == 0 { store.clone() } else { another.clone() };
        asking.spawn(async move { refreshed(&store, &asked("s", 1, 2_000)).await });
    }
    let answers = asking.join_all().await;
    assert!(answers.into_iter().all(|answer| answer.is_some_and(|session| session.generation == 2)));
    assert_eq!(sessions::get(&store, "s").await.unwrap().unwrap().generation, 2);
    assert!(refreshed(&store, &asked("s", 3, 2_000)).await.is_none(), "nobody has that one");
}

async fn a_rotation_is_repeated_within_its_grace_only(place: Place) {
    let store = with_session(&place).await;
    let first = refreshed(&store, &asked("s", 1, 2_000)).await.unwrap();
    assert_eq!((first.refreshed_at, first.idle_expires_at), (2_000, 6_000));
    let again = refreshed(&store, &asked("s", 1, 2_100)).await.unwrap();
    assert_eq!((again.generation, again.refreshed_at, again.idle_expires_at), (2, 2_000, 6_000));
    assert!(refreshed(&store, &asked("s", 1, 2_101)).await.is_none());
    assert_eq!(refreshed(&store, &asked("s", 2, 2_101)).await.unwrap().generation, 3);
    assert!(refreshed(&store, &asked("s", 1, 2_101)).await.is_none(), "older than its predecessor");
}

async fn whatever_ends_a_session_stops_its_refresh(place: Place) {
    let store = with_session(&place).await;
    let mut number = 0;
    let mut fresh = async || {
        number += 1;
        let id = format!("session-{number}");
        assert!(opened(&store, &session(&id)).await);
        id
    };
    // Its row.
    for (changed, now) in [
        (Refresh { client_id: "d", ..asked("", 1, 2_000) }, 2_000),
        (Refresh { realm: "tenant", ..asked("", 1, 2_000) }, 2_000),
        (asked("", 1, 5_000), 5_000),
        (asked("", 1, 9_000), 9_000),
    ] {
        let id = fresh().await;
        assert!(refreshed(&store, &Refresh { id: &id, ..changed }).await.is_none(), "{now}");
    }
    let id = fresh().await;
    let ended = transact!(store, |transaction| -> Result<(bool, bool), StoreError> {
        let now = UnixMillis(1_500);
        let first = sessions::end(transaction, &id, SessionStatus::Reused, now).await?;
        Ok((first, sessions::end(transaction, &id, SessionStatus::Ended, now).await?))
    });
    assert_eq!(ended.unwrap(), (true, false), "once");
    assert!(refreshed(&store, &asked(&id, 1, 2_000)).await.is_none());
    // What it is bound to.
    let bound = Session { bound_to: "jkt:k".into(), ..session("bound") };
    assert!(opened(&store, &bound).await);
    assert!(refreshed(&store, &asked("bound", 1, 2_000)).await.is_none());
    let proved = Refresh { proofs: ["jkt:k", ""], ..asked("bound", 1, 2_000) };
    assert!(refreshed(&store, &proved).await.is_some());
    // A disabled subject, and watermarks: each over one scope, the older ones without effect.
    let scopes_of = scopes("last");
    let kinds = [
        (IdKind::Session, scopes_of.session),
        (IdKind::Client, scopes_of.client),
        (IdKind::Realm, scopes_of.realm),
        (IdKind::Issuer, scopes_of.issuer),
        (IdKind::Subject, subject_id()),
    ];
    assert!(opened(&store, &session("last")).await);
    for (kind, id) in kinds {
        let raise = async |instant| {
            transact!(store, |transaction| -> Result<(), StoreError> {
                enforcement::raise_watermarks(transaction, kind, &[(id, UnixMillis(instant))]).await.map(drop)
            })
            .unwrap();
        };
        raise(999).await;
        assert!(!sessions::is_revoked(&store, "last", scopes_of).await.unwrap(), "{kind:?}");
        raise(1_000).await;
        assert!(sessions::is_revoked(&store, "last", scopes_of).await.unwrap(), "{kind:?}");
        assert!(refreshed(&store, &asked("last", 1, 2_000)).await.is_none(), "{kind:?}");
        query("DELETE FROM watermarks").execute_alone(&store).await.unwrap();
    }
    assert!(refreshed(&store, &asked("last", 1, 2_000)).await.is_some());
}

async fn a_session_is_not_opened_for_who_is_disabled(place: Place) {
    let store = place.open().await;
    assert!(!opened(&store, &session("s")).await, "no client");
    insert_client(&store, "default", &Client { status: ClientStatus::Disabled, ..client("c") })
        .await
        .unwrap();
    assert!(!opened(&store, &session("s")).await);
    query("UPDATE clients SET status = 'active'").execute_alone(&store).await.unwrap();
    assert!(opened(&store, &session("s")).await);
    let alice =
        DisabledSubject { subject: "alice".into(), reason: None, actor: "admin".into(), created_at: 1 };
    transact!(store, |transaction| -> Result<(), StoreError> {
        subjects::disable(transaction, "default", &alice).await?;
        subjects::disable(transaction, "default", &alice).await
    })
    .unwrap();
    assert!(!opened(&store, &session("t")).await);
    assert!(refreshed(&store, &asked("s", 1, 2_000)).await.is_none());
    assert!(sessions::is_revoked(&store, "s", scopes("s")).await.unwrap());
    assert!(!subjects::is_disabled(&store, "tenant", "alice").await.unwrap());
    assert_eq!(subjects::list(&store, "default", "", 10).await.unwrap(), [alice]);
    assert!(subjects::enable(&store, "default", "alice").await.unwrap());
    assert!(!subjects::enable(&store, "default", "alice").await.unwrap());
    assert!(opened(&store, &session("t")).await);
}

async fn something_is_used_once_at_all_replicas(place: Place) {
    let store = place.open().await;
    let another = if store.is_shared() { place.open().await } else { store.clone() };
    let mut using = tokio::task::JoinSet::new();
    for number in 0..20 {
        let store = if number % 2 == 0 { store.clone() } else { another.clone() };
        using.spawn(async move { single_use::first_use(&store, &[7; 32], UnixMillis(10)).await.unwrap() });
    }
    assert_eq!(using.join_all().await.into_iter().filter(|first| *first).count(), 1);
    assert!(single_use::first_use(&store, &[8; 32], UnixMillis(20)).await.unwrap());
    assert_eq!(single_use::purge(&store, UnixMillis(20), 10).await.unwrap(), 1);
    assert!(!single_use::first_use(&store, &[8; 32], UnixMillis(20)).await.unwrap());
}

async fn opaque_tokens_are_kept_until_they_are_over(place: Place) {
    let store = place.open().await;
    let claims = json!({"sub": "alice", "aud": ["a"], "exp": 10}).as_object().unwrap().clone();
    opaque_tokens::insert(&store, &[1; 32], "default", &claims, UnixMillis(10)).await.unwrap();
    assert_eq!(
        opaque_tokens::by_digest(&store, &[1; 32]).await.unwrap(),
        Some(("default".to_owned(), claims))
    );
    assert_eq!(opaque_tokens::by_digest(&store, &[2; 32]).await.unwrap(), None);
    assert_eq!(opaque_tokens::purge(&store, UnixMillis(10), 10).await.unwrap(), 0);
    assert_eq!(opaque_tokens::purge(&store, UnixMillis(11), 10).await.unwrap(), 1);
    assert_eq!(opaque_tokens::by_digest(&store, &[1; 32]).await.unwrap(), None);
}

async fn sessions_are_listed_by_their_subject_and_purged_when_they_are_over(place: Place) {
    let store = with_session(&place).await;
    for id in ["b", "a"] {
        assert!(opened(&store, &session(id)).await);
    }
    let ids = async |after| -> Vec<String> {
        let listed = sessions::of_subject(&store, subject_id(), after, 2).await.unwrap();
        listed.into_iter().map(|session| session.id).collect()
    };
    assert_eq!(ids("").await, ["a", "b"]);
    assert_eq!(ids("b").await, ["s"]);
    transact!(store, |transaction| -> Result<(), StoreError> {
        sessions::end_named(transaction, "tenant", &["b"], UnixMillis(6)).await?;
        sessions::end_named(transaction, "default", &["a", "none"], UnixMillis(7)).await?;
        sessions::end_of_subject(transaction, subject_id(), UnixMillis(8)).await.map(drop)
    })
    .unwrap();
    let ended = async |id| sessions::get(&store, id).await.unwrap().unwrap().ended_at;
    assert_eq!((ended("a").await, ended("b").await), (Some(7), Some(8)));
    let purged = async |at, limit| {
        let now = UnixMillis(3 * DAY_MS + at);
        retention::purge(&store, Kept::Sessions, 3, now, limit).await.unwrap()
    };
    assert_eq!(purged(7, 2).await, 0, "ended, and kept for its three days");
    assert_eq!(purged(8, 2).await, 1);
    assert!(opened(&store, &session("c")).await);
    assert_eq!(purged(9_000, 1).await, 1, "bounded");
    assert_eq!(purged(9_000, 2).await, 1, "one that is open is not over before it expires");
    assert_eq!(purged(9_001, 2).await, 1);
    assert_eq!(sessions::get(&store, "c").await.unwrap(), None);
}

pub(super) fn realm(name: &str) -> Realm {
    Realm {
        name: name.into(),
        settings: RealmSettings { session_idle_seconds: Some(60), ..RealmSettings::default() },
        status: RealmStatus::Active,
        created_at: 1,
        updated_at: 2,
    }
}

async fn realms_are_kept_and_their_changes_are_told(place: Place) {
    let store = place.open().await;
    let another = if store.is_shared() { place.open().await } else { store.clone() };
    let insert = async |realm: &Realm| {
        transact!(store, |transaction| -> Result<(), StoreError> { realms::insert(transaction, realm).await })
    };
    for name in ["b", "a"] {
        insert(&realm(name)).await.unwrap();
    }
    assert!(matches!(insert(&realm("a")).await, Err(StoreError::Exists)));
    assert_eq!(realms::get(&store, "a").await.unwrap(), Some(realm("a")));
    assert_eq!(realms::get(&store, "c").await.unwrap(), None);
    assert_eq!(realms::list(&store, "", 10).await.unwrap(), [realm("a"), realm("b")]);
    assert_eq!(realms::list(&store, "a", 10).await.unwrap(), [realm("b")]);
    let before = another.version(versions::Topic::Realms);
    let changed = Realm { status: RealmStatus::Disabled, settings: RealmSettings::default(), ..realm("a") };
    transact!(store, |transaction| -> Result<(), StoreError> {
        assert!(realms::locked(transaction, "a").await?.is_some());
        realms::update(transaction, &changed).await
    })
    .unwrap();
    assert_eq!(realms::get(&another, "a").await.unwrap(), Some(changed));
    another.look_at_versions().await.unwrap();
    assert!(another.version(versions::Topic::Realms) > before, "copies are known to be stale");
}

async fn issuers_are_those_of_their_realm(place: Place) {
    let store = place.open().await;
    let key = |kid: &str, issuer: &str, realm: &str| StoredKey {
        record: KeyRecord {
            kid: kid.into(),
            issuer: issuer.into(),
            provider: "local".to_owned(),
            algorithm: atm_core::key::Algorithm::ES256,
            state: SigningKeyState::Active,
            created_at: 1,
            activated_at: None,
            retiring_at: None,
            retired_at: None,
        },
        realm: realm.into(),
        spki: vec![1],
        wrapped: vec![2],
    };
    let found = transact!(store, |transaction| -> Result<_, StoreError> {
        for key in [key("1", "i", "default"), key("2", "i/realms/a", "a"), key("3", "old/realms/a", "a")] {
            signing_keys::insert(transaction, &key).await?;
        }
        let of_a = signing_keys::issuers_of_realm(transaction, "a").await?;
        Ok((signing_keys::issuers_of_realm(transaction, "default").await?, of_a))
    });
    assert_eq!(
        found.unwrap(),
        (vec!["i".to_owned()], vec!["i/realms/a".to_owned(), "old/realms/a".to_owned()])
    );
}

async fn an_api_key_before_a_rotation_is_found_until_its_overlap_ends(place: Place) {
    let store = place.open().await;
    let mut key = api_key("k");
    let rotate = async |key: &ApiKey, hash: [u8; 32]| {
        transact!(store, |transaction| -> Result<(), StoreError> {
            api_keys::rotate(transaction, key, &hash).await
        })
        .unwrap();
    };
    let expires = async |hash: [u8; 32], now| {
        let found = api_keys::by_digest(&store, &hash, UnixMillis(now)).await.unwrap();
        found.map(|key| key.expires_at)
    };
    transact!(store, |transaction| -> Result<(), StoreError> {
        api_keys::insert(transaction, &key, &[1; 32]).await
    })
    .unwrap();
    key.previous_expires_at = Some(50_000);
    rotate(&key, [2; 32]).await;
    assert_eq!(expires([2; 32], 10).await, Some(1_000));
    assert_eq!(expires([1; 32], 49_999).await, Some(50), "no longer than the overlap");
    assert_eq!(expires([1; 32], 50_000).await, None);
    key.previous_expires_at = None;
    rotate(&key, [3; 32]).await;
    assert_eq!((expires([2; 32], 10).await, expires([3; 32], 10).await), (None, Some(1_000)));
    for (now, noted) in [(100, 100), (150, 100), (250, 250)] {
        api_keys::used(&store, "k", UnixMillis(now), UnixMillis(now - 100)).await.unwrap();
        assert_eq!(api_keys::get(&store, "k").await.unwrap().unwrap().last_used_at, Some(noted));
    }
}
