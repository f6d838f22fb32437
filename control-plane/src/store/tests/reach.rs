//! What a revocation would hit: only what its realm has.

use super::oauth::{api_key, client, insert_client, session};
use super::*;
use crate::api_keys::ApiKey;
use crate::revocation::Selector;
use crate::sessions::Session;
use crate::store::reach::{self, Home, Reach};
use crate::store::{api_keys, sessions};

contract!(a_realm_is_counted_apart_from_others, what_has_ended_is_not_counted);

const DEFAULT: Home<'_> = Home { realm: "default", issuer: "https://id.example.com" };
const TENANT: Home<'_> = Home { realm: "tenant", issuer: "https://id.example.com/realms/tenant" };

/// In each of two realms a client `c` with a session of `alice`, the default one's second client with a session, and an API key.
async fn two_realms(place: &Place) -> Store {
    let store = place.open().await;
    for (home, client_id, id) in [(DEFAULT, "c", "s"), (DEFAULT, "d", "s2"), (TENANT, "c", "s3")] {
        insert_client(&store, home.realm, &client(client_id)).await.unwrap();
        let opened = Session { realm: home.realm.into(), client_id: client_id.into(), ..session(id) };
        let subject = Id::of(IdKind::Subject, home.issuer, "alice");
        let key = crate::store::clients::key(home.realm, client_id).into_owned();
        assert!(sessions::insert(&store, &opened, subject, &key).await.unwrap());
    }
    transact!(store, |transaction| -> Result<(), StoreError> {
        let key = ApiKey { subject: "alice".into(), ..api_key("k") };
        api_keys::insert(transaction, &key, &[1; 32]).await
    })
    .unwrap();
    store
}

async fn hit(store: &Store, home: Home<'_>, selector: Selector) -> [u64; 3] {
    let Reach { sessions, clients, api_keys, .. } =
        reach::of(store, &selector, home, UnixMillis(2_000), UnixMillis(2_000)).await.unwrap();
    [sessions, clients, api_keys]
}

async fn a_realm_is_counted_apart_from_others(place: Place) {
    let store = two_realms(&place).await;
    let named = |name: &str| name.to_owned();
    for (home, selector, expected) in [
        (DEFAULT, Selector::Client(named("c")), [1, 1, 0]),
        (TENANT, Selector::Client(named("c")), [1, 1, 0]),
        (TENANT, Selector::Client(named("d")), [0, 0, 0]),
        // The key that the tenant's client is stored by is nobody's id.
        (DEFAULT, Selector::Client(named("tenant/c")), [0, 0, 0]),
        (DEFAULT, Selector::Session(named("s")), [1, 0, 0]),
        (TENANT, Selector::Session(named("s")), [0, 0, 0]),
        (DEFAULT, Selector::Session(named("s3")), [0, 0, 0]),
        (DEFAULT, Selector::Subject(named("alice")), [2, 0, 1]),
        (TENANT, Selector::Subject(named("alice")), [1, 0, 0]),
        (DEFAULT, Selector::Realm(named("default")), [2, 2, 1]),
        (DEFAULT, Selector::Realm(named("tenant")), [1, 1, 0]),
        (DEFAULT, Selector::Realm(named("nobody")), [0, 0, 0]),
        (DEFAULT, Selector::Issuer(DEFAULT.issuer.to_owned()), [2, 2, 1]),
        (DEFAULT, Selector::Issuer(TENANT.issuer.to_owned()), [1, 1, 0]),
        (TENANT, Selector::Issuer(TENANT.issuer.to_owned()), [1, 1, 0]),
        (DEFAULT, Selector::Issuer(named("https://elsewhere.example")), [0, 0, 0]),
    ] {
        assert_eq!(hit(&store, home, selector.clone()).await, expected, "{} {selector:?}", home.realm);
    }
    let of_issuer = |issuer: Option<&str>| Selector::Token {
        jti: named("k"),
        issuer: issuer.map(ToOwned::to_owned),
        expires_at: None,
    };
    assert_eq!(hit(&store, DEFAULT, of_issuer(None)).await, [0, 0, 1]);
    assert_eq!(hit(&store, DEFAULT, of_issuer(Some(DEFAULT.issuer))).await, [0, 0, 1]);
    assert_eq!(hit(&store, DEFAULT, of_issuer(Some(TENANT.issuer))).await, [0, 0, 0]);
    assert_eq!(hit(&store, TENANT, of_issuer(None)).await, [0, 0, 0]);
}

async fn what_has_ended_is_not_counted(place: Place) {
    let store = two_realms(&place).await;
    let everything = Selector::Realm("default".to_owned());
    let counted = async |not_after, now| {
        reach::of(&store, &everything, DEFAULT, UnixMillis(not_after), UnixMillis(now)).await.unwrap()
    };
    assert_eq!(counted(999, 2_000).await.sessions, 0, "opened later");
    assert_eq!(counted(1_000, 2_000).await.sessions, 2);
    assert_eq!(counted(9_000, 5_000).await.sessions, 0, "idle for too long");
    transact!(store, |transaction| -> Result<(), StoreError> {
        sessions::end_named(transaction, "default", &["s"], UnixMillis(1_500)).await
    })
    .unwrap();
    assert_eq!(counted(2_000, 2_000).await.sessions, 1);
}
