//! Scheduled revocations, parts of files, security events: each counts once.

use super::*;
use crate::revocation::{RevocationFilter, RevocationRecord, ScheduleStatus, Scheduled, Selector};
use crate::store::retention::{DAY_MS, Kept};

contract!(
    what_is_due_comes_in_order_and_once_settled_no_more,
    a_part_is_in_force_once_and_the_first_missing_one_is_known,
    a_security_event_counts_once,
    past_calls_are_found_by_what_they_named,
    settled_jobs_are_purged_in_batches,
);

fn scheduled(id: &str, at_ms: i64) -> Scheduled {
    Scheduled {
        id: id.to_owned(),
        at_ms,
        selectors: vec![Selector::Client("c".to_owned())],
        before_ms: Some(7),
        reason: Some("r".to_owned()),
        actor: "ann".to_owned(),
        status: ScheduleStatus::Pending,
        created_at: 1,
        settled_at: None,
    }
}

async fn settled(store: &Store, id: &str, status: ScheduleStatus, at: i64) {
    transact!(store, |transaction| -> Result<(), StoreError> {
        assert!(revocation_jobs::locked(transaction, id).await?.is_some());
        revocation_jobs::settle(transaction, id, status, None, UnixMillis(at)).await
    })
    .unwrap();
}

async fn what_is_due_comes_in_order_and_once_settled_no_more(place: Place) {
    let store = place.open().await;
    for (id, at) in [("c", 30), ("b", 20), ("a", 20)] {
        revocation_jobs::schedule(&store, &scheduled(id, at)).await.unwrap();
    }
    let due = async |now, after: Option<(i64, &'static str)>| {
        revocation_jobs::due(&store, UnixMillis(now), after, 2).await.unwrap()
    };
    assert_eq!(due(19, None).await, []);
    assert_eq!(due(30, None).await, [scheduled("a", 20), scheduled("b", 20)]);
    assert_eq!(due(30, Some((20, "b"))).await, [scheduled("c", 30)]);
    settled(&store, "a", ScheduleStatus::Done, 21).await;
    settled(&store, "b", ScheduleStatus::Cancelled, 22).await;
    assert_eq!(due(30, None).await, [scheduled("c", 30)]);
    let done = revocation_jobs::scheduled(&store, ScheduleStatus::Done, None, 10).await.unwrap();
    assert_eq!(
        done,
        [Scheduled { status: ScheduleStatus::Done, settled_at: Some(21), ..scheduled("a", 20) }]
    );
}

async fn a_part_is_in_force_once_and_the_first_missing_one_is_known(place: Place) {
    let store = place.open().await;
    assert_eq!(revocation_jobs::batch(&store, "f").await.unwrap(), (0, 0, 0, None));
    let ticket = Ticket::from_text("t".to_owned());
    let added = async |part| {
        transact!(store, |transaction| -> Result<(), StoreError> {
            revocation_jobs::add_part(transaction, "f", part, 5, &ticket, UnixMillis(1)).await
        })
    };
    for part in [0, 1, 3] {
        added(part).await.unwrap();
    }
    assert!(matches!(added(1).await, Err(StoreError::Exists)));
    revocation_jobs::part_sequenced(&store, "f", 1, 42).await.unwrap();
    assert_eq!(revocation_jobs::batch(&store, "f").await.unwrap(), (3, 15, 2, Some(42)));
    let found = transact!(store, |transaction| -> Result<_, StoreError> {
        Ok((
            revocation_jobs::part(transaction, "f", 1).await?,
            revocation_jobs::part(transaction, "f", 2).await?,
        ))
    })
    .unwrap();
    assert_eq!(found.0.map(|part| (part.number, part.ticket, part.revision)), Some((5, ticket, Some(42))));
    assert_eq!(found.1, None);
}

async fn a_security_event_counts_once(place: Place) {
    let store = place.open().await;
    let first = async |id: u8| {
        transact!(store, |transaction| -> Result<bool, StoreError> {
            security_events::first(transaction, &[id; 32], UnixMillis(10)).await
        })
        .unwrap()
    };
    assert!(!security_events::is_taken(&store, &[1; 32]).await.unwrap());
    assert!(first(1).await);
    assert!(security_events::is_taken(&store, &[1; 32]).await.unwrap());
    assert!(!first(1).await);
    assert!(first(2).await);
    assert_eq!(security_events::purge(&store, UnixMillis(10), 10).await.unwrap(), 0);
    assert_eq!(security_events::purge(&store, UnixMillis(11), 1).await.unwrap(), 1, "bounded");
    assert!(trusted_issuers::published_keys(&store, "unknown").await.unwrap().is_none());
}

async fn past_calls_are_found_by_what_they_named(place: Place) {
    let store = place.open().await;
    let record = |id: &str, kind: &str, value: &str, created_at| RevocationRecord {
        id: id.to_owned(),
        kind: kind.to_owned(),
        value: value.to_owned(),
        issuer: None,
        number: 2,
        not_after: 3,
        reason: (kind == "client").then(|| "left".to_owned()),
        actor: "ann".to_owned(),
        created_at,
    };
    let all =
        [record("1", "subject", "s", 30), record("2", "client", "c", 20), record("3", "client", "c", 10)];
    transact!(store, |transaction| -> Result<(), StoreError> {
        for record in &all {
            enforcement::record(transaction, "default", record).await?;
        }
        // Another part of the same file.
        enforcement::record(transaction, "default", &all[2]).await
    })
    .unwrap();
    let listed = async |filter: RevocationFilter, after: Option<(i64, &'static str)>| {
        let found = enforcement::list(&store, "default", &filter, after, 10).await.unwrap();
        found.into_iter().map(|record| (record.id, record.number)).collect::<Vec<_>>()
    };
    let expected = |ids: &[(&str, u64)]| ids.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect::<Vec<_>>();
    let any = RevocationFilter::default;
    assert_eq!(listed(any(), None).await, expected(&[("1", 2), ("2", 2), ("3", 4)]));
    assert_eq!(listed(any(), Some((20, "2"))).await, expected(&[("3", 4)]));
    let clients = RevocationFilter { kind: Some("client".to_owned()), ..any() };
    assert_eq!(listed(clients, None).await, expected(&[("2", 2), ("3", 4)]));
    let value = RevocationFilter { value: Some("s".to_owned()), actor: Some("ann".to_owned()), ..any() };
    assert_eq!(listed(value, None).await, expected(&[("1", 2)]));
    let times = RevocationFilter { since_ms: Some(11), until_ms: Some(29), ..any() };
    assert_eq!(listed(times, None).await, expected(&[("2", 2)]));
    let reason = RevocationFilter { reason: Some("other".to_owned()), ..any() };
    assert_eq!(listed(reason, None).await, expected(&[]));
}

async fn settled_jobs_are_purged_in_batches(place: Place) {
    let store = place.open().await;
    for id in ["a", "b", "c"] {
        revocation_jobs::schedule(&store, &scheduled(id, 10)).await.unwrap();
    }
    settled(&store, "a", ScheduleStatus::Done, 20).await;
    settled(&store, "b", ScheduleStatus::Cancelled, 20).await;
    let purged = async |at, limit| {
        let now = UnixMillis(DAY_MS + at);
        retention::purge(&store, Kept::Revocations, 1, now, limit).await.unwrap()
    };
    assert_eq!(purged(20, 10).await, 0);
    assert_eq!(purged(21, 1).await, 1, "bounded");
    assert_eq!(purged(21, 10).await, 1, "pending ones stay");
    transact!(store, |transaction| -> Result<(), StoreError> {
        let ticket = Ticket::from_text("t".to_owned());
        revocation_jobs::add_part(transaction, "f", 0, 1, &ticket, UnixMillis(5)).await
    })
    .unwrap();
    assert_eq!(revocation_jobs::purge_parts(&store, UnixMillis(5), 10).await.unwrap(), 0);
    assert_eq!(revocation_jobs::purge_parts(&store, UnixMillis(6), 10).await.unwrap(), 1);
}
