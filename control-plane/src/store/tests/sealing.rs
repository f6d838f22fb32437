//! Signing keys, what seals them, and the revision that covers a key set.

use atm_core::key::Algorithm;

use super::*;
use crate::keys::{KeyRecord, SigningKeyState};
use crate::store::signing_keys::StoredKey;

contract!(
    a_key_keeps_its_provider_and_its_reference_until_it_ends,
    a_sealed_key_is_replaced_as_a_whole,
    the_settled_revision_waits_for_numbered_changes_only,
);

fn key(kid: &str, state: SigningKeyState, created_at: i64) -> StoredKey {
    StoredKey {
        record: KeyRecord {
            kid: kid.to_owned(),
            issuer: "i".to_owned(),
            algorithm: Algorithm::ES256,
            provider: "vault".to_owned(),
            state,
            created_at,
            activated_at: None,
            retiring_at: None,
            retired_at: None,
        },
        realm: "default".to_owned(),
        spki: vec![1],
        wrapped: b"reference".to_vec(),
    }
}

async fn a_key_keeps_its_provider_and_its_reference_until_it_ends(place: Place) {
    let store = place.open().await;
    let mut first = key("a", SigningKeyState::Active, 1);
    let second = key("b", SigningKeyState::Pending, 2);
    transact!(store, |transaction| -> Result<(), StoreError> {
        signing_keys::insert(transaction, &second).await?;
        signing_keys::insert(transaction, &first).await
    })
    .unwrap();
    first.record.state = SigningKeyState::Compromised;
    first.record.retired_at = Some(9);
    first.wrapped.clear();
    transact!(store, |transaction| -> Result<(), StoreError> {
        signing_keys::update(transaction, &first).await
    })
    .unwrap();
    let found = signing_keys::list(&store, "i").await.unwrap();
    let records: Vec<_> = found.iter().map(|key| key.record.clone()).collect();
    assert_eq!(records, [first.record, second.record]);
    assert_eq!((found[0].wrapped.len(), found[1].wrapped.as_slice()), (0, &b"reference"[..]));
    assert!(signing_keys::list(&store, "other").await.unwrap().is_empty());
}

async fn a_sealed_key_is_replaced_as_a_whole(place: Place) {
    let store = place.open().await;
    let in_use = async || {
        transact!(store, |transaction| -> Result<bool, StoreError> {
            sealed_keys::is_in_use(transaction).await
        })
        .unwrap()
    };
    assert!(!in_use().await);
    for (sealed, by) in [(vec![1], "one"), (vec![2], "two")] {
        let found = transact!(store, |transaction| -> Result<_, StoreError> {
            sealed_keys::put(transaction, "root", &sealed, by, UnixMillis(1)).await?;
            sealed_keys::get(transaction, "root").await
        })
        .unwrap();
        assert_eq!(found, Some((sealed, by.to_owned())));
    }
    assert!(!in_use().await, "the root key itself hangs on nothing");
    transact!(store, |transaction| -> Result<(), StoreError> {
        signing_keys::insert(transaction, &key("a", SigningKeyState::Active, 1)).await
    })
    .unwrap();
    assert!(in_use().await);
}

async fn the_settled_revision_waits_for_numbered_changes_only(place: Place) {
    let store = place.open().await;
    assert_eq!(outbox::settled_revision(&store).await.unwrap(), Some(0));
    let keys =
        Change::IssuerKeys { issuer: "i".to_owned(), realm: None, keys: Vec::new(), token_types: Vec::new() };
    enqueued(&store, &keys, 1).await;
    assert_eq!(outbox::settled_revision(&store).await.unwrap(), None, "a key set waits for its revision");
    sequenced(&store).await;
    assert_eq!(outbox::settled_revision(&store).await.unwrap(), Some(1));
    enqueued(&store, &tokens(1), 1).await;
    assert_eq!(outbox::settled_revision(&store).await.unwrap(), Some(1), "revocations do not hold it up");
}
