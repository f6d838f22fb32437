//! What the embedded store has acknowledged is there after a SIGKILL at any instant, with many callers sharing its commits.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use atm_tests::control_plane::{AdminClient, ControlPlane};
use atm_tests::http::{self, Answer};
use atm_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Callers that refresh, each a session of its own.
const SESSIONS: usize = 16;
/// Callers that revoke.
const REVOKERS: usize = 4;
/// Acknowledged refreshes between two kills: as many more with each round, so that the instants differ.
const REFRESHES: usize = 40;
const ROUNDS: usize = 4;

fn plane(directory: &Path) -> ControlPlane {
    // NATS is away: what is committed waits for it.
    ControlPlane::configure(&json!({ "path": directory.join("atm.db") }), "nats://127.0.0.1:1")
}

async fn admin(client: &AdminClient, method: &str, path: &str, body: Value) -> Value {
    let answer = client.call(method, path, &body).await.unwrap();
    assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    answer.json()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}")).to_owned()
}

/// A client of the token endpoint.
#[derive(Clone)]
struct App {
    id: String,
    secret: String,
}

impl App {
    async fn refresh(&self, address: &str, token: &str) -> std::io::Result<Answer> {
        let body = format!(
            "client_id={}&client_secret={}&grant_type=refresh_token&refresh_token={token}",
            self.id, self.secret
        );
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        http::exchange(address, &http::request("POST", "/oauth2/token", address, &headers, &body)).await
    }
}

/// What was acknowledged.
#[derive(Default)]
struct Acknowledged {
    /// Of each session all refresh tokens, the newest last.
    tokens: Vec<Mutex<Vec<String>>>,
    refreshes: AtomicUsize,
    /// Tokens that were revoked.
    revoked: Mutex<Vec<String>>,
}

/// Refreshes and revokes until the control plane is gone.
fn callers(plane: &ControlPlane, app: &App, done: &Arc<Acknowledged>, round: usize) -> JoinSet<()> {
    let mut callers = JoinSet::new();
    for lane in 0..SESSIONS {
        let (app, done, address) = (app.clone(), Arc::clone(done), plane.oauth().to_owned());
        callers.spawn(async move {
            let mut token = done.tokens[lane].lock().unwrap().last().unwrap().clone();
            while let Ok(answer) = app.refresh(&address, &token).await {
                // 429: over its limit. Everything else would be a refresh that was lost.
                match answer.status {
                    200 => token = text(&answer.json(), "refresh_token"),
                    429 => continue,
                    status => panic!("{status} {}", answer.text()),
                }
                done.tokens[lane].lock().unwrap().push(token.clone());
                done.refreshes.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for lane in 0..REVOKERS {
        let (client, done) = (plane.client(), Arc::clone(done));
        callers.spawn(async move {
            for number in 0.. {
                let jti = format!("t-{round}-{lane}-{number}");
                let body = json!({ "selector": { "token": { "jti": jti } } });
                let Ok(answer) = client.call("POST", "/admin/v1/revocations", &body).await else { return };
                assert_eq!(answer.status, 200, "{}", answer.text());
                done.revoked.lock().unwrap().push(jti);
            }
        });
    }
    callers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_kill() {
    let directory = TempDir::new().unwrap();
    let mut plane = plane(directory.path());
    plane.start().await;
    let client = json!({ "grant_types": ["refresh_token"], "scopes": ["a"], "audiences": ["api"] });
    let made = admin(&plane.client(), "POST", "/admin/v1/clients", client).await;
    let app = App { id: text(&made, "client_id"), secret: text(&made, "client_secret") };
    let mut done = Acknowledged::default();
    for subject in 0..SESSIONS {
        let body = json!({ "subject": format!("s{subject}"), "client_id": app.id });
        let opened = admin(&plane.client(), "POST", "/admin/v1/sessions", body).await;
        done.tokens.push(Mutex::new(vec![text(&opened, "refresh_token")]));
    }
    let done = Arc::new(done);
    for round in 1..=ROUNDS {
        let before = done.refreshes.load(Ordering::Relaxed);
        let callers = callers(&plane, &app, &done, round);
        let enough = || (done.refreshes.load(Ordering::Relaxed) >= before + REFRESHES * round).then_some(());
        wait::until_some("refreshes to be acknowledged", wait::USUAL, enough).await;
        plane.kill();
        callers.join_all().await;
        plane.start().await;
        let revoked = std::mem::take(&mut *done.revoked.lock().unwrap());
        for jti in revoked {
            let path = format!("/admin/v1/revocations?kind=token&value={jti}");
            let list = admin(&plane.client(), "GET", &path, Value::Null).await;
            assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "round {round}: {jti}");
        }
        for tokens in &done.tokens {
            let newest = tokens.lock().unwrap().last().unwrap().clone();
            let answer = app.refresh(plane.oauth(), &newest).await.unwrap();
            assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
            tokens.lock().unwrap().push(text(&answer.json(), "refresh_token"));
        }
    }
    // What was rotated away stays dead: it is older than any grace allows.
    for tokens in &done.tokens {
        let first = tokens.lock().unwrap().first().unwrap().clone();
        assert_eq!(app.refresh(plane.oauth(), &first).await.unwrap().status, 400);
    }
}
