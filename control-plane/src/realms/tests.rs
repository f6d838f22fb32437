use std::sync::Mutex as StdMutex;

use super::*;
use crate::feed::tests::Fixture;
use crate::keys::tests::{ISSUER, keys};
use crate::revocation::Revocations;
use crate::secret::RootKey;

/// Realms, the names of those that were made ready so far, and what ends with each.
struct Ready {
    realms: Realms,
    made: Arc<StdMutex<Vec<(String, CancellationToken)>>>,
    _fixture: Fixture,
}

impl Ready {
    async fn start() -> Self {
        let fixture = Fixture::start().await;
        let (store, clock) = (fixture.store.clone(), Arc::clone(&fixture.clock));
        let keys = keys(&fixture, &RootKey::generate().unwrap().0, ISSUER).await;
        let audit = crate::audit::tests::recording(&store).await;
        let revocations =
            Revocations::new(store.clone(), fixture.feed.clone(), Arc::clone(&clock), keys, audit, ISSUER);
        let made = Arc::<StdMutex<Vec<_>>>::default();
        let noted = Arc::clone(&made);
        let serve: Arc<Serve> = Arc::new(move |realm: Realm| {
            let (revocations, ends) = (revocations.clone(), CancellationToken::new());
            noted.lock().unwrap().push((realm.name, ends.clone()));
            let oauth = (realm.status == RealmStatus::Active).then(Router::new);
            Box::pin(std::future::ready(Ok(Served {
                oauth,
                admin: Router::new(),
                revocations,
                ends: ends.drop_guard(),
            })))
        });
        Self { realms: Realms::new(store, clock, serve), made, _fixture: fixture }
    }

    fn made(&self) -> Vec<String> {
        self.made.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_is_made_ready_when_it_changed_and_not_when_another_did() {
    let ready = Ready::start().await;
    let realms = &ready.realms;
    for name in ["a", "b"] {
        realms.create(name, RealmSettings::default()).await.unwrap();
    }
    for name in ["a", "b", "a"] {
        assert!(realms.served(name).await.unwrap().oauth.is_some());
    }
    assert_eq!(ready.made(), ["a", "b"]);
    let settings = RealmSettings { session_idle_seconds: Some(60), ..RealmSettings::default() };
    realms.change("b", None, Some(settings), "x").await.unwrap();
    for name in ["a", "b"] {
        realms.served(name).await.unwrap();
    }
    assert_eq!(ready.made(), ["a", "b", "b"]);
    realms.change("b", Some(RealmStatus::Disabled), None, "x").await.unwrap();
    assert!(realms.served("b").await.unwrap().oauth.is_none());
    assert!(matches!(realms.served("c").await, Err(RealmError::NotFound)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_that_nobody_asks_for_is_forgotten_with_its_tasks() {
    let ready = Ready::start().await;
    for name in ["a", "b"] {
        ready.realms.create(name, RealmSettings::default()).await.unwrap();
    }
    let now = ready.realms.clock.wall();
    let after = |minutes: i64| UnixMillis(now.0 + minutes * 60_000);
    ready.realms.forget_idle(after(9));
    ready.realms.served("a").await.unwrap();
    assert_eq!(ready.made().len(), 2, "kept for a while");
    ready.realms.forget_idle(after(11));
    let ended = |at: usize| ready.made.lock().unwrap()[at].1.is_cancelled();
    assert!(ended(0) && ended(1));
    ready.realms.served("b").await.unwrap();
    assert_eq!(ready.made(), ["a", "b", "b"]);
    assert!(!ended(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_realms_are_kept_ready_than_fit() {
    let ready = Ready::start().await;
    for number in 0..SERVED + 40 {
        ready.realms.create(&format!("r{number}"), RealmSettings::default()).await.unwrap();
    }
    let alive = ready.made.lock().unwrap().iter().filter(|(_, ends)| !ends.is_cancelled()).count();
    assert!(alive <= SERVED, "{alive}");
    assert_eq!(ready.realms.list(Some("r5"), 3).await.unwrap().len(), 3);
}
