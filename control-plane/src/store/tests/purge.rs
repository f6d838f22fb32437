//! Purging goes in batches, and takes nothing that is still of use.

use super::*;

contract!(a_purge_is_bounded_and_spares_what_is_not_sequenced);

async fn a_purge_is_bounded_and_spares_what_is_not_sequenced(place: Place) {
    let store = place.open().await;
    for number in 0..3 {
        enqueued(&store, &tokens(number), 1).await;
    }
    sequenced(&store).await;
    let waiting = enqueued(&store, &tokens(3), 1).await;
    assert_eq!(outbox::purge(&store, UnixMillis(1), 10).await.unwrap(), 0, "not old enough");
    assert_eq!(outbox::purge(&store, UnixMillis(2), 2).await.unwrap(), 2, "bounded");
    assert_eq!(outbox::purge(&store, UnixMillis(2), 2).await.unwrap(), 1);
    assert_eq!(revoked(&sequenced(&store).await), [id(3)]);
    assert_eq!(outbox::revision_of(&store, &waiting).await.unwrap(), Some(2));
}
