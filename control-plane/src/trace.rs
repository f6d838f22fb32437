//! One token's life: what the audit chain knows of it, joined with the decisions that sidecars have recorded.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, consumer};
use atm_proto::subject::AUDIT_STREAM;
use futures::StreamExt;
use serde::Serialize;
use serde_json::Value;

use crate::audit::{Audit, AuditError};
use crate::feed::FeedHandle;

/// Events that one trace shows.
const MAX_EVENTS: usize = 1_000;
/// Decisions that one trace shows.
const MAX_DECISIONS: usize = 1_000;
/// Recorded decisions that one trace looks at.
const MAX_LOOKED_AT: usize = 1_000_000;
/// How long it may look at them.
const LOOK_BOUND: Duration = Duration::from_secs(15);
/// How far before its issuance a token's decisions are looked for: sidecars' clocks differ.
const SKEW_MS: i64 = 60_000;

/// What is known of one token, each list in the order of time.
#[derive(Debug, Serialize)]
pub struct Trace {
    /// The token's `jti`.
    pub token: String,
    /// Records of the audit chains: issuance, refusals, revocation; with what ended its session, subject or client.
    pub events: Vec<Value>,
    /// Decisions that sidecars recorded: all denials, and of the permits a sample.
    pub decisions: Vec<Value>,
    /// Why decisions may be missing; none where all that was recorded was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
}

/// Traces the token `jti`.
pub async fn of_token(audit: &Audit, feed: &FeedHandle, jti: &str) -> Result<Trace, AuditError> {
    let mut events = audit.about("token", jti, MAX_EVENTS).await?;
    let issued = events.first().cloned();
    if let Some(issued) = &issued {
        for (name, value) in ["session", "subject", "client"].map(|name| (name, issued[name].as_str())) {
            let Some(value) = value else { continue };
            let others = audit.about(name, value, MAX_EVENTS).await?;
            events.extend(others.into_iter().filter(|event| ends(event) && time(event) >= time(issued)));
        }
    }
    events.sort_by_key(time);
    events.dedup();
    let since = issued.as_ref().map(|event| time(event) - SKEW_MS);
    let (decisions, incomplete) = match tokio::time::timeout(LOOK_BOUND, decisions(feed, jti, since)).await {
        Ok(Ok(found)) => found,
        Ok(Err(problem)) => (Vec::new(), Some(format!("recorded decisions cannot be read: {problem}"))),
        Err(_) => (Vec::new(), Some("recorded decisions were not read in time".to_owned())),
    };
    Ok(Trace { token: jti.to_owned(), events, decisions, incomplete })
}

fn time(event: &Value) -> i64 {
    event["time_ms"].as_i64().unwrap_or_default()
}

/// Whether the event ends tokens of a session, subject or client.
fn ends(event: &Value) -> bool {
    let action = event["action"].as_str().unwrap_or_default();
    matches!(action, "revocation.applied" | "session.ended" | "token.refresh_reuse" | "client.deleted")
}

async fn decisions(
    feed: &FeedHandle,
    jti: &str,
    since: Option<i64>,
) -> Result<(Vec<Value>, Option<String>), String> {
    let context = jetstream::new(feed.client());
    let stream = context.get_stream(AUDIT_STREAM).await.map_err(|error| error.to_string())?;
    let start = since
        .and_then(|since| u64::try_from(since).ok())
        .map(|since| std::time::UNIX_EPOCH + Duration::from_millis(since));
    let config = pull::Config {
        filter_subject: feed.subjects().audit(),
        deliver_policy: start
            .map_or(DeliverPolicy::All, |start| DeliverPolicy::ByStartTime { start_time: start.into() }),
        ack_policy: AckPolicy::None,
        inactive_threshold: Duration::from_secs(30),
        ..pull::Config::default()
    };
    let consumer: consumer::PullConsumer =
        stream.create_consumer(config).await.map_err(|error| error.to_string())?;
    let (mut found, mut looked_at) = (Vec::new(), 0);
    // Records name the token as a JSON string; most are passed over without parsing them.
    let needle = serde_json::to_string(jti).map_err(|error| error.to_string())?;
    loop {
        let mut batch =
            consumer.fetch().max_messages(1_000).messages().await.map_err(|error| error.to_string())?;
        let mut number = 0;
        while let Some(message) = batch.next().await {
            number += 1;
            let payload = message.map_err(|error| error.to_string())?.payload.clone();
            let Ok(text) = std::str::from_utf8(&payload) else { continue };
            if !text.contains(&needle) {
                continue;
            }
            let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            found.extend(records.filter(|record| record["token"]["jti"] == jti));
            if found.len() >= MAX_DECISIONS {
                return Ok((found, Some(format!("only the first {MAX_DECISIONS} decisions are shown"))));
            }
        }
        looked_at += number;
        if number == 0 {
            found.sort_by_key(time);
            return Ok((found, None));
        }
        if looked_at >= MAX_LOOKED_AT {
            return Ok((found, Some(format!("only {MAX_LOOKED_AT} recorded decisions were looked at"))));
        }
    }
}
