//! A test control plane: it authors the feed as the contract says, and lies when a test asks for it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use atm_core::id::{Id, IdKind};
use atm_core::time::UnixMillis;
use atm_proto::change::{Digest, Epoch, Heartbeat};
use atm_proto::report::{MAX_RESYNC_BYTES, ResyncReply, ResyncRequest, SidecarReport};
use atm_proto::signature::{Domain, FeedSigner};
use atm_proto::subject::{REVISION_HEADER, STREAM, Subjects};
use atm_proto::wire;
use futures::StreamExt;
use prost::Message;
use tokio::task::JoinHandle;

use crate::nats::NatsServer;
use crate::token::now_ms;
use crate::wait;

/// The realm group of every test.
pub const REALM_GROUP: &str = "default";

const HEARTBEAT: Duration = Duration::from_millis(200);

/// A kind of change, as on the wire.
pub use atm_proto::wire::change::Kind;

/// A change set made but perhaps not sent.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its revision.
    pub revision: u64,
    /// The digest of its payload.
    pub digest: Digest,
    /// The encoded `Signed` envelope.
    pub signed: Vec<u8>,
}

#[derive(Debug, Default)]
struct Log {
    sets: Vec<Made>,
    /// Whether resync requests are answered and heartbeats sent.
    silent: bool,
    /// The newest revision that a sidecar reported as applied.
    reported: u64,
}

/// The author of one feed over a real NATS.
#[derive(Debug)]
pub struct FeedAuthor {
    signer: Arc<FeedSigner>,
    epoch: Epoch,
    subjects: Subjects,
    client: async_nats::Client,
    jetstream: jetstream::Context,
    log: Arc<Mutex<Log>>,
    tasks: Vec<JoinHandle<()>>,
}

impl FeedAuthor {
    /// Creates the stream, and begins to send heartbeats and to answer resync requests.
    pub async fn start(nats: &NatsServer) -> Self {
        let (signer, _seed) = FeedSigner::generate().unwrap();
        let mut epoch = [0; 16];
        aws_lc_rs::rand::fill(&mut epoch).unwrap();
        let client = async_nats::connect(nats.url()).await.expect("nats is there");
        let jetstream = jetstream::new(client.clone());
        let subjects = Subjects::new(REALM_GROUP).unwrap();
        jetstream.create_stream(stream_config(&subjects)).await.expect("stream is made");
        let mut author = Self {
            signer: Arc::new(signer),
            epoch: Epoch::from_bytes(epoch),
            subjects,
            client,
            jetstream,
            log: Arc::default(),
            tasks: Vec::new(),
        };
        let resync = author.client.subscribe(author.subjects.resync()).await.unwrap();
        let reports = author.client.subscribe(author.subjects.fleet_all()).await.unwrap();
        author.client.flush().await.unwrap();
        author.tasks.push(tokio::spawn(author.heartbeats()));
        author.tasks.push(tokio::spawn(author.hear_reports(reports)));
        author.tasks.push(tokio::spawn(author.answer_resync(resync)));
        author
    }

    /// The public key that sidecars pin, in text.
    pub fn public_key(&self) -> String {
        self.signer.public_key().to_string()
    }

    /// Publishes one change set of these changes, in order, and gives its revision.
    pub async fn publish(&self, changes: Vec<Kind>) -> u64 {
        let made = self.make(changes);
        self.send(&made).await;
        made.revision
    }

    /// Makes the next change set of the log without sending it. Heartbeats tell of it from now on.
    pub fn make(&self, changes: Vec<Kind>) -> Made {
        let mut log = self.log.lock().unwrap();
        let made = self.draft(&log, changes);
        log.sets.push(made.clone());
        made
    }

    /// Makes what would be the next change set and forgets it: the log goes on without it.
    pub fn make_forgotten(&self, changes: Vec<Kind>) -> Made {
        self.draft(&self.log.lock().unwrap(), changes)
    }

    fn draft(&self, log: &Log, changes: Vec<Kind>) -> Made {
        let set = wire::ChangeSet {
            realm_group: REALM_GROUP.to_owned(),
            epoch: self.epoch.as_bytes().to_vec(),
            revision: log.sets.len() as u64 + 1,
            previous_digest: log.sets.last().map_or(Digest::ZERO, |made| made.digest).as_bytes().to_vec(),
            time_ms: now_ms(),
            changes: changes.into_iter().map(|kind| wire::Change { kind: Some(kind) }).collect(),
        };
        self.seal(&set)
    }

    /// Signs any change set with the real feed key.
    pub fn seal(&self, set: &wire::ChangeSet) -> Made {
        let payload = set.encode_to_vec();
        let signed = self.signer.sign(Domain::ChangeSet, &payload);
        Made { revision: set.revision, digest: Digest::of(&payload), signed }
    }

    /// Signs any bytes with the real feed key, for any domain.
    pub fn sign(&self, domain: Domain, payload: &[u8]) -> Vec<u8> {
        self.signer.sign(domain, payload)
    }

    /// Publishes to JetStream, which republishes it to the live subject.
    pub async fn send(&self, made: &Made) {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{}:{}", self.epoch, made.revision).as_str());
        headers.insert(REVISION_HEADER, made.revision.to_string().as_str());
        self.jetstream
            .publish_with_headers(self.subjects.feed(), headers, made.signed.clone().into())
            .await
            .expect("published")
            .await
            .expect("stored by the stream");
    }

    /// Puts bytes on the live subject, past the stream, as anyone on NATS without permissions can.
    pub async fn inject_live(&self, signed: Vec<u8>) {
        self.client.publish(self.subjects.live(), signed.into()).await.expect("published");
        self.client.flush().await.expect("flushed");
    }

    /// Puts bytes on the heartbeat subject.
    pub async fn inject_heartbeat(&self, signed: Vec<u8>) {
        self.client.publish(self.subjects.heartbeat(), signed.into()).await.expect("published");
        self.client.flush().await.expect("flushed");
    }

    /// While silent: no heartbeats, no answers to resync requests.
    pub fn set_silent(&self, silent: bool) {
        self.log.lock().unwrap().silent = silent;
    }

    /// Waits until a sidecar has reported `revision`, as a receipt does.
    pub async fn until_reported(&self, revision: u64) {
        wait::until_some(&format!("revision {revision} to be reported"), wait::USUAL, || {
            (self.log.lock().unwrap().reported >= revision).then_some(())
        })
        .await;
    }

    /// The newest revision made.
    pub fn revision(&self) -> u64 {
        self.log.lock().unwrap().sets.len() as u64
    }

    /// The log's life.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn heartbeats(&self) -> impl Future<Output = ()> + use<> {
        let (log, signer, client) = (Arc::clone(&self.log), Arc::clone(&self.signer), self.client.clone());
        let (epoch, subject) = (self.epoch, self.subjects.heartbeat());
        async move {
            let mut interval = tokio::time::interval(HEARTBEAT);
            loop {
                interval.tick().await;
                let heartbeat = {
                    let log = log.lock().unwrap();
                    if log.silent {
                        continue;
                    }
                    Heartbeat {
                        realm_group: REALM_GROUP.to_owned(),
                        epoch,
                        revision: log.sets.len() as u64,
                        oldest_revision: 1,
                        time: UnixMillis(now_ms()),
                        digest: log.sets.last().map_or(Digest::ZERO, |made| made.digest),
                        snapshot_revision: 0,
                        state: None,
                        report_pause_ms: 5,
                        rotation: 0,
                    }
                };
                let signed = signer.sign(Domain::Heartbeat, &heartbeat.encode());
                let _ = client.publish(subject.clone(), signed.into()).await; // NATS may be down just now
            }
        }
    }

    fn hear_reports(&self, mut reports: async_nats::Subscriber) -> impl Future<Output = ()> + use<> {
        let log = Arc::clone(&self.log);
        async move {
            while let Some(message) = reports.next().await {
                let report = SidecarReport::decode(message.payload).unwrap_or_default();
                let mut log = log.lock().unwrap();
                log.reported = log.reported.max(report.applied_revision);
            }
        }
    }

    fn answer_resync(&self, mut requests: async_nats::Subscriber) -> impl Future<Output = ()> + use<> {
        let (log, client, epoch) = (Arc::clone(&self.log), self.client.clone(), self.epoch);
        async move {
            while let Some(message) = requests.next().await {
                let Some(reply) = message.reply else { continue };
                let request = ResyncRequest::decode(message.payload).unwrap_or_default();
                let answer = {
                    let log = log.lock().unwrap();
                    if log.silent {
                        continue;
                    }
                    resync_reply(&log, epoch, &request)
                };
                let _ = client.publish(reply, answer.encode_to_vec().into()).await;
            }
        }
    }
}

impl Drop for FeedAuthor {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn stream_config(subjects: &Subjects) -> stream::Config {
    stream::Config {
        name: STREAM.to_owned(),
        subjects: vec![subjects.feed()],
        republish: Some(stream::Republish {
            source: subjects.feed(),
            destination: subjects.live(),
            headers_only: false,
        }),
        allow_direct: true,
        storage: stream::StorageType::File,
        discard: stream::DiscardPolicy::Old,
        ..Default::default()
    }
}

fn resync_reply(log: &Log, epoch: Epoch, request: &ResyncRequest) -> ResyncReply {
    let from = if request.epoch == epoch.as_bytes() { request.from_revision.max(1) } else { 1 };
    let mut size = 0;
    let signed_change_sets = log
        .sets
        .iter()
        .skip(usize::try_from(from - 1).unwrap())
        .map(|made| made.signed.clone())
        .take_while(|signed| {
            size += signed.len();
            size <= MAX_RESYNC_BYTES
        })
        .collect();
    ResyncReply {
        epoch: epoch.as_bytes().to_vec(),
        head: log.sets.len() as u64,
        signed_change_sets,
        oldest: 1,
    }
}

/// The change that revokes single tokens that expire in the same hour.
pub fn revoked_tokens(expires_at: i64, ids: impl IntoIterator<Item = Id>) -> Kind {
    let mut ids: Vec<Id> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.dedup();
    Kind::RevokedTokens(wire::RevokedTokens {
        bucket: u32::try_from(expires_at / 3600).unwrap(),
        ids: ids.iter().flat_map(|id| *id.as_bytes()).collect(),
    })
}

/// The change that revokes everything of one scope issued until `not_after_ms`.
pub fn watermark(kind: IdKind, id: Id, not_after_ms: i64) -> Kind {
    Kind::Watermarks(wire::Watermarks {
        kind: kind as i32,
        ids: id.as_bytes().to_vec(),
        not_after_ms: vec![not_after_ms],
    })
}

/// The change that replaces the policy set.
pub fn policies(version: u64, documents: &[&str]) -> Kind {
    Kind::Policies(wire::PolicySet {
        version,
        documents: documents.iter().map(|document| (*document).to_owned()).collect(),
    })
}
