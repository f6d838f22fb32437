//! What is past goes when its realm keeps it no longer.

use super::oauth::{client, realm, session, subject_id};
use super::*;
use crate::realms::{Realm, RealmSettings};
use crate::registry::{Client, SecretHashes};
use crate::revocation::{RevocationFilter, RevocationRecord};
use crate::sessions::Session;
use crate::store::retention::{DAY_MS, Kept};
use crate::store::{clients, enforcement, realms, retention, sessions};

contract!(each_realm_keeps_what_is_past_as_long_as_it_says,);

async fn each_realm_keeps_what_is_past_as_long_as_it_says(place: Place) {
    let store = place.open().await;
    let days = |days| RealmSettings {
        session_retention_days: days,
        revocation_retention_days: days,
        ..RealmSettings::default()
    };
    let realms =
        [("default", None), ("short", Some(1)), ("long", Some(5)), ("ever", Some(0)), ("plain", None)];
    for (name, own) in realms {
        let client = Client { client_id: "app".into(), ..client("app") };
        transact!(store, |transaction| -> Result<(), StoreError> {
            let record = RevocationRecord {
                id: name.into(),
                kind: "client".into(),
                value: "app".into(),
                issuer: None,
                number: 1,
                not_after: 1,
                reason: None,
                actor: "ann".into(),
                created_at: 9_000,
            };
            enforcement::record(transaction, name, &record).await?;
            clients::insert(transaction, name, &client, &SecretHashes::default()).await?;
            if name == "default" {
                return Ok(());
            }
            realms::insert(transaction, &Realm { settings: days(own), ..realm(name) }).await
        })
        .unwrap();
        let session = Session { realm: name.into(), client_id: "app".into(), ..session(name) };
        let key = clients::key(name, "app").into_owned();
        assert!(sessions::insert(&store, &session, subject_id(), &key).await.unwrap());
    }
    let left = async |day: i64| {
        let now = UnixMillis(day * DAY_MS + 9_001);
        for kept in [Kept::Sessions, Kept::Revocations] {
            while retention::purge(&store, kept, 3, now, 1).await.unwrap() > 0 {}
        }
        let mut left = Vec::new();
        for (name, _) in realms {
            let any = RevocationFilter::default();
            let is_recorded = !enforcement::list(&store, name, &any, None, 10).await.unwrap().is_empty();
            assert_eq!(sessions::get(&store, name).await.unwrap().is_some(), is_recorded, "{name}");
            if is_recorded {
                left.push(name);
            }
        }
        left
    };
    assert_eq!(left(0).await, ["default", "short", "long", "ever", "plain"]);
    assert_eq!(left(1).await, ["default", "long", "ever", "plain"]);
    assert_eq!(left(3).await, ["long", "ever"]);
    assert_eq!(left(5).await, ["ever"]);
    assert_eq!(left(40_000).await, ["ever"]);
    assert_eq!(retention::purge(&store, Kept::Sessions, 0, UnixMillis(i64::MAX), 10).await.unwrap(), 0);
}
