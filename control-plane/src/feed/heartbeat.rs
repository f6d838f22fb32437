//! Says every second how far the log has come, so that a silent gap is seen.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::Client;
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_proto::change::{Heartbeat, StateDigest};
use atm_proto::signature::Domain;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::connection::is_connected;
use super::{Shared, count};
use crate::store::feed_state::{self, Standing};

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
        let standing = match feed_state::standing(&shared.store).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "no heartbeat: the store does not say how far the log is");
                continue;
            }
        };
        shared.advance(standing.head);
        let time = match shared.instant().await {
            Ok(time) => time,
            Err(error) => {
                tracing::error!(%error, "no heartbeat: the store gives no instant");
                continue;
            }
        };
        let beat = heartbeat(&shared, &standing, time);
        let sent = client.publish(shared.subjects.heartbeat(), beat.into());
        if timeout(shared.settings.heartbeat, sent).await.is_ok_and(|outcome| outcome.is_ok()) {
            count(&shared.counters.heartbeats);
        }
    }
}

fn heartbeat(shared: &Shared, standing: &Standing, time: UnixMillis) -> Vec<u8> {
    let Standing { head, digests, snapshot } = standing;
    let oldest_bucket = Bucket::oldest_alive(time);
    let payload = Heartbeat {
        realm_group: shared.settings.realm_group.clone(),
        epoch: head.epoch,
        revision: head.revision,
        oldest_revision: shared.oldest.load(Ordering::Relaxed),
        time,
        digest: head.digest,
        snapshot_revision: *snapshot,
        state: Some(StateDigest { oldest_bucket, root: digests.root(oldest_bucket) }),
        report_pause_ms: shared.fleet.report_pause_ms(),
        rotation: shared.rotation(),
    }
    .encode();
    shared.sign(Domain::Heartbeat, &payload)
}
