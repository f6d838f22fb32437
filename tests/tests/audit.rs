//! The audit chain over the whole stack: one token's life, a killed control plane, and the search for secrets in everything
//! that the programs put out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use atm_proto::audit::{Report, Verifier};
use atm_proto::signature::TrustedFeedKeys;
use atm_tests::dev::{DevStack, claims};
use atm_tests::process::{stderr, stdout};
use atm_tests::wait;
use futures::StreamExt;
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(30);

/// The JSON that `atmctl` prints; what it came to is looked at by the caller.
async fn atmctl(stack: &DevStack, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = ["--output", "json"].into_iter().chain(arguments.iter().copied()).collect();
    let output = stack.atmctl(&arguments).await;
    serde_json::from_str(&stdout(&output))
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}{}", stdout(&output), stderr(&output)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_traced_from_issuance_through_use_to_refusal() {
    let stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let token = client.issue().await.unwrap();
    let jti = claims(&token)["jti"].as_str().unwrap().to_owned();
    assert_eq!(client.use_token(&token).await.unwrap().status, 200);
    let selector = json!({ "token": { "jti": jti, "expires_at": claims(&token)["exp"] } });
    client.revoke(&selector, 10_000).await.unwrap();
    assert_eq!(client.use_token(&token).await.unwrap().status, 401);
    wait::until("the trace to be whole", BOUND, || async {
        let trace = atmctl(&stack, &["audit", "trace", &jti]).await;
        let has = |list: &str, field: &str, value: &str| {
            trace[list].as_array().is_some_and(|list| list.iter().any(|entry| entry[field] == value))
        };
        let whole = has("events", "action", "token.issued")
            && has("events", "action", "revocation.applied")
            && has("decisions", "reason", "revoked_token");
        if whole { Ok(()) } else { Err(trace.to_string()) }
    })
    .await;
    let verified = stack.atmctl(&["audit", "verify"]).await;
    assert!(verified.status.success(), "{}{}", stdout(&verified), stderr(&verified));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_control_plane_leaves_a_chain_that_verifies_and_a_next_one_that_says_so() {
    let mut stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let issuing = tokio::spawn({
        let client = stack.client();
        async move { while client.issue().await.is_ok() {} }
    });
    wait::until("issuances to be recorded", BOUND, || async {
        let report = atmctl(&stack, &["audit", "verify"]).await;
        if report["events"].as_u64().unwrap_or(0) > 50 { Ok(()) } else { Err(report.to_string()) }
    })
    .await;
    stack.kill("control_plane");
    issuing.await.unwrap();
    stack.start_again("control_plane");
    client.until_settled().await;
    let report = atmctl(&stack, &["audit", "verify"]).await;
    assert_eq!(report["findings"], json!([]), "{report}");
    assert_eq!(report["chains"].as_array().unwrap().len(), 2, "{report}");
    let opened =
        client.admin("GET", "/admin/v1/audit?action=chain.opened", &Value::Null).await.unwrap().json();
    let unclosed = opened["items"][0]["detail"]["unclosed"].as_array().unwrap().clone();
    assert_eq!(unclosed.len(), 1, "{opened}");
}

/// What a verifier makes of the chains in the stream.
async fn verified_stream(stack: &DevStack) -> Report {
    let chains = stack.client().admin("GET", "/admin/v1/audit/chains", &Value::Null).await.unwrap().json();
    let key = chains["key"].as_str().unwrap().parse().unwrap();
    let mut verifier = Verifier::new(TrustedFeedKeys::new(vec![key]), false);
    let mut messages = Vec::new();
    audit_stream(stack.field("nats_url"), &mut messages).await;
    for (subject, text) in messages {
        if subject.ends_with(".audit.events") {
            text.lines().for_each(|line| verifier.line(line.as_bytes()));
        }
    }
    verifier.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_makes_up_for_the_time_that_nats_was_away() {
    let mut stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    stack.kill("nats");
    for _ in 0..50 {
        client.issue().await.unwrap();
    }
    stack.start_again("nats");
    client.until_settled().await;
    wait::until("the stream to hold every issuance", BOUND, || async {
        let listed = atmctl(&stack, &["audit", "tail", "-n", "1"]).await;
        let report = verified_stream(&stack).await;
        let last = report.chains.first().map_or(0, |chain| chain.last);
        if last >= 50 && listed["seq"].as_u64().is_some_and(|seq| last + 1 >= seq) {
            assert!(report.is_intact(), "{report:?}");
            return Ok(());
        }
        Err(format!("{report:?}"))
    })
    .await;
}

/// Everything below `directory` that programs write for people and machines to read.
fn logs(directory: &Path, texts: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            logs(&path, texts);
        } else if path.extension().is_some_and(|extension| extension == "log" || extension == "jsonl") {
            texts.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap_or_default()));
        }
    }
}

/// Command lines of every process.
fn command_lines(texts: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path().join("cmdline");
        // Most are no processes, and some have ended meanwhile.
        if let Ok(line) = std::fs::read(&path) {
            texts.push((path.display().to_string(), String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

/// All messages of the audit stream, by their subjects.
async fn audit_stream(url: &str, texts: &mut Vec<(String, String)>) {
    // A server that has just been started does not listen yet.
    let client = ConnectOptions::new().retry_on_initial_connect().connect(url).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let Ok(stream) = context.get_stream("ATM_AUDIT").await else { return };
    let config = pull::Config { ack_policy: AckPolicy::None, ..pull::Config::default() };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut messages = consumer.fetch().max_messages(10_000).messages().await.unwrap();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        texts.push((message.subject.to_string(), String::from_utf8_lossy(&message.payload).into_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_of_any_program_holds_a_secret() {
    let stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let token = client.issue().await.unwrap();
    assert_eq!(client.use_token(&token).await.unwrap().status, 200);
    let api_key = json!({ "subject": "robot", "scopes": [], "audiences": [stack.field("audience")] });
    let made = client.admin("POST", "/admin/v1/api-keys", &api_key).await.unwrap().json();
    let api_key = made["api_key"].as_str().unwrap().to_owned();
    // Requests that fail in every way: what is said of them must not quote them.
    let mut texts = Vec::new();
    let spoilt = format!("{token}x");
    for (presented, body) in [
        (&token, json!({ "token": token, "nonsense": token })),
        (&spoilt, json!({ "token": spoilt })),
        (&api_key, json!({ "token": api_key })),
    ] {
        let _ = client.use_token(presented).await.unwrap();
        let answer = client.admin("POST", "/admin/v1/revocations", &body).await.unwrap();
        texts.push(("an answer of the admin API".to_owned(), answer.text()));
    }
    let selector = json!({ "token": { "jti": claims(&token)["jti"], "expires_at": claims(&token)["exp"] } });
    client.revoke(&selector, 10_000).await.unwrap();
    assert_eq!(client.use_token(&token).await.unwrap().status, 401);
    let metrics = client.admin("GET", "/metrics", &Value::Null).await.unwrap();
    texts.push(("metrics of the control plane".to_owned(), metrics.text()));
    for path in ["/metrics", "/state", "/readyz"] {
        texts.push((path.to_owned(), client.sidecar(path).await.unwrap().text()));
    }
    let export = stack.atmctl(&["audit", "export"]).await;
    assert!(export.status.success(), "{}", stderr(&export));
    texts.push(("the audit export".to_owned(), stdout(&export)));
    command_lines(&mut texts);
    logs(stack.path(), &mut texts);
    wait::until("the audit stream to hold the chain", BOUND, || async {
        let mut messages = Vec::new();
        audit_stream(stack.field("nats_url"), &mut messages).await;
        let whole = messages.iter().any(|(_, text)| text.contains("revocation.applied"));
        if whole { Ok(()) } else { Err(format!("{} messages", messages.len())) }
    })
    .await;
    audit_stream(stack.field("nats_url"), &mut texts).await;

    let mut secrets = vec![
        ("the access token's signature", token.rsplit('.').next().unwrap().to_owned()),
        ("the API key", api_key),
        ("the client secret", stack.field("client_secret").to_owned()),
        ("the admin token", stack.field("admin_token").to_owned()),
    ];
    for entry in std::fs::read_dir(stack.path()).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "key") {
            secrets.push(("a key file", std::fs::read_to_string(&path).unwrap().trim().to_owned()));
        }
    }
    for (what, secret) in &secrets {
        assert!(secret.len() >= 16, "{what} is no secret: {secret:?}");
        for (place, text) in &texts {
            assert!(!text.contains(secret.as_str()), "{what} is in {place}");
        }
    }
}
