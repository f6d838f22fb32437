//! The store's contract: what every store of this program must do.

use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_proto::change::{Change, Digest};
use tempfile::TempDir;

use super::*;
use crate::store::log::StoredChangeSet;

async fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("atm.db")).await.unwrap();
    (dir, store)
}

fn id(byte: u8) -> Id {
    Id::from_bytes([byte; 16])
}

fn change(byte: u8) -> Change {
    Change::RevokedTokens { bucket: Bucket(9), ids: vec![id(byte)] }
}

#[tokio::test]
async fn a_reopened_store_is_the_same_store() {
    let (dir, store) = store().await;
    let head = log::head(&store).await.unwrap();
    assert_eq!((head.revision, head.digest), (0, Digest::ZERO));
    store.keep_issue_floor(UnixMillis(77)).await.unwrap();
    store.keep_issue_floor(UnixMillis(76)).await.unwrap();
    store.close().await;
    let again = Store::open(&dir.path().join("atm.db")).await.unwrap();
    assert_eq!(log::head(&again).await.unwrap(), head);
    assert_eq!(log::issue_floor(&again).await.unwrap(), UnixMillis(77), "never lowered");
    again.check().await.unwrap();
}

#[tokio::test]
async fn what_is_no_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("atm.db");
    std::fs::write(&path, "this is not a database, and long enough to tell").unwrap();
    let error = Store::open(&path).await.unwrap_err().to_string();
    assert!(error.contains("atm.db"), "{error}");
    let error = Store::open(&dir.path().join("missing/atm.db")).await.unwrap_err().to_string();
    assert!(error.contains("missing/atm.db"), "{error}");
}

#[tokio::test]
async fn a_change_that_is_rolled_back_was_never_there() {
    let (_dir, store) = store().await;
    let mut transaction = store.begin().await.unwrap();
    outbox::enqueue(&mut transaction, &change(1), UnixMillis(1)).await.unwrap();
    drop(transaction);
    let mut transaction = store.begin().await.unwrap();
    assert!(outbox::unsequenced(&mut transaction, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn changes_come_out_in_commit_order_and_once() {
    let (_dir, store) = store().await;
    let mut tickets = Vec::new();
    for byte in 1..=3 {
        let mut transaction = store.begin().await.unwrap();
        tickets.push(outbox::enqueue(&mut transaction, &change(byte), UnixMillis(1)).await.unwrap());
        transaction.commit().await.unwrap();
    }
    assert_eq!(outbox::revision_of(&store, &tickets[0]).await.unwrap(), None);
    let mut transaction = store.begin().await.unwrap();
    let rows = outbox::unsequenced(&mut transaction, 10).await.unwrap();
    let bytes: Vec<_> = rows
        .iter()
        .map(|row| match &row.change {
            Change::RevokedTokens { ids, .. } => ids[0].as_bytes()[0],
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(bytes, [1, 2, 3]);
    let epoch = log::locked_head(&mut transaction).await.unwrap().epoch;
    let ids: Vec<_> = rows.into_iter().map(|row| row.id).collect();
    outbox::mark_sequenced(&mut transaction, &ids, epoch, 4).await.unwrap();
    transaction.commit().await.unwrap();
    for ticket in &tickets {
        assert_eq!(outbox::revision_of(&store, ticket).await.unwrap(), Some(4));
    }
    assert_eq!(outbox::purge(&store, UnixMillis(2), 2).await.unwrap(), 2, "bounded");
    assert_eq!(outbox::purge(&store, UnixMillis(2), 2).await.unwrap(), 1);
}

#[tokio::test]
async fn a_revision_is_given_once() {
    let (_dir, store) = store().await;
    let epoch = log::head(&store).await.unwrap().epoch;
    let set = StoredChangeSet { epoch, revision: 1, digest: Digest::of(b"1"), signed: vec![1, 2, 3] };
    let mut transaction = store.begin().await.unwrap();
    log::append(&mut transaction, &set, UnixMillis(5)).await.unwrap();
    assert!(matches!(log::append(&mut transaction, &set, UnixMillis(5)).await, Err(StoreError::Exists)));
    transaction.commit().await.unwrap();
    assert_eq!(log::sets_from(&store, epoch, 1, 10).await.unwrap(), [set]);
    assert_eq!(log::head(&store).await.unwrap().revision, 1);
    let mut transaction = store.begin().await.unwrap();
    let next = log::begin_epoch(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    assert_ne!(next, epoch);
    assert!(log::sets_from(&store, epoch, 1, 10).await.unwrap().is_empty());
    let head = log::head(&store).await.unwrap();
    assert_eq!((head.epoch, head.revision, head.digest), (next, 0, Digest::ZERO));
}

#[tokio::test]
async fn watermarks_rise_and_never_fall() {
    let (_dir, store) = store().await;
    for (instant, expected) in [(10, 10), (7, 10), (12, 12)] {
        let mut transaction = store.begin().await.unwrap();
        let entries = [(id(1), UnixMillis(instant))];
        enforcement::raise_watermarks(&mut transaction, IdKind::Client, &entries).await.unwrap();
        transaction.commit().await.unwrap();
        let kept = enforcement::watermark(&store, IdKind::Client, id(1)).await.unwrap();
        assert_eq!(kept, Some(UnixMillis(expected)));
    }
    assert_eq!(enforcement::watermark(&store, IdKind::Subject, id(1)).await.unwrap(), None);
}

#[tokio::test]
async fn tokens_are_found_in_their_bucket_or_the_unknown_one_and_purged_by_bucket() {
    let (_dir, store) = store().await;
    let mut transaction = store.begin().await.unwrap();
    enforcement::add_tokens(&mut transaction, Bucket(5), &[id(1), id(2)]).await.unwrap();
    enforcement::add_tokens(&mut transaction, Bucket(5), &[id(2), id(3)]).await.unwrap();
    enforcement::add_tokens(&mut transaction, Bucket::UNKNOWN, &[id(9)]).await.unwrap();
    transaction.commit().await.unwrap();
    let revoked =
        async |bucket, byte| enforcement::is_token_revoked(&store, Bucket(bucket), id(byte)).await.unwrap();
    assert!(revoked(5, 3).await && revoked(6, 9).await);
    assert!(!revoked(6, 3).await && !revoked(5, 4).await);
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
    assert!(revoked(6, 9).await, "unknown expiries are kept");
}

#[tokio::test]
async fn a_hundred_thousand_tokens_fit_one_transaction() {
    let (_dir, store) = store().await;
    let ids: Vec<Id> = (0..100_000u32)
        .map(|number| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            Id::from_bytes(bytes)
        })
        .collect();
    let mut transaction = store.begin().await.unwrap();
    enforcement::add_tokens(&mut transaction, Bucket(5), &ids).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(enforcement::is_token_revoked(&store, Bucket(5), ids[99_999]).await.unwrap());
}
