//! Outbox, log and what is enforced.

use super::*;

contract!(
    a_change_gets_the_revision_of_its_set,
    numbered_changes_keep_the_order_of_their_commits,
    no_more_bytes_are_read_at_once_than_asked_for,
    a_revision_is_given_once,
    a_new_epoch_forgets_the_sets_of_the_old_one,
    watermarks_rise_and_never_fall,
    tokens_are_found_in_their_bucket_or_the_unknown_one,
    one_look_sees_whichever_name_of_a_token_is_revoked,
    a_hundred_thousand_tokens_fit_one_transaction,
);

async fn a_change_gets_the_revision_of_its_set(place: Place) {
    let store = place.open().await;
    let mut tickets = Vec::new();
    for number in 1..=3 {
        tickets.push(enqueued(&store, &tokens(number), i64::from(number)).await);
        assert_eq!(outbox::revision_of(&store, tickets.last().unwrap()).await.unwrap(), None);
    }
    assert_eq!(revoked(&sequenced(&store).await), [id(1), id(2), id(3)]);
    for ticket in &tickets {
        assert_eq!(outbox::revision_of(&store, ticket).await.unwrap(), Some(1));
    }
    assert!(sequenced(&store).await.is_empty());
    assert_eq!(log::head(&store).await.unwrap().revision, 1);
}

async fn numbered_changes_keep_the_order_of_their_commits(place: Place) {
    let store = place.open().await;
    let policies = |version| Change::Policies { version, documents: vec![] };
    // The clock of the one who enqueues says nothing.
    for (version, at) in [(1, 50), (2, 40), (3, 60), (4, 10)] {
        enqueued(&store, &policies(version), at).await;
        enqueued(&store, &tokens(1), 0).await;
    }
    let numbered: Vec<_> = sequenced(&store)
        .await
        .into_iter()
        .filter_map(|change| match change {
            Change::Policies { version, .. } => Some(version),
            _ => None,
        })
        .collect();
    assert_eq!(numbered, [1, 2, 3, 4]);
}

async fn no_more_bytes_are_read_at_once_than_asked_for(place: Place) {
    let store = place.open().await;
    for number in 0..100 {
        let ids = (0..1_000).map(|of| id(number * 1_000 + of)).collect();
        enqueued(&store, &Change::RevokedTokens { bucket: Bucket(9), ids }, 0).await;
    }
    let mut seen = 0;
    loop {
        let waiting = transact!(RowLocks: store, |transaction| -> Result<_, StoreError> {
            let head = log::locked_head(transaction).await?;
            let waiting = outbox::unsequenced(transaction, 512, 800_000).await?;
            let ids: Vec<_> = waiting.rows.iter().map(|row| row.id.clone()).collect();
            outbox::mark_sequenced(transaction, &ids, head.epoch, 1).await?;
            Ok(waiting)
        })
        .unwrap();
        assert!(waiting.rows.iter().map(|row| row.size).sum::<usize>() <= 800_000);
        seen += waiting.rows.len();
        assert_eq!(waiting.more, seen < 100, "{seen}");
        if !waiting.more {
            return;
        }
    }
}

async fn a_revision_is_given_once(place: Place) {
    let store = place.open().await;
    let epoch = log::head(&store).await.unwrap().epoch;
    let set = StoredChangeSet { epoch, revision: 1, digest: Digest::of(b"1"), signed: vec![1, 2, 3] };
    let append = async || {
        transact!(RowLocks: store, |transaction| -> Result<(), StoreError> {
            log::append(transaction, &set, UnixMillis(5)).await
        })
    };
    append().await.unwrap();
    assert!(matches!(append().await, Err(StoreError::Exists)));
    assert_eq!(log::sets_from(&store, epoch, 1, 10).await.unwrap(), std::slice::from_ref(&set));
    assert_eq!(log::head(&store).await.unwrap().revision, 1);
}

async fn a_new_epoch_forgets_the_sets_of_the_old_one(place: Place) {
    let store = place.open().await;
    let epoch = log::head(&store).await.unwrap().epoch;
    enqueued(&store, &tokens(1), 0).await;
    sequenced(&store).await;
    let next =
        transact!(store, |transaction| -> Result<_, StoreError> { log::begin_epoch(transaction).await })
            .unwrap();
    assert_ne!(next.epoch, epoch);
    assert!(log::sets_from(&store, epoch, 1, 10).await.unwrap().is_empty());
    assert_eq!((log::head(&store).await.unwrap(), next.revision), (next, 1));
}

async fn watermarks_rise_and_never_fall(place: Place) {
    let store = place.open().await;
    for (instant, expected) in [(10, 10), (7, 10), (12, 12)] {
        let entries = [(id(1), UnixMillis(instant)), (id(2), UnixMillis(1))];
        transact!(store, |transaction| -> Result<(), StoreError> {
            enforcement::raise_watermarks(transaction, IdKind::Client, &entries).await.map(drop)
        })
        .unwrap();
        let covers = async |kind, instant| {
            enforcement::is_revoked(&store, &[], &[(kind, id(1))], UnixMillis(instant)).await.unwrap()
        };
        assert!(covers(IdKind::Client, expected).await && !covers(IdKind::Client, expected + 1).await);
        assert!(!covers(IdKind::Subject, 0).await, "of another kind");
    }
    let mut transaction = store.begin().await.unwrap();
    let kept = enforcement::watermarks_after(&mut transaction, IdKind::Client, None, 100).await.unwrap();
    assert_eq!(kept, [(id(1), UnixMillis(12)), (id(2), UnixMillis(1))]);
}

/// Revokes tokens of one bucket.
async fn add(store: &Store, bucket: u32, ids: &[Id]) {
    transact!(store, |transaction| -> Result<(), StoreError> {
        enforcement::add_tokens(transaction, Bucket(bucket), ids).await.map(drop)
    })
    .unwrap();
}

async fn tokens_are_found_in_their_bucket_or_the_unknown_one(place: Place) {
    let store = place.open().await;
    add(&store, 5, &[id(1), id(2)]).await;
    add(&store, 5, &[id(2), id(3)]).await;
    add(&store, 0, &[id(9)]).await;
    let found = async |bucket, number| is_token_revoked(&store, bucket, id(number)).await;
    assert!(found(5, 3).await && found(6, 9).await);
    assert!(!found(6, 3).await && !found(5, 4).await);
    let mut transaction = store.begin().await.unwrap();
    let mut seen = Vec::new();
    while let page = enforcement::tokens_after(&mut transaction, seen.last().copied(), 3).await.unwrap()
        && !page.is_empty()
    {
        seen.extend(page);
    }
    drop(transaction);
    assert_eq!(seen, [(Bucket(0), id(9)), (Bucket(5), id(1)), (Bucket(5), id(2)), (Bucket(5), id(3))]);
    assert_eq!(enforcement::purge_tokens(&store, Bucket(6), 100).await.unwrap(), 3);
    assert!(found(6, 9).await, "unknown expiries are kept");
}

async fn one_look_sees_whichever_name_of_a_token_is_revoked(place: Place) {
    let store = place.open().await;
    add(&store, 5, &[id(1)]).await;
    add(&store, 0, &[id(2)]).await;
    transact!(store, |transaction| -> Result<(), StoreError> {
        for kind in [IdKind::Subject, IdKind::Key] {
            enforcement::raise_watermarks(transaction, kind, &[(id(3), UnixMillis(10))]).await?;
        }
        Ok(())
    })
    .unwrap();
    let alive = [(Bucket(5), id(8)), (Bucket(6), id(9))];
    let scopes = [(IdKind::Session, id(3)), (IdKind::Subject, id(4)), (IdKind::Key, id(4))];
    let look = async |token, scope, issued_at| {
        let tokens: Vec<_> = alive.into_iter().chain(token).collect();
        let scopes: Vec<_> = scopes.into_iter().chain(scope).collect();
        enforcement::is_revoked(&store, &tokens, &scopes, UnixMillis(issued_at)).await.unwrap()
    };
    assert!(!look(None, None, 10).await);
    assert!(look(Some((Bucket(5), id(1))), None, 10).await);
    assert!(look(Some((Bucket(7), id(2))), None, 10).await, "of unknown expiry");
    assert!(!look(Some((Bucket(7), id(1))), None, 10).await, "in another bucket");
    let subject = Some((IdKind::Subject, id(3)));
    assert!(look(None, subject, 10).await && !look(None, subject, 11).await);
    assert!(look(None, Some((IdKind::Key, id(3))), 11).await, "a revoked key is dead for good");
    assert!(!enforcement::is_revoked(&store, &[], &[], UnixMillis(0)).await.unwrap());
}

async fn a_hundred_thousand_tokens_fit_one_transaction(place: Place) {
    let store = place.open().await;
    let ids: Vec<Id> = (0..100_000).map(id).collect();
    add(&store, 5, &ids).await;
    assert!(is_token_revoked(&store, 5, ids[99_999]).await);
}
