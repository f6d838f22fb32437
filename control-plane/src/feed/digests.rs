//! Tells sidecars the digests of the state, part by part, and asks them to compare.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use atm_proto::command::Command;
use atm_proto::digests::Digests;
use atm_proto::signature::Domain;
use futures::StreamExt;
use tokio::time::sleep;

use super::connection::is_connected;
use super::{FeedError, FeedHandle, Shared};
use crate::store::StoreError;
use crate::store::feed_state::{self, Standing};

/// Bytes of a request; a well-formed one names a sidecar.
const MAX_REQUEST_BYTES: usize = 256;
/// One process answers a request.
const QUEUE: &str = "atm-control-plane";

/// Answers for as long as it is polled, one request at a time.
pub(super) async fn run(shared: Arc<Shared>, client: Client) {
    loop {
        match client.queue_subscribe(shared.subjects.digests(), QUEUE.to_owned()).await {
            Ok(mut requests) => {
                while let Some(request) = requests.next().await {
                    let Some(to) = request.reply.clone() else { continue };
                    if request.payload.len() > MAX_REQUEST_BYTES {
                        continue;
                    }
                    match reply(&shared).await {
                        // Who asked has a time-out.
                        Ok(reply) => drop(client.publish(to, reply.into()).await),
                        Err(error) => tracing::error!(%error, "a request for digests goes unanswered"),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot subscribe to requests for digests; trying again"),
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn reply(shared: &Shared) -> Result<Vec<u8>, StoreError> {
    let Standing { head, digests: parts, .. } = feed_state::standing(&shared.store).await?;
    let digests = Digests {
        realm_group: shared.settings.realm_group.clone(),
        epoch: head.epoch,
        revision: head.revision,
        parts,
    };
    Ok(shared.sign(Domain::Digests, &digests.encode()))
}

impl FeedHandle {
    /// Asks every sidecar to compare its copy with the log and to repair what differs. Sidecars that have done it report at
    /// least the returned number.
    pub async fn scrub(&self) -> Result<u64, FeedError> {
        let (shared, client) = (&self.0, &self.1);
        let away = |problem: String| FeedError::Connection { url: "NATS".to_owned(), problem };
        if !is_connected(client) {
            return Err(away("NATS is not connected; sidecars cannot be asked".to_owned()));
        }
        let time = shared.instant().await?;
        let scrub = u64::try_from(time.0).unwrap_or(1);
        let command = Command { realm_group: shared.settings.realm_group.clone(), time, scrub };
        let signed = shared.sign(Domain::Command, &command.encode());
        client
            .publish(shared.subjects.command(), signed.into())
            .await
            .map_err(|error| away(error.to_string()))?;
        Ok(scrub)
    }
}
