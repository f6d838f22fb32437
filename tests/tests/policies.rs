//! Policy sets from the operator's side: applied as a whole, rolled back by one command, refused where they cannot be taken, with
//! the reason where an operator looks.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::Path;

use atm_core::time::UnixMillis;
use atm_proto::change::{Change, ChangeSet, Digest, Epoch};
use atm_tests::dev::DevStack;
use atm_tests::process::{stderr, stdout};
use atm_tests::wait;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

const ORDERS: &str = include_str!("../../examples/policies/orders.yaml");

fn write(stack: &DevStack, name: &str, text: &str) -> String {
    let path = stack.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

async fn json_of(stack: &DevStack, arguments: &[&str]) -> Value {
    let mut all = vec!["--output", "json"];
    all.extend(arguments);
    let output = stack.atmctl(&all).await;
    serde_json::from_str(&stdout(&output))
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}{}", stdout(&output), stderr(&output)))
}

/// The store's file in the stack's directory.
fn database(directory: &Path) -> std::path::PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![directory.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path if path.extension().is_some_and(|extension| extension == "db") => found.push(path),
                _ => {}
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Commits a change as a control plane would that takes more than this one does: one of a newer version.
async fn commit_past_the_compiler(stack: &DevStack, change: Change) {
    let set = ChangeSet {
        realm_group: String::new(),
        epoch: Epoch::from_bytes([0; 16]),
        revision: 1,
        previous_digest: Digest::ZERO,
        time: UnixMillis(0),
        changes: vec![change],
    };
    let options = SqliteConnectOptions::new().filename(database(stack.path()));
    let pool = SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(
        "INSERT INTO outbox (id, position, change, created_at) \
         SELECT 'of-a-newer-version', COALESCE(MAX(position), 0) + 1, $1, 0 FROM outbox WHERE revision IS NULL",
    )
    .bind(set.encode())
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_cannot_take_a_set_keeps_the_last_good_one_and_says_why() {
    let stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let token = client.issue().await.unwrap();
    assert_eq!(client.use_token(&token).await.unwrap().status, 200);

    let newer = ORDERS.replace("onStale: deny", "onStale: deny\n  quantumSafe: true");
    commit_past_the_compiler(&stack, Change::Policies { version: 99, documents: vec![newer] }).await;
    // Any change makes the control plane look at what is committed.
    let key =
        json_of(&stack, &["api-key", "create", "--subject", "robot", "--audience", "a", "--scope", "s"])
            .await;
    json_of(&stack, &["api-key", "revoke", key["id"].as_str().unwrap()]).await;

    let why = wait::until("the fleet to say why", wait::USUAL, || async {
        let fleet = client.admin("GET", "/admin/v1/fleet", &Value::Null).await.unwrap().json();
        let degraded = fleet["sidecars"][0]["degraded"].as_str().unwrap_or_default().to_owned();
        if degraded.contains("quantumSafe") { Ok(fleet) } else { Err(fleet.to_string()) }
    })
    .await;
    let sidecar = &why["sidecars"][0];
    let told = sidecar["degraded"].as_str().unwrap();
    assert!(told.contains("policy set 99") && told.contains("stays in force"), "{told}");
    assert_eq!(sidecar["ready"], true, "it goes on deciding: {sidecar}");
    let shown = stack.atmctl(&["fleet"]).await;
    assert!(stdout(&shown).contains("quantumSafe"), "{}", stdout(&shown));
    assert_eq!(
        stdout(&shown).lines().filter(|line| line.contains("quantumSafe")).count(),
        1,
        "one line a sidecar"
    );
    let state = client.sidecar("/state").await.unwrap().json();
    assert!(state["policies"]["fault"].as_str().unwrap().contains("quantumSafe"), "{state}");
    assert!(client.sidecar("/metrics").await.unwrap().text().contains("atm_sidecar_degraded 1"));

    // The last good set decides, also what is new.
    let fresh = client.issue().await.unwrap();
    assert_eq!(client.use_token(&fresh).await.unwrap().status, 200);
    let revoked = stack.atmctl(&["revoke", "--wait", "--token", &token]).await;
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    assert_eq!(client.use_token(&token).await.unwrap().header("x-atm-reason"), Some("revoked_token"));

    // A set that it can take puts it right.
    let good = write(&stack, "good.yaml", ORDERS);
    json_of(&stack, &["policy", "apply", &good]).await;
    wait::until("the fleet to be whole again", wait::USUAL, || async {
        let fleet = client.admin("GET", "/admin/v1/fleet", &Value::Null).await.unwrap().json();
        if fleet["sidecars"][0]["degraded"].is_null() { Ok(()) } else { Err(fleet.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_is_checked_compared_applied_and_rolled_back_as_a_whole() {
    let stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let narrower = ORDERS.replace("scopes: { all: [\"orders.read\"] }", "scopes: { all: [\"orders.raed\"] }");
    let (same, changed) = (write(&stack, "same.yaml", ORDERS), write(&stack, "changed.yaml", &narrower));

    // Mistakes, tables and differences have exit statuses that a pipeline can tell from a failure to look.
    let broken = write(&stack, "broken.yaml", &ORDERS.replace("paths:", "pahts:"));
    for (arguments, status) in [
        (&["policy", "check", &same][..], 0),
        (&["policy", "check", &broken], 1),
        (&["policy", "check", "/nonexistent.yaml"], 2),
        (&["policy", "diff", &same], 0),
        (&["policy", "diff", &changed], 1),
        (&["policy", "diff", &broken], 2),
        (&["policy", "diff", &changed, "--against", &same], 1),
        (&["policy", "replay", "/nonexistent.log", "--policy", &same], 2),
    ] {
        let output = stack.atmctl(arguments).await;
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {}{}",
            stdout(&output),
            stderr(&output)
        );
    }
    let mistakes = json_of(&stack, &["policy", "check", &broken]).await;
    assert_eq!(mistakes["mistakes"][0]["path"], "spec.rules[0]", "{mistakes}");
    assert!(mistakes["mistakes"][0]["line"].as_u64().unwrap() > 1, "{mistakes}");
    let difference = json_of(&stack, &["policy", "diff", &changed]).await;
    assert_eq!(difference["changed"][0]["rule"], "orders/read", "{difference}");
    assert_eq!(difference["changed"][0]["keys"][0]["key"], "scopes.all", "{difference}");

    // A scope that nobody can have is applied, with a word of warning.
    let applied = json_of(&stack, &["policy", "apply", &changed]).await;
    assert!(applied["warnings"][0].as_str().unwrap().contains("orders.raed"), "{applied}");
    client.until_settled().await;
    let token = client.issue().await.unwrap();
    let refused = client.use_token(&token).await.unwrap();
    assert_eq!(refused.header("x-atm-reason"), Some("scope_insufficient"), "{}", refused.text());

    let back = json_of(&stack, &["policy", "rollback"]).await;
    assert!(back["version"].as_u64() > applied["version"].as_u64(), "{back}");
    client.until_settled().await;
    assert_eq!(client.use_token(&token).await.unwrap().status, 200);
    let history = json_of(&stack, &["policy", "list"]).await;
    assert_eq!(history["version"], back["version"], "{history}");
    assert_eq!(history["documents"][0], json!(ORDERS), "the documents come back as they were written");
}
