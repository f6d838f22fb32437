//! Answers sidecars that ask what an opaque credential stands for: request and reply, each answer signed for its question.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use atm_proto::introspection::IntrospectionRequest;
use atm_proto::signature::Domain;
use atm_telemetry::{Kind, TraceParent, Tracing};
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::{FeedHandle, count};
use crate::introspection::Introspection;

/// Bytes of a question at most.
const MAX_REQUEST_BYTES: usize = 512;
/// Questions answered at once; more are told to come back.
const CONCURRENCY: usize = 64;
/// One process answers a question.
const QUEUE: &str = "atm-control-plane";
/// Header of a reply that holds no answer.
const ERROR_HEADER: &str = "Atm-Error";

impl FeedHandle {
    /// Answers questions from `introspection` for as long as it is polled.
    pub async fn answer_introspection(self, introspection: Introspection, tracing: Option<Tracing>) {
        let (client, slots) = (self.1.clone(), Arc::new(Semaphore::new(CONCURRENCY)));
        loop {
            match client.queue_subscribe(self.0.subjects.introspect(), QUEUE.to_owned()).await {
                Ok(mut requests) => {
                    while let Some(request) = requests.next().await {
                        let Some(to) = request.reply.clone() else { continue };
                        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                            refuse(&client, to, "busy").await;
                            continue;
                        };
                        let (feed, introspection, tracing) =
                            (self.clone(), introspection.clone(), tracing.clone());
                        tokio::spawn(async move {
                            feed.answer(&introspection, &request, to, tracing.as_ref()).await;
                            drop(slot);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot subscribe to questions about credentials; trying again");
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn answer(
        &self,
        introspection: &Introspection,
        request: &Message,
        to: async_nats::Subject,
        tracing: Option<&Tracing>,
    ) {
        if request.payload.len() > MAX_REQUEST_BYTES {
            return refuse(&self.1, to, "malformed").await;
        }
        let Ok(question) = IntrospectionRequest::decode(&request.payload) else {
            return refuse(&self.1, to, "malformed").await;
        };
        let parent = TraceParent::parse(&question.traceparent);
        let mut span = tracing.and_then(|tracing| tracing.begin("atm.introspect", Kind::Server, parent));
        match introspection.answer(&question, self.realm_group()).await {
            Ok(reply) => {
                if let Some(span) = &mut span {
                    span.set("atm.introspection.active", reply.claims.is_some());
                    span.set("atm.sidecar", question.sidecar_id);
                }
                let signed = self.0.signer.sign(Domain::IntrospectionReply, &reply.encode());
                if self.1.publish(to, signed.into()).await.is_ok() {
                    count(&self.0.counters.introspection_replies);
                }
            }
            Err(error) => {
                if let Some(span) = &mut span {
                    span.fault("the store did not answer");
                }
                ::tracing::error!(%error, "a question about a credential goes unanswered");
                refuse(&self.1, to, "unavailable").await;
            }
        }
    }
}

async fn refuse(client: &Client, to: async_nats::Subject, why: &str) {
    let mut headers = HeaderMap::new();
    headers.insert(ERROR_HEADER, why);
    let _ = client.publish_with_headers(to, headers, "".into()).await; // who asked has a time-out
}
