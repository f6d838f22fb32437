//! The stream `ATM_AUDIT`: the control planes' chains, beside the decisions that sidecars record.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use atm_proto::subject::{AUDIT_STREAM, Subjects};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::RETRY;
use crate::audit::writer::SIGN_OF_LIFE;
use crate::audit::{Audit, AuditError};
use crate::clock::wall_now;
use crate::store::audit as rows;

/// How long JetStream may take for an answer.
const ANSWER: Duration = Duration::from_secs(2);

/// How much the stream keeps.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// Bytes; the oldest messages go first.
    pub max_bytes: i64,
    /// Age.
    pub max_age: Duration,
}

/// Publishes chains in order, each message once (`Nats-Msg-Id`).
pub struct StreamSink {
    audit: Audit,
    client: Client,
    context: Context,
    subjects: Subjects,
    settings: StreamSettings,
}

/// What keeps the sink from going on.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("jetstream: {0}")]
    JetStream(String),
    #[error(transparent)]
    Audit(#[from] AuditError),
}

fn jetstream_error(error: impl std::fmt::Display) -> StreamError {
    StreamError::JetStream(error.to_string())
}

impl StreamSink {
    /// A sink over the connection of the feed.
    pub fn new(audit: Audit, client: Client, subjects: Subjects, settings: StreamSettings) -> Self {
        let mut context = jetstream::new(client.clone());
        context.set_timeout(ANSWER);
        Self { audit, client, context, subjects, settings }
    }

    /// Publishes until `stop`. Without NATS it waits; the store keeps everything meanwhile.
    pub async fn run(self, stop: CancellationToken) {
        let work = async {
            let (mut ready, mut said) = (false, false);
            loop {
                if self.client.connection_state() != async_nats::connection::State::Connected {
                    ready = false;
                    sleep(RETRY).await;
                    continue;
                }
                match self.step(&mut ready).await {
                    Ok(()) => {
                        said = false;
                        self.audit.until_appended().await;
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut said, true) {
                            tracing::warn!(%error, "the audit stream takes nothing; the store keeps all of it");
                        }
                        ready = false;
                        sleep(RETRY).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    async fn step(&self, ready: &mut bool) -> Result<(), StreamError> {
        if !*ready {
            self.ensure_stream().await?;
            *ready = true;
        }
        let now = wall_now().0;
        let silent = i64::try_from(6 * SIGN_OF_LIFE.as_millis()).unwrap_or(i64::MAX);
        for chain in rows::chains(&self.audit.0.store).await.map_err(AuditError::from)? {
            let behind = chain.last.is_some_and(|last| last > chain.streamed);
            // What another process left behind when it ended is taken up by whoever sees it.
            let is_ours = chain.chain == self.audit.chain()
                || chain.closed_at.is_some()
                || chain.alive_at.0 + silent < now;
            if behind && is_ours {
                self.publish(&chain.chain, chain.streamed + 1).await?;
            }
        }
        Ok(())
    }

    async fn publish(&self, chain: &str, from: u64) -> Result<(), StreamError> {
        let mut next = from;
        loop {
            let page = self.audit.export(chain, next).await?;
            if page.next == next {
                return Ok(());
            }
            for (part, lines) in parts(&page.lines).enumerate() {
                let message = PublishMessage::build()
                    .payload(lines.to_owned().into())
                    .message_id(format!("{chain}:{next}:{}:{part}", page.next));
                self.context
                    .send_publish(self.subjects.audit_events(), message)
                    .await
                    .map_err(jetstream_error)?
                    .await
                    .map_err(jetstream_error)?;
            }
            rows::streamed(&self.audit.0.store, chain, page.next - 1).await.map_err(AuditError::from)?;
            next = page.next;
            if !page.more {
                return Ok(());
            }
        }
    }

    async fn ensure_stream(&self) -> Result<(), StreamError> {
        let config = Config {
            name: AUDIT_STREAM.to_owned(),
            subjects: vec![self.subjects.audit(), self.subjects.audit_events()],
            storage: StorageType::File,
            discard: DiscardPolicy::Old,
            allow_direct: true,
            max_bytes: self.settings.max_bytes,
            max_age: self.settings.max_age,
            ..Config::default()
        };
        // What an operator has set (replicas, limits) stays.
        match self.context.get_stream(AUDIT_STREAM).await {
            Ok(_) => Ok(()),
            Err(_) => self.context.create_stream(config).await.map(drop).map_err(jetstream_error),
        }
    }
}

/// Whole lines of at most 256 KB together, well below NATS's limit for one message.
fn parts(lines: &str) -> impl Iterator<Item = &str> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let limit = rest.len().min(256 * 1024);
        let within = rest.as_bytes()[..limit].iter().rposition(|byte| *byte == b'\n');
        let end = within.or_else(|| rest.find('\n')).map_or(rest.len(), |at| at + 1);
        let (part, others) = rest.split_at(end);
        rest = others;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_end_with_their_lines() {
        let line = format!("{}\n", "x".repeat(100_000));
        let text = line.repeat(6);
        let all: Vec<&str> = parts(&text).collect();
        assert_eq!(all.concat(), text);
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|part| part.ends_with('\n')));
        assert_eq!(parts(&format!("{}\n", "é".repeat(200_000))).count(), 1, "a line is never torn");
    }
}
