//! What the sidecar says of itself: at once when its revision advances, and every two seconds.

use std::sync::atomic::Ordering;
use std::time::Duration;

use atm_proto::report::SidecarReport;
use atm_proto::subject::{InvalidToken, Subjects};
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::feed::now;
use crate::state::{Position, StateReader};

/// Revisions that follow within this time share a report, or within a longer one that the control plane asks for.
const COALESCE: Duration = Duration::from_millis(5);
/// No request of the control plane makes reports rarer than this: receipts wait for them.
const MAX_COALESCE: Duration = Duration::from_secs(2);
/// Time between reports when nothing advances; the control plane's lease outlives several.
const INTERVAL: Duration = Duration::from_secs(2);

/// Reports to the fleet's subject until `stop`. What is reported as applied is what the store has `kept`.
pub async fn run(
    client: async_nats::Client,
    realm_group: String,
    sidecar_id: String,
    reader: StateReader,
    mut kept: watch::Receiver<Position>,
    stop: CancellationToken,
) -> Result<(), InvalidToken> {
    let subject = Subjects::new(&realm_group)?.fleet(&sidecar_id)?;
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = interval.tick() => {}
            changed = kept.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                // The first advance is reported at once: a receipt is waiting for it. Those right behind it share the next.
                publish(&client, &subject, &sidecar_id, &reader, &kept).await;
                kept.mark_unchanged();
                let asked = Duration::from_millis(reader.status().report_pause_ms.load(Ordering::Relaxed));
                tokio::time::sleep(asked.clamp(COALESCE, MAX_COALESCE)).await;
                if !kept.has_changed().unwrap_or(false) {
                    continue;
                }
            }
        }
        kept.mark_unchanged();
        publish(&client, &subject, &sidecar_id, &reader, &kept).await;
    }
}

async fn publish(
    client: &async_nats::Client,
    subject: &str,
    sidecar_id: &str,
    reader: &StateReader,
    kept: &watch::Receiver<Position>,
) {
    // While NATS is away the client would queue reports that nobody wants later.
    if client.connection_state() != async_nats::connection::State::Connected {
        return;
    }
    let report = report(sidecar_id, reader, *kept.borrow()).encode_to_vec();
    if let Err(error) = client.publish(subject.to_owned(), report.into()).await {
        tracing::debug!(%error, "a report was not sent");
    }
}

fn report(sidecar_id: &str, reader: &StateReader, kept: Position) -> SidecarReport {
    let state = reader.load();
    let status = reader.status();
    SidecarReport {
        sidecar_id: sidecar_id.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: kept.epoch.map(|epoch| epoch.as_bytes().to_vec()).unwrap_or_default(),
        applied_revision: kept.revision,
        time_ms: now().0,
        applied_delay_ms: i64::try_from(status.applied_delay_ms.load(Ordering::Relaxed)).unwrap_or(i64::MAX),
        ready: reader.ready(),
        degraded: reader.degraded().unwrap_or_default(),
        policy_version: state.policy_version,
        revocations: state.view.revocations.len() as u64,
        refused_change_sets: status.all_refusals(),
        condition: reader.condition().into(),
        divergences: status.divergences.load(Ordering::Relaxed),
        feed_age_ms: reader.feed_age_ms(),
        scrubbed: status.scrub_done.load(Ordering::Relaxed),
    }
}
