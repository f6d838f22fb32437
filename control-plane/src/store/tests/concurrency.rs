//! What transactions that run at the same time may see of each other.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::*;
use crate::policies::{PolicyHeader, PolicyVersion};

contract!(
    what_is_rolled_back_was_never_there,
    what_fails_half_way_leaves_nothing,
    what_is_not_committed_is_seen_by_nobody_else,
    after_a_failed_statement_nothing_is_committed,
    concurrent_read_and_write_loses_nothing,
    transactions_that_read_what_the_other_writes_are_one_after_the_other,
    concurrent_sequencers_skip_and_double_nothing,
    concurrent_watermarks_of_one_scope_keep_the_highest,
);

async fn what_is_rolled_back_was_never_there(place: Place) {
    let store = place.open().await;
    let mut transaction = store.begin().await.unwrap();
    outbox::enqueue(&mut transaction, &tokens(1), UnixMillis(1)).await.unwrap();
    drop(transaction);
    let mut transaction = store.begin().await.unwrap();
    outbox::enqueue(&mut transaction, &tokens(2), UnixMillis(1)).await.unwrap();
    transaction.rollback().await.unwrap();
    assert!(sequenced(&store).await.is_empty());
}

async fn what_fails_half_way_leaves_nothing(place: Place) {
    let store = place.open().await;
    let outcome = transact!(store, |transaction| -> Result<(), StoreError> {
        enforcement::add_tokens(transaction, Bucket(1), &[id(1)]).await?;
        outbox::enqueue(transaction, &tokens(1), UnixMillis(1)).await?;
        versions::bump(transaction, versions::Topic::SigningKeys).await?;
        Err(corrupt("test", "fails"))
    });
    assert!(matches!(outcome, Err(StoreError::Corrupt { .. })));
    assert!(sequenced(&store).await.is_empty());
    assert!(!is_token_revoked(&store, 1, id(1)).await);
    assert_eq!(store.version(versions::Topic::SigningKeys), 0);
}

async fn what_is_not_committed_is_seen_by_nobody_else(place: Place) {
    let store = place.open().await;
    let mut transaction = store.begin().await.unwrap();
    enforcement::add_tokens(&mut transaction, Bucket(1), &[id(1)]).await.unwrap();
    assert!(!is_token_revoked(&store, 1, id(1)).await);
    transaction.commit().await.unwrap();
    assert!(is_token_revoked(&store, 1, id(1)).await);
}

async fn after_a_failed_statement_nothing_is_committed(place: Place) {
    let store = place.open().await;
    let outcome = transact!(store, |transaction| -> Result<(), StoreError> {
        policy_sets::insert(transaction, &policy_set(1)).await?;
        let again = policy_sets::insert(transaction, &policy_set(1)).await;
        assert!(matches!(again, Err(StoreError::Exists)));
        Ok(())
    });
    assert!(outcome.is_err());
    assert!(policy_sets::newest(&store).await.unwrap().is_none());
}

fn policy_set(version: u64) -> PolicyVersion {
    let header = PolicyHeader { version, applied_at: 0, actor: "x".into(), restored_from: None };
    PolicyVersion { header, documents: vec![] }
}

async fn concurrent_read_and_write_loses_nothing(place: Place) {
    let store = place.open().await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut done = 0;
            for _ in 0..5 {
                let outcome = transact!(store, |transaction| -> Result<(), StoreError> {
                    let version = policy_sets::locked_newest(transaction).await? + 1;
                    policy_sets::insert(transaction, &policy_set(version)).await
                });
                match outcome {
                    Ok(()) => done += 1,
                    // Where serialisation is checked late, two may meet at the key, or too often.
                    Err(StoreError::Exists | StoreError::Conflict) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            done
        });
    }
    let done: u64 = tasks.join_all().await.into_iter().sum();
    let newest = policy_sets::newest(&store).await.unwrap().unwrap();
    assert_eq!(newest.header.version, done, "each success is one version, without a gap");
    assert!(done >= 8, "{done}");
}

/// Write skew: each of two transactions adds its own only if the other's is not there. One after the other, one adds.
async fn transactions_that_read_what_the_other_writes_are_one_after_the_other(place: Place) {
    let store = place.open().await;
    for round in 0..10 {
        let both = Arc::new(tokio::sync::Barrier::new(2));
        let mut tasks = JoinSet::new();
        for (own, other) in [(1, 2), (2, 1)] {
            let (store, both) = (store.clone(), Arc::clone(&both));
            tasks.spawn(async move {
                both.wait().await;
                transact!(store, |transaction| -> Result<bool, StoreError> {
                    let there = query("SELECT 1 FROM revoked_tokens WHERE bucket = $1 AND id = $2")
                        .bind(round)
                        .bind(id(other).as_bytes().to_vec())
                        .fetch_optional(&mut *transaction)
                        .await?;
                    tokio::task::yield_now().await;
                    if there.is_none() {
                        enforcement::add_tokens(transaction, Bucket(round), &[id(own)]).await?;
                    }
                    Ok(there.is_none())
                })
                .unwrap()
            });
        }
        let added = tasks.join_all().await.into_iter().filter(|added| *added).count();
        assert_eq!(added, 1, "round {round}");
    }
}

async fn concurrent_sequencers_skip_and_double_nothing(place: Place) {
    const CHANGES: u32 = 200;
    let store = place.open().await;
    let mut writers = JoinSet::new();
    for number in 0..CHANGES {
        let store = store.clone();
        writers.spawn(async move {
            // Some take their time between the row and the commit: they are committed after later ones.
            transact!(store, |transaction| -> Result<(), StoreError> {
                outbox::enqueue(transaction, &tokens(number), UnixMillis(i64::from(number))).await?;
                if store.is_shared() && number % 7 == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                }
                Ok(())
            })
            .unwrap();
        });
    }
    let mut sequencers = JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        sequencers.spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..40 {
                seen.extend(sequenced(&store).await);
                tokio::task::yield_now().await;
            }
            seen
        });
    }
    writers.join_all().await;
    let mut seen: Vec<_> = sequencers.join_all().await.into_iter().flatten().collect();
    seen.extend(sequenced(&store).await);
    let mut numbers = revoked(&seen);
    numbers.sort_unstable();
    assert_eq!(numbers, (0..CHANGES).map(id).collect::<Vec<_>>());
    let head = log::head(&store).await.unwrap();
    let sets = log::sets_from(&store, head.epoch, 1, 1_000).await.unwrap();
    let revisions: Vec<u64> = sets.iter().map(|set| set.revision).collect();
    assert_eq!(revisions, (1..=head.revision).collect::<Vec<_>>());
}

async fn concurrent_watermarks_of_one_scope_keep_the_highest(place: Place) {
    let store = place.open().await;
    let mut tasks = JoinSet::new();
    for instant in 0..40 {
        let store = store.clone();
        tasks.spawn(async move {
            transact!(store, |transaction| -> Result<(), StoreError> {
                let entries = [(id(1), UnixMillis((instant * 7) % 40)), (id(2), UnixMillis(instant))];
                enforcement::raise_watermarks(transaction, IdKind::Subject, &entries).await.map(drop)
            })
            .unwrap();
        });
    }
    tasks.join_all().await;
    for number in [1, 2] {
        let mut transaction = store.begin().await.unwrap();
        let kept = enforcement::watermarks_after(&mut transaction, IdKind::Subject, None, 100).await.unwrap();
        assert!(kept.contains(&(id(number), UnixMillis(39))), "{kept:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_commits_late_is_sequenced_late_and_not_skipped() {
    let store = Place::postgres().await.open().await;
    let mut late = store.begin().await.unwrap();
    outbox::enqueue(&mut late, &tokens(1), UnixMillis(1)).await.unwrap();
    enqueued(&store, &tokens(2), 2).await;
    assert_eq!(revoked(&sequenced(&store).await), [id(2)]);
    late.commit().await.unwrap();
    assert_eq!(revoked(&sequenced(&store).await), [id(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_learns_that_a_copy_is_stale() {
    let place = Place::postgres().await;
    let (one, other) = (place.open().await, place.open().await);
    transact!(one, |transaction| -> Result<(), StoreError> {
        versions::bump(transaction, versions::Topic::SigningKeys).await
    })
    .unwrap();
    assert_eq!(one.version(versions::Topic::SigningKeys), 1);
    assert_eq!(other.version(versions::Topic::SigningKeys), 0);
    let mut changed = other.versions_changed();
    let follow = tokio::spawn(other.clone().follow_versions());
    changed.changed().await.unwrap();
    assert_eq!(other.version(versions::Topic::SigningKeys), 1);
    follow.abort();
}
