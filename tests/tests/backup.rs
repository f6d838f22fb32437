//! `atmctl backup` and `restore` on the store of a real control plane.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use atm_tests::control_plane::ControlPlane;
use atm_tests::nats::NatsServer;
use atm_tests::process::{run, stderr, stdout};
use atm_tests::programs;
use serde_json::{Value, json};

async fn atmctl(arguments: &[&str]) -> Output {
    run(&programs::ours("atmctl"), arguments, Duration::from_secs(30)).await
}

async fn admin(plane: &ControlPlane, method: &str, path: &str, body: Value) -> Value {
    let answer = plane.client().call(method, path, &body).await.unwrap();
    assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    answer.json()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A stopped control plane that had one client when the copy was made and two afterwards.
struct Backed {
    plane: ControlPlane,
    directory: tempfile::TempDir,
    epoch: Value,
    _nats: NatsServer,
}

impl Backed {
    async fn up() -> Self {
        let nats = NatsServer::start().await;
        let directory = tempfile::tempdir().unwrap();
        let store = json!({ "path": directory.path().join("atm.db") });
        let mut plane = ControlPlane::configure(&store, &nats.url());
        plane.start().await;
        admin(&plane, "POST", "/admin/v1/clients", json!({ "client_id": "before", "audiences": ["a"] }))
            .await;
        let copied = atmctl(&[
            "--output",
            "json",
            "backup",
            "--store",
            text(&directory.path().join("atm.db")),
            "--to",
            text(&directory.path().join("copy.db")),
        ])
        .await;
        assert!(copied.status.success(), "{}", stderr(&copied));
        let document: Value = serde_json::from_str(&stdout(&copied)).unwrap();
        assert!(document["revision"].as_u64() > Some(0), "{document}");
        admin(&plane, "POST", "/admin/v1/clients", json!({ "client_id": "after", "audiences": ["a"] })).await;
        let epoch = admin(&plane, "GET", "/admin/v1/feed", Value::Null).await["epoch"].clone();
        Self { plane, directory, epoch, _nats: nats }
    }

    async fn restore(&self, more: &[&str]) -> Output {
        let (from, store) = (self.directory.path().join("copy.db"), self.directory.path().join("atm.db"));
        let mut arguments = vec!["restore", "--from", text(&from), "--store", text(&store)];
        arguments.extend(more);
        atmctl(&arguments).await
    }

    /// The ids of its clients.
    async fn clients(&self) -> Vec<String> {
        let list = admin(&self.plane, "GET", "/admin/v1/clients", Value::Null).await;
        let ids =
            list["items"].as_array().unwrap().iter().map(|client| client["client_id"].as_str().unwrap());
        ids.map(ToOwned::to_owned).collect()
    }
}

#[tokio::test]
async fn a_restored_store_is_as_it_was_and_begins_a_new_epoch() {
    let mut backed = Backed::up().await;
    backed.plane.kill();
    let refused = backed.restore(&[]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--force"), "{}", stderr(&refused));
    let restored = backed.restore(&["--force"]).await;
    assert!(restored.status.success(), "{}", stderr(&restored));
    backed.plane.start().await;
    assert_eq!(backed.clients().await, ["before"]);
    let epoch = admin(&backed.plane, "GET", "/admin/v1/feed", Value::Null).await["epoch"].clone();
    assert_ne!(epoch, backed.epoch);
    backed.plane.kill();
    backed.plane.start().await;
    let later = admin(&backed.plane, "GET", "/admin/v1/feed", Value::Null).await["epoch"].clone();
    assert_eq!(later, epoch, "once");
}

#[tokio::test]
async fn a_running_control_plane_keeps_its_store() {
    let backed = Backed::up().await;
    let refused = backed.restore(&["--force"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("stop it first"), "{}", stderr(&refused));
    assert_eq!(backed.clients().await, ["after", "before"]);
}

#[tokio::test]
async fn a_copy_that_is_not_as_it_was_made_is_not_restored() {
    let mut backed = Backed::up().await;
    backed.plane.kill();
    let copy = backed.directory.path().join("copy.db");
    let whole = std::fs::read(&copy).unwrap();
    let mut flipped = whole.clone();
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    std::fs::write(&copy, &flipped).unwrap();
    let refused = backed.restore(&["--force"]).await;
    assert!(stderr(&refused).contains("is not as it was made"), "{}", stderr(&refused));
    std::fs::write(&copy, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(backed.restore(&["--force"]).await.status.code(), Some(1));
    std::fs::remove_file(backed.directory.path().join("copy.db.sha256")).unwrap();
    let refused = backed.restore(&["--force"]).await;
    assert!(stderr(&refused).contains("copy.db.sha256"), "{}", stderr(&refused));
    backed.plane.start().await;
    assert_eq!(backed.clients().await, ["after", "before"], "nothing was changed");
}

#[tokio::test]
async fn a_copy_overwrites_nothing_and_a_file_that_is_no_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (other, copy) = (directory.path().join("notes.db"), directory.path().join("copy.db"));
    let missing = atmctl(&["backup", "--store", text(&other), "--to", text(&copy)]).await;
    assert!(stderr(&missing).contains("notes.db is no file"), "{}", stderr(&missing));
    std::fs::write(&other, "not a database at all, and long enough to be read as one".repeat(50)).unwrap();
    let refused = atmctl(&["backup", "--store", text(&other), "--to", text(&copy)]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(!copy.exists() && !directory.path().join("copy.db.part").exists());
    std::fs::write(&copy, "mine").unwrap();
    let refused = atmctl(&["backup", "--store", text(&other), "--to", text(&copy)]).await;
    assert!(stderr(&refused).contains("is there already"), "{}", stderr(&refused));
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), "mine");
}
