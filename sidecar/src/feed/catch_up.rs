//! Fetches the revisions that the live subject did not bring: from the stream by Direct Get, and what the stream no longer
//! holds from the control plane. Whatever comes passes the same gate as a live message.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use atm_proto::report::{ResyncReply, ResyncRequest};
use atm_proto::subject::{REVISION_HEADER, STREAM, Subjects};
use futures::StreamExt;
use prost::Message;

use super::applier::Applier;

/// Requests under way at once.
const PIPELINE: usize = 64;
/// Revisions asked for in one go; a longer gap takes several, with live messages heard between.
const BATCH: u64 = 20_000;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Applies as many of the missing revisions as can be had.
pub(super) async fn run(client: &async_nats::Client, subjects: &Subjects, applier: &mut Applier) {
    let before = applier.position();
    let from_stream = from_stream(client, subjects, applier).await;
    if applier.position().revision > before.revision {
        tracing::info!(from = before.revision, to = applier.position().revision, "caught up from the stream");
    }
    if from_stream && !applier.knows_of_more() {
        return;
    }
    let before = applier.position();
    if let Err(problem) = from_control_plane(client, subjects, applier).await {
        let fault = format!("revisions after {} cannot be fetched: {problem}", applier.position().revision);
        tracing::warn!(problem, applied = applier.position().revision, "cannot catch up; trying again");
        if applier.knows_of_more() {
            applier.status().set_fault(Some(fault));
        }
    } else if applier.position() != before {
        tracing::info!(
            from = before.revision,
            to = applier.position().revision,
            "caught up from the control plane"
        );
    }
}

/// Whether the stream could be read to its end.
async fn from_stream(client: &async_nats::Client, subjects: &Subjects, applier: &mut Applier) -> bool {
    let context = jetstream::new(client.clone());
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, context.get_stream_no_info(STREAM)).await else {
        return false;
    };
    let Ok(Ok(last)) =
        tokio::time::timeout(PATIENCE, stream.direct_get_last_for_subject(subjects.feed())).await
    else {
        return false;
    };
    let revision = last.headers.get(REVISION_HEADER).and_then(|value| value.as_str().parse::<u64>().ok());
    let Some(head) = revision else { return false };
    let mut next = applier.position().revision + 1;
    while next <= head {
        let to = head.min(next + BATCH - 1);
        // A stream that was made anew, or lost its end, numbers its messages otherwise than the log: the distance between
        // the two at the end of the stream is the distance at all of it.
        let Some(first_sequence) = (last.sequence + next).checked_sub(head).filter(|sequence| *sequence > 0)
        else {
            return false;
        };
        if !fetch(&stream, first_sequence, to - next + 1, applier).await {
            return false;
        }
        let reached = applier.position().revision;
        if reached < to {
            return false;
        }
        next = reached + 1;
    }
    true
}

async fn fetch(stream: &Stream<()>, first: u64, count: u64, applier: &mut Applier) -> bool {
    let mut messages = futures::stream::iter(first..first + count)
        .map(|sequence| async move { tokio::time::timeout(PATIENCE, stream.direct_get(sequence)).await })
        .buffered(PIPELINE);
    while let Some(message) = messages.next().await {
        let Ok(Ok(message)) = message else { return false };
        let before = applier.position().revision;
        applier.change_set(&message.payload);
        if applier.position().revision == before {
            // Not the next one: the stream numbers otherwise than thought, and everything behind would be refused too.
            return false;
        }
        applier.room().await;
    }
    true
}

async fn from_control_plane(
    client: &async_nats::Client,
    subjects: &Subjects,
    applier: &mut Applier,
) -> Result<(), String> {
    loop {
        let position = applier.position();
        let request = ResyncRequest {
            epoch: position.epoch.map(|epoch| epoch.as_bytes().to_vec()).unwrap_or_default(),
            from_revision: position.revision + 1,
        };
        let request = client.request(subjects.resync(), request.encode_to_vec().into());
        let reply = tokio::time::timeout(PATIENCE, request)
            .await
            .map_err(|_| "the control plane did not answer in time".to_owned())?
            .map_err(|error| error.to_string())?;
        let reply = ResyncReply::decode(reply.payload).map_err(|error| error.to_string())?;
        if position.epoch.is_none_or(|epoch| reply.epoch == epoch.as_bytes()) {
            applier.pruned_to(reply.oldest);
            if applier.was_pruned() {
                return Ok(()); // a snapshot comes first
            }
        }
        for set in &reply.signed_change_sets {
            applier.change_set(set);
            applier.room().await;
        }
        let reached = applier.position();
        if reached == position && !reply.signed_change_sets.is_empty() {
            applier.block();
            return Err("what the control plane sends as the next one is refused here".to_owned());
        }
        if reached == position || reached.revision >= reply.head {
            return Ok(());
        }
    }
}
