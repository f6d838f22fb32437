//! Where snapshots are taken from: an HTTP server if there is one, or the stream in NATS.

use std::time::Duration;

use async_nats::jetstream::{self, stream::Stream};
use atm_proto::snapshot::Segment;
use atm_proto::subject::{SEGMENT_CHUNK, SNAPSHOT_STREAM, Subjects};
use futures::{StreamExt, TryStreamExt};

/// Chunks under way at once.
const PIPELINE: usize = 4;
/// How long one chunk may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where snapshots are taken from.
#[derive(Debug, Clone)]
pub(in crate::feed) struct Source {
    pub(in crate::feed) client: async_nats::Client,
    pub(in crate::feed) subjects: Subjects,
    /// `<url>/manifest` and `<url>/segments/<sha256>`, asked first.
    pub(in crate::feed) http: Option<HttpSource>,
}

impl Source {
    /// A signed rotation of feed keys; none where there is none of that number.
    pub(in crate::feed) async fn rotation(&self, number: u64) -> Option<Vec<u8>> {
        let stream = self.stream().await.ok()?;
        self.message(&stream, self.subjects.feed_keys(number)).await.ok()
    }

    pub(super) async fn manifest(&self) -> Result<Vec<u8>, String> {
        let mut problem = None;
        if let Some(http) = &self.http {
            match http.get("manifest").await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => problem = Some(error),
            }
        }
        let stream = self.stream().await?;
        self.message(&stream, self.subjects.snapshot_manifest())
            .await
            .map_err(|error| problem.map_or(error.clone(), |first| format!("{first}; {error}")))
    }

    pub(super) async fn segment(&self, segment: &Segment) -> Result<Vec<u8>, String> {
        if let Some(http) = &self.http
            && let Ok(bytes) = http.get(&format!("segments/{}", segment.name())).await
        {
            return Ok(bytes);
        }
        let stream = self.stream().await?;
        let chunks = u32::try_from(segment.size.div_ceil(SEGMENT_CHUNK as u64)).map_err(|e| e.to_string())?;
        let size = usize::try_from(segment.size).map_err(|e| e.to_string())?;
        futures::stream::iter(0..chunks)
            .map(|number| self.message(&stream, self.subjects.snapshot_chunk(&segment.sha256, number)))
            .buffered(PIPELINE)
            .try_fold(Vec::with_capacity(size), |mut bytes, chunk| async move {
                if bytes.len() + chunk.len() > size {
                    return Err("a segment is longer than the manifest says".to_owned());
                }
                bytes.extend_from_slice(&chunk);
                Ok(bytes)
            })
            .await
    }

    async fn stream(&self) -> Result<Stream<()>, String> {
        let context = jetstream::new(self.client.clone());
        context.get_stream_no_info(SNAPSHOT_STREAM).await.map_err(|error| error.to_string())
    }

    /// The message of one subject, by Direct Get: any server that holds a copy of the stream answers.
    async fn message(&self, stream: &Stream<()>, subject: String) -> Result<Vec<u8>, String> {
        let message = stream.direct_get_last_for_subject(subject);
        match tokio::time::timeout(PATIENCE, message).await {
            Ok(Ok(message)) => Ok(message.payload.to_vec()),
            Ok(Err(error)) => Err(format!("snapshots in NATS: {error}")),
            Err(_) => Err("snapshots in NATS: no answer in time".into()),
        }
    }
}

/// Snapshots by HTTP: the control plane's own listener, an object store, or a network that delivers what either holds.
#[derive(Debug, Clone)]
pub(in crate::feed) struct HttpSource {
    pub(in crate::feed) url: String,
    pub(in crate::feed) client: reqwest::Client,
}

impl HttpSource {
    /// A source at `url`; with `ca_file` only what these certificates vouch for is believed to be that server.
    pub(in crate::feed) fn new(url: &str, ca: Option<&[u8]>) -> Result<Self, String> {
        let mut builder =
            reqwest::Client::builder().connect_timeout(PATIENCE).timeout(Duration::from_secs(30));
        if let Some(pem) = ca {
            let certificates =
                reqwest::Certificate::from_pem_bundle(pem).map_err(|error| error.to_string())?;
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), client })
    }

    async fn get(&self, path: &str) -> Result<Vec<u8>, String> {
        let failed = |error: reqwest::Error| format!("snapshots by HTTP: {error}");
        let response = self.client.get(format!("{}/{path}", self.url)).send().await.map_err(failed)?;
        let mut response = response.error_for_status().map_err(failed)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > atm_proto::snapshot::MAX_SEGMENT_BYTES {
                return Err("snapshots by HTTP: an answer is longer than a segment may be".into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
