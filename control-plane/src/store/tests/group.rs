//! What shares a commit of the embedded store's writer, and what its members may not do to each other. The contracts run on
//! PostgreSQL too, where each has a commit of its own: a caller cannot tell the difference.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::*;

contract!(who_fails_or_leaves_undoes_only_itself, a_member_sees_what_those_before_it_did);

async fn add(store: &Store, number: u32) -> Result<u64, StoreError> {
    query("INSERT INTO revoked_tokens (bucket, id) VALUES (7, $1)")
        .bind(id(number).as_bytes().to_vec())
        .execute_alone(store)
        .await
}

async fn add_in(transaction: &mut Transaction, number: u32) -> Result<u64, StoreError> {
    query("INSERT INTO revoked_tokens (bucket, id) VALUES (7, $1)")
        .bind(id(number).as_bytes().to_vec())
        .execute(transaction)
        .await
}

/// The numbers that are there, of `0..until`.
async fn there(store: &Store, until: u32) -> Vec<u32> {
    let mut there = Vec::new();
    for number in 0..until {
        if is_token_revoked(store, 7, id(number)).await {
            there.push(number);
        }
    }
    there
}

async fn who_fails_or_leaves_undoes_only_itself(place: Place) {
    const CALLERS: u32 = 96;
    let store = place.open().await;
    add(&store, 1_000).await.unwrap();
    let mut callers = JoinSet::new();
    let mut leaving = JoinSet::new();
    for number in 0..CALLERS {
        let store = store.clone();
        let caller = async move {
            match number % 6 {
                0 => drop(add(&store, number).await.unwrap()),
                1 => assert!(matches!(add(&store, 1_000).await, Err(StoreError::Exists))),
                2 => transact!(store, |transaction| -> Result<(), StoreError> {
                    add_in(transaction, number).await?;
                    add_in(transaction, CALLERS + number).await.map(drop)
                })
                .unwrap(),
                3 => {
                    let outcome = transact!(store, |transaction| -> Result<(), StoreError> {
                        add_in(transaction, number).await?;
                        Err(corrupt("test", "fails"))
                    });
                    assert!(matches!(outcome, Err(StoreError::Corrupt { .. })));
                }
                4 => {
                    let outcome = transact!(store, |transaction| -> Result<(), StoreError> {
                        add_in(transaction, number).await?;
                        add_in(transaction, 1_000).await.map(drop)
                    });
                    assert!(matches!(outcome, Err(StoreError::Exists)));
                }
                _ => {
                    let mut transaction = store.begin().await.unwrap();
                    add_in(&mut transaction, number).await.unwrap();
                    std::future::pending::<()>().await;
                }
            }
        };
        if number % 6 == 5 {
            leaving.spawn(caller)
        } else {
            callers.spawn(caller)
        };
    }
    // Those that leave hold their place until they are gone; on the embedded store one behind the other.
    while !leaving.is_empty() {
        leaving.abort_all();
        while leaving.join_next().await.is_some() {}
    }
    callers.join_all().await;
    let expected: Vec<u32> = (0..2 * CALLERS)
        .filter(|number| match number.checked_sub(CALLERS) {
            None => matches!(number % 6, 0 | 2),
            Some(first) => first % 6 == 2,
        })
        .collect();
    assert_eq!(there(&store, 2 * CALLERS).await, expected);
}

async fn a_member_sees_what_those_before_it_did(place: Place) {
    let store = place.open().await;
    let counted = || async {
        transact!(store, |transaction| -> Result<i64, StoreError> {
            let row = query("SELECT version FROM versions WHERE topic = 'signing_keys'").for_update();
            let before: i64 = row.fetch_one(&mut *transaction).await?.get("version")?;
            query("UPDATE versions SET version = $1 WHERE topic = 'signing_keys'")
                .bind(before + 1)
                .execute(transaction)
                .await?;
            Ok(before)
        })
        .unwrap()
    };
    let mut seen = futures::future::join_all((0..8).map(|_| counted())).await;
    seen.sort_unstable();
    assert_eq!(seen, (0..8).collect::<Vec<_>>());
}

/// Counts the commits of the embedded store's writer.
async fn commits(store: &Store) -> Arc<AtomicU32> {
    let Engine::Sqlite(sqlite) = &store.0.engine else { panic!("not embedded") };
    let commits = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&commits);
    let mut connection = sqlite.migrating.acquire().await.unwrap();
    connection.lock_handle().await.unwrap().set_commit_hook(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        true
    });
    commits
}

/// Runs `work` behind a transaction that holds the writer until all of it waits.
async fn behind_a_blocker<T: Send + 'static>(
    store: &Store,
    work: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> JoinSet<T> {
    let blocker = store.begin().await.unwrap();
    let mut tasks = JoinSet::new();
    let mut begun = Vec::new();
    for one in work {
        let (polled, is_polled) = oneshot::channel();
        let mut polled = Some(polled);
        let mut one = Box::pin(one);
        tasks.spawn(std::future::poll_fn(move |context| {
            let poll = one.as_mut().poll(context);
            // By now it waits for its turn.
            if let Some(polled) = polled.take() {
                let _ = polled.send(());
            }
            poll
        }));
        begun.push(is_polled);
    }
    for one in begun {
        one.await.unwrap();
    }
    blocker.rollback().await.unwrap();
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_together_is_committed_together() {
    let store = Place::embedded();
    let store = store.open().await;
    let commits = commits(&store).await;
    add(&store, 500).await.unwrap();
    assert_eq!(commits.load(Ordering::Relaxed), 1, "alone");
    let work = (0..64).map(|number| {
        let store = store.clone();
        async move {
            if number % 2 == 0 {
                add(&store, number).await.unwrap();
            } else {
                transact!(store, |transaction| -> Result<(), StoreError> {
                    add_in(transaction, number).await.map(drop)
                })
                .unwrap();
            }
        }
    });
    behind_a_blocker(&store, work).await.join_all().await;
    let shared = commits.load(Ordering::Relaxed) - 1;
    assert!((1..32).contains(&shared), "64 writes took {shared} commits");
    assert_eq!(there(&store, 64).await, (0..64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_fails_for_all_and_nobody_is_told_otherwise() {
    let place = Place::embedded();
    let store = place.open().await;
    query("CREATE TABLE parents (id BIGINT NOT NULL PRIMARY KEY)").execute_alone(&store).await.unwrap();
    let children = "CREATE TABLE children (parent BIGINT NOT NULL REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)";
    query(children).execute_alone(&store).await.unwrap();
    let failures: Arc<Mutex<Vec<String>>> = Arc::default();
    let work = (0..5).map(|number| {
        let (store, failures) = (store.clone(), Arc::clone(&failures));
        async move {
            let outcome = match number {
                // Is found out by the commit, and not before.
                1 => query("INSERT INTO children (parent) VALUES (5)").execute_alone(&store).await,
                3 => transact!(store, |transaction| -> Result<u64, StoreError> {
                    add_in(transaction, number).await
                }),
                // Sees what is not true in the end.
                4 => transact!(store, |transaction| -> Result<u64, StoreError> {
                    let found = query("SELECT 1 FROM revoked_tokens WHERE bucket = 7")
                        .fetch_all(&mut *transaction)
                        .await?;
                    if found.is_empty() { Ok(0) } else { Err(StoreError::Exists) }
                }),
                _ => add(&store, number).await,
            };
            let Err(error @ StoreError::Away(_)) = outcome else { panic!("{number}: {outcome:?}") };
            failures.lock().unwrap().push(error.to_string());
        }
    });
    behind_a_blocker(&store, work).await.join_all().await;
    let failures = failures.lock().unwrap().clone();
    assert_eq!(failures.len(), 5);
    assert!(failures.iter().all(|failure| failure.contains("FOREIGN KEY")), "{failures:?}");
    assert_eq!(there(&store, 5).await, Vec::<u32>::new());
    // The writer goes on.
    add(&store, 1).await.unwrap();
    assert_eq!(there(&store, 5).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gave_up_waiting_is_not_begun_and_close_ends_what_is_under_way() {
    let place = Place::embedded();
    let store = place.open().await;
    let blocker = store.begin().await.unwrap();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { add(&store, 1).await }
    });
    let mut given_up = Box::pin(add(&store, 2));
    assert!(futures::poll!(&mut given_up).is_pending());
    drop(given_up);
    blocker.rollback().await.unwrap();
    waiting.await.unwrap().unwrap();
    // Behind it, so that it would have been begun before.
    add(&store, 3).await.unwrap();
    assert_eq!(there(&store, 5).await, [1, 3]);

    let mut last = store.begin().await.unwrap();
    add_in(&mut last, 4).await.unwrap();
    let closing = store.close();
    let ends = async {
        tokio::task::yield_now().await;
        last.commit().await.unwrap();
    };
    tokio::join!(closing, ends);
    assert!(matches!(add(&store, 0).await, Err(StoreError::Unavailable(sqlx::Error::PoolClosed))));
    assert_eq!(there(&place.open().await, 5).await, [1, 3, 4]);
}
