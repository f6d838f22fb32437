//! Answers sidecars that miss change sets which the stream does not hold: request and reply, from the store.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message as NatsMessage};
use atm_proto::report::{MAX_RESYNC_BYTES, ResyncReply, ResyncRequest};
use futures::StreamExt;
use prost::Message;
use tokio::time::sleep;

use super::{Shared, count};
use crate::store::{StoreError, log};

/// Bytes of a request; a well-formed one has 30.
const MAX_REQUEST_BYTES: usize = 256;
/// Change sets of one read from the store.
const PAGE: u32 = 16;
/// One process answers a request.
const QUEUE: &str = "atm-control-plane";

/// One request at a time: whoever resynchronises a fleet must not stop revocations.
pub(super) async fn run(shared: Arc<Shared>, client: Client) {
    loop {
        match client.queue_subscribe(shared.subjects.resync(), QUEUE.to_owned()).await {
            Ok(mut requests) => {
                while let Some(request) = requests.next().await {
                    answer(&shared, &client, &request).await;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot subscribe to resync requests; trying again"),
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn answer(shared: &Shared, client: &Client, request: &NatsMessage) {
    let Some(to) = request.reply.clone() else { return };
    if request.payload.len() > MAX_REQUEST_BYTES {
        return;
    }
    let Ok(asked) = ResyncRequest::decode(request.payload.clone()) else { return };
    match reply(shared, &asked).await {
        Ok(reply) => {
            if client.publish(to, reply.encode_to_vec().into()).await.is_ok() {
                count(&shared.counters.resync_replies);
            }
        }
        // The sidecar asks again; an empty answer would say that there is nothing.
        Err(error) => tracing::error!(%error, "a resync request goes unanswered"),
    }
}

/// As many consecutive sets as fit, and at least one if there is one.
pub(super) async fn reply(shared: &Shared, asked: &ResyncRequest) -> Result<ResyncReply, StoreError> {
    let head = log::head(&shared.store).await?;
    let same_epoch = asked.epoch == head.epoch.as_bytes();
    let mut next = if same_epoch { asked.from_revision.max(1) } else { 1 };
    let (mut sets, mut bytes) = (Vec::new(), 0);
    'full: while next <= head.revision {
        let page = log::sets_from(&shared.store, head.epoch, next, PAGE).await?;
        if page.is_empty() {
            break;
        }
        for set in page {
            bytes += set.signed.len();
            if bytes > MAX_RESYNC_BYTES && !sets.is_empty() {
                break 'full;
            }
            next = set.revision + 1;
            sets.push(set.signed);
        }
    }
    Ok(ResyncReply {
        epoch: head.epoch.as_bytes().to_vec(),
        head: head.revision,
        signed_change_sets: sets,
        oldest: log::oldest(&shared.store, head.epoch).await?.unwrap_or(head.revision + 1),
    })
}
