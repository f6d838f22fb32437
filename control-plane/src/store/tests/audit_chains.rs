//! The audit chains: what is appended stays as it is, and goes from the oldest end only.

use atm_proto::audit::Link;

use super::*;
use crate::store::audit::{StoredCheckpoint, StoredSegment};

contract!(
    a_segment_is_there_once_and_is_found_by_event_and_by_time,
    checkpoints_come_in_order_and_the_newest_of_each_chain_is_found,
    only_a_whole_prefix_expires,
    a_chain_says_how_far_it_has_come,
);

fn segment(chain: &str, first: u64, last_ms: i64) -> StoredSegment {
    StoredSegment {
        chain: chain.to_owned(),
        first,
        last: first + 1,
        first_ms: last_ms - 1,
        last_ms,
        previous: Link::genesis(chain),
        link: Link::from_bytes([u8::try_from(first).unwrap(); 32]),
        references: vec![0, 0, 0, 1],
        events: b"{}\n{}\n".to_vec(),
    }
}

fn checkpoint(chain: &str, sequence: u64, is_bridge: bool) -> StoredCheckpoint {
    let link = Link::from_bytes([1; 32]);
    StoredCheckpoint { chain: chain.to_owned(), sequence, link, is_bridge, signed: vec![7] }
}

async fn opened(store: &Store, chain: &str, at: i64) {
    transact!(store, |transaction| -> Result<(), StoreError> {
        audit::open_chain(transaction, chain, "one", UnixMillis(at)).await
    })
    .unwrap();
}

async fn appended(store: &Store, segment: &StoredSegment) -> Result<(), StoreError> {
    transact!(store, |transaction| -> Result<(), StoreError> { audit::append(transaction, segment).await })
}

async fn vouched(store: &Store, checkpoint: &StoredCheckpoint) {
    transact!(store, |transaction| -> Result<(), StoreError> {
        audit::add_checkpoint(transaction, checkpoint, UnixMillis(1)).await
    })
    .unwrap();
}

async fn a_segment_is_there_once_and_is_found_by_event_and_by_time(place: Place) {
    let store = place.open().await;
    for (first, at) in [(1, 10), (3, 20), (5, 20)] {
        appended(&store, &segment("a", first, at)).await.unwrap();
    }
    appended(&store, &segment("b", 1, 20)).await.unwrap();
    assert!(matches!(appended(&store, &segment("a", 3, 30)).await, Err(StoreError::Exists)));
    let found = audit::segments_from(&store, "a", 4, 10).await.unwrap();
    assert_eq!(found, [segment("a", 3, 20), segment("a", 5, 20)], "event 4 is the second of its segment");
    assert_eq!(audit::segments_from(&store, "a", 1, 1).await.unwrap(), [segment("a", 1, 10)]);

    let newest = audit::newest_segments(&store, 20, None, 10).await.unwrap();
    let places: Vec<_> = newest.iter().map(|segment| (segment.chain.as_str(), segment.first)).collect();
    assert_eq!(places, [("b", 1), ("a", 5), ("a", 3)]);
    let behind = (20, "a".to_owned(), 5);
    let rest = audit::newest_references(&store, 0, Some(&behind), 10).await.unwrap();
    let expected = [(3, 20), (1, 10)].map(|(first, at)| ((at, "a".to_owned(), first), vec![0, 0, 0, 1]));
    assert_eq!(rest, expected);
}

async fn checkpoints_come_in_order_and_the_newest_of_each_chain_is_found(place: Place) {
    let store = place.open().await;
    for (chain, at) in [("a", 1), ("b", 2), ("c", 3)] {
        opened(&store, chain, at).await;
    }
    for wanted in [checkpoint("a", 2, false), checkpoint("a", 6, false), checkpoint("a", 2, true)] {
        vouched(&store, &wanted).await;
        vouched(&store, &wanted).await;
    }
    vouched(&store, &checkpoint("b", 9, false)).await;
    let found = audit::checkpoints_from(&store, "a", 2, 10).await.unwrap();
    assert_eq!(found, [checkpoint("a", 2, true), checkpoint("a", 2, false), checkpoint("a", 6, false)]);
    let newest = async |except: &'static str, limit| {
        transact!(store, |transaction| -> Result<Vec<StoredCheckpoint>, StoreError> {
            audit::newest_checkpoints(transaction, except, limit).await
        })
        .unwrap()
    };
    assert_eq!(newest("c", 10).await, [checkpoint("b", 9, false), checkpoint("a", 6, false)]);
    assert_eq!(newest("a", 10).await, [checkpoint("b", 9, false)]);
    assert_eq!(newest("c", 1).await, [checkpoint("b", 9, false)], "those that lived last");
}

async fn only_a_whole_prefix_expires(place: Place) {
    let store = place.open().await;
    for (first, at) in [(1, 10), (3, 30), (5, 20)] {
        appended(&store, &segment("a", first, at)).await.unwrap();
    }
    vouched(&store, &checkpoint("a", 2, false)).await;
    let (oldest, events) = transact!(store, |transaction| -> Result<_, StoreError> {
        let events = audit::events_until(transaction, "a", 4).await?;
        Ok((audit::oldest(transaction, "a", 2).await?, events))
    })
    .unwrap();
    assert_eq!(oldest, [(2, 10, Link::from_bytes([1; 32])), (4, 30, Link::from_bytes([3; 32]))], "bounded");
    assert_eq!(events, segment("a", 3, 30).events);
    vouched(&store, &checkpoint("a", 2, true)).await;
    transact!(store, |transaction| -> Result<(), StoreError> {
        audit::remove_until(transaction, "a", 2).await
    })
    .unwrap();
    assert_eq!(audit::segments_from(&store, "a", 1, 10).await.unwrap().len(), 2);
    assert_eq!(audit::checkpoints_from(&store, "a", 0, 10).await.unwrap(), [checkpoint("a", 2, true)]);
}

async fn a_chain_says_how_far_it_has_come(place: Place) {
    let store = place.open().await;
    opened(&store, "a", 5).await;
    let chain = async || audit::chains(&store).await.unwrap().remove(0);
    assert_eq!((chain().await.last, chain().await.streamed), (None, 0));
    appended(&store, &segment("a", 1, 10)).await.unwrap();
    for (sequence, streamed) in [(2, 2), (1, 2)] {
        audit::streamed(&store, "a", sequence).await.unwrap();
        assert_eq!(chain().await.streamed, streamed, "it never goes back");
    }
    transact!(store, |transaction| -> Result<(), StoreError> {
        audit::touch_chain(transaction, "a", UnixMillis(20), true).await
    })
    .unwrap();
    let chain = chain().await;
    assert_eq!(
        (chain.last, chain.alive_at, chain.closed_at),
        (Some(2), UnixMillis(20), Some(UnixMillis(20)))
    );
    assert_eq!((chain.opened_at, chain.instance.as_str()), (UnixMillis(5), "one"));
}
