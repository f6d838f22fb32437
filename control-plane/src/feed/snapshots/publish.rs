//! Puts a snapshot where sidecars take it: a stream that keeps one message a subject, read by Direct Get.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream::{Config, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream};
use async_nats::jetstream::{self, Context};
use atm_proto::snapshot::{Manifest, Segment};
use atm_proto::subject::{SEGMENT_CHUNK, SNAPSHOT_STREAM};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::{Shared, SnapshotError, StoredSnapshot};

/// How often it is looked whether JetStream still holds what was put there.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long JetStream may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Chunks under way at once.
const PIPELINE: usize = 8;

fn failed(error: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::JetStream(error.to_string())
}

/// Segments that JetStream was seen to hold byte for byte. That a message is there does not say that it is the one that was sent.
pub(super) type Seen = HashSet<super::SegmentName>;

/// Publishes the newest of `manifests` where JetStream does not hold it, the manifest behind its segments, and removes
/// segments that none of them names. Reads what is not among `seen` back. True: something was missing.
pub(super) async fn publish(
    shared: &Shared,
    client: &Client,
    manifests: &[Manifest],
    newest: &StoredSnapshot,
    seen: &mut Seen,
) -> Result<bool, SnapshotError> {
    let Some(manifest) = manifests.first() else { return Ok(false) };
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER);
    let stream = context.get_or_create_stream(stream_config(shared)).await.map_err(failed)?;
    let held = chunks(&stream, shared).await?;
    let is_listed = |segment: &Segment| subjects(shared, segment).all(|(_, subject)| held.contains(&subject));
    let listed: Seen =
        manifest.segments.iter().filter(|segment| is_listed(segment)).map(|segment| segment.sha256).collect();
    seen.retain(|name| listed.contains(name));
    let mut missing: Vec<&Segment> = Vec::new();
    for segment in &manifest.segments {
        if seen.contains(&segment.sha256) {
            continue;
        }
        if listed.contains(&segment.sha256) && fetch(shared, &stream, segment).await?.is_some() {
            seen.insert(segment.sha256);
        } else {
            missing.push(segment);
        }
    }
    let told = told(&stream, shared, newest).await?;
    if missing.is_empty() && told {
        return Ok(false);
    }
    for segment in missing {
        let Some(bytes) = shared.segments.get(&segment.sha256)? else {
            return Err(SnapshotError::Elsewhere(segment.name()));
        };
        send(shared, &context, segment, &bytes).await?;
        if fetch(shared, &stream, segment).await?.is_none() {
            let name = segment.name();
            return Err(failed(format!("segment {name} is not held as it was sent; sending it again")));
        }
        seen.insert(segment.sha256);
    }
    let ack = context
        .publish(shared.subjects.snapshot_manifest(), newest.manifest.clone().into())
        .await
        .map_err(failed)?;
    ack.await.map_err(failed)?;
    forget(&stream, shared, manifests, held).await?;
    tracing::info!(revision = newest.revision, "the snapshot is published");
    Ok(true)
}

/// Takes the segments of `manifest` that another process has made, so that this one can serve them as well. What JetStream does
/// not hold yet is left to the next time. True: all of them are here.
pub(super) async fn take(
    shared: &Shared,
    client: &Client,
    manifest: &Manifest,
) -> Result<bool, SnapshotError> {
    let missing: Vec<&Segment> = manifest
        .segments
        .iter()
        .filter(|segment| !shared.segments.holds(&segment.sha256, segment.size))
        .collect();
    if missing.is_empty() {
        return Ok(true);
    }
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ANSWER);
    let stream = context.get_stream(SNAPSHOT_STREAM).await.map_err(failed)?;
    for segment in missing {
        let Some(bytes) = fetch(shared, &stream, segment).await? else { return Ok(false) };
        shared.segments.put(&segment.sha256, &bytes)?;
    }
    Ok(true)
}

/// The bytes of a segment as JetStream holds them; none where some are missing, or where they are not what the segment's name
/// says.
async fn fetch(
    shared: &Shared,
    stream: &Stream,
    segment: &Segment,
) -> Result<Option<Vec<u8>>, SnapshotError> {
    let chunks: Vec<Option<Bytes>> = futures::stream::iter(subjects(shared, segment))
        .map(|(_, subject)| async move { last(stream, &subject).await })
        .buffered(PIPELINE)
        .try_collect()
        .await?;
    let bytes = chunks.into_iter().collect::<Option<Vec<_>>>().map(|chunks| chunks.concat());
    Ok(bytes.filter(|bytes| segment.open(bytes).is_ok()))
}

/// The payload of the last message of `subject`, where there is one.
async fn last(stream: &Stream, subject: &str) -> Result<Option<Bytes>, SnapshotError> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(message.payload)),
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

async fn send(
    shared: &Shared,
    context: &Context,
    segment: &Segment,
    bytes: &[u8],
) -> Result<(), SnapshotError> {
    futures::stream::iter(subjects(shared, segment).map(|(number, subject)| {
        let start = number as usize * SEGMENT_CHUNK;
        let chunk = bytes[start.min(bytes.len())..bytes.len().min(start + SEGMENT_CHUNK)].to_vec();
        async move {
            let ack = context.publish(subject, chunk.into()).await.map_err(failed)?;
            ack.await.map_err(failed)
        }
    }))
    .buffer_unordered(PIPELINE)
    .try_for_each(|_| async { Ok(()) })
    .await
}

/// The subjects of a segment's chunks.
fn subjects(shared: &Shared, segment: &Segment) -> impl Iterator<Item = (u32, String)> {
    let chunks = u32::try_from(segment.size.div_ceil(SEGMENT_CHUNK as u64)).unwrap_or(u32::MAX);
    (0..chunks).map(|number| (number, shared.subjects.snapshot_chunk(&segment.sha256, number)))
}

/// The subjects of all chunks that the stream holds.
async fn chunks(stream: &Stream, shared: &Shared) -> Result<HashSet<String>, SnapshotError> {
    let mut listed = stream.info_with_subjects(shared.subjects.snapshot_chunks()).await.map_err(failed)?;
    let mut subjects = HashSet::new();
    while let Some((subject, _)) = listed.try_next().await.map_err(failed)? {
        subjects.insert(subject);
    }
    Ok(subjects)
}

/// Whether the stream's manifest is the newest one.
async fn told(stream: &Stream, shared: &Shared, newest: &StoredSnapshot) -> Result<bool, SnapshotError> {
    let last = last(stream, &shared.subjects.snapshot_manifest()).await?;
    Ok(last.is_some_and(|manifest| manifest == newest.manifest))
}

async fn forget(
    stream: &Stream,
    shared: &Shared,
    manifests: &[Manifest],
    held: HashSet<String>,
) -> Result<(), SnapshotError> {
    let named: HashSet<String> = manifests
        .iter()
        .flat_map(|manifest| &manifest.segments)
        .flat_map(|segment| subjects(shared, segment).map(|(_, subject)| subject))
        .collect();
    for subject in held.difference(&named) {
        stream.purge().filter(subject.as_str()).await.map_err(failed)?;
    }
    Ok(())
}

fn stream_config(shared: &Shared) -> Config {
    Config {
        name: SNAPSHOT_STREAM.to_owned(),
        subjects: vec![shared.subjects.snapshots()],
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        allow_direct: true,
        num_replicas: shared.settings.replicas,
        ..Config::default()
    }
}
