//! Says every second how far the log has come, so that a silent gap is seen.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::Client;
use atm_proto::change::Heartbeat;
use atm_proto::signature::Domain;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::connection::is_connected;
use super::{Shared, count};
use crate::store::log;

pub(super) async fn run(shared: Arc<Shared>, client: Client) {
    let mut ticks = interval(shared.settings.heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A heartbeat that waits in a buffer would claim freshness that is gone; without a connection there is none.
        if !is_connected(&client) {
            continue;
        }
        // The head as stored: another process may have moved it. A store that does not answer earns no heartbeat, since
        // nobody knows then what is in force.
        match log::head(&shared.store).await {
            Ok(head) => shared.advance(head),
            Err(error) => {
                tracing::error!(%error, "no heartbeat: the store does not say how far the log is");
                continue;
            }
        }
        let sent = client.publish(shared.subjects.heartbeat(), heartbeat(&shared).into());
        if timeout(shared.settings.heartbeat, sent).await.is_ok_and(|outcome| outcome.is_ok()) {
            count(&shared.counters.heartbeats);
        }
    }
}

fn heartbeat(shared: &Shared) -> Vec<u8> {
    let position = *shared.position.borrow();
    let payload = Heartbeat {
        realm_group: shared.settings.realm_group.clone(),
        epoch: position.epoch,
        revision: position.revision,
        oldest_revision: shared.oldest.load(Ordering::Relaxed),
        time: shared.clock.wall(),
        digest: position.digest,
    }
    .encode();
    shared.signer.sign(Domain::Heartbeat, &payload)
}
