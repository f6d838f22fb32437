//! Tokens that are issued, used and revoked in the background, and the watch over what comes of them.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atm_tests::dev::{DevClient, claims};
use atm_tests::wait;
use serde_json::json;
use tokio::task::JoinHandle;

const VALID: u8 = 0;
/// A revocation was asked for; it may or may not be in force.
const REVOKING: u8 = 1;
/// The call returned 200: it is in the store and must come into force, at the latest when the sidecar has caught up.
const STORED: u8 = 2;
/// The whole fleet reported its revision.
const CONFIRMED: u8 = 3;

/// Tokens of the pool that are used in turn; old ones give way, so that each is used often.
const POOL: usize = 40;

#[derive(Debug)]
struct Tracked {
    token: String,
    jti: String,
    state: AtomicU8,
}

#[derive(Debug)]
struct Watch {
    client: DevClient,
    tokens: Mutex<Vec<Arc<Tracked>>>,
    violations: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Summary {
    /// Tokens never revoked.
    pub(crate) valid: usize,
    /// Tokens whose revocation the fleet confirmed.
    pub(crate) confirmed: usize,
    /// Answers that must not be.
    pub(crate) violations: Vec<String>,
}

/// Background traffic over one stack.
#[derive(Debug)]
pub(crate) struct Traffic {
    watch: Arc<Watch>,
    tasks: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Begins to issue, use and revoke.
    pub(crate) fn start(client: &DevClient) -> Self {
        let watch = Arc::new(Watch {
            client: client.clone(),
            tokens: Mutex::default(),
            violations: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let tasks = vec![
            tokio::spawn(issue(Arc::clone(&watch))),
            tokio::spawn(revoke(Arc::clone(&watch))),
            tokio::spawn(use_tokens(Arc::clone(&watch), 0)),
            tokio::spawn(use_tokens(Arc::clone(&watch), POOL / 2)),
        ];
        Self { watch, tasks }
    }

    /// Waits until more tokens were issued and more revocations confirmed.
    pub(crate) async fn until_progress(&self, when: &str) {
        let (issued, confirmed) = (self.watch.count(None), self.watch.count(Some(CONFIRMED)));
        wait::until_some(&format!("tokens to be issued and revoked {when}"), wait::USUAL, || {
            let progress =
                self.watch.count(None) >= issued + 5 && self.watch.count(Some(CONFIRMED)) >= confirmed + 5;
            progress.then_some(())
        })
        .await;
    }

    /// Lets the traffic meet a program that is away, for at least this long and with some uses in it.
    pub(crate) async fn during_outage(&self, length: Duration) {
        // The length of an outage is an input of the test, not a guess at when something will have happened.
        tokio::time::sleep(length).await;
    }

    /// With everything up and settled, each token gets the one right answer.
    pub(crate) async fn assert_every_token_is_judged_rightly(&self, program: &str) {
        for tracked in self.watch.all() {
            let before = tracked.state.load(Ordering::SeqCst);
            let answer = self.watch.client.use_token(&tracked.token).await.expect("Envoy answers");
            let state = tracked.state.load(Ordering::SeqCst);
            let right = match before {
                VALID => state != VALID || answer.status == 200,
                STORED | CONFIRMED => answer.header("x-atm-reason") == Some("revoked_token"),
                _ => true,
            };
            assert!(
                right,
                "after {program} came back: token {} in state {state} got {} {}",
                tracked.jti,
                answer.status,
                answer.text()
            );
        }
    }

    /// Ends the traffic and gives what was seen.
    pub(crate) async fn stop(self) -> Summary {
        self.watch.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("traffic does not panic");
        }
        Summary {
            valid: self.watch.count(Some(VALID)),
            confirmed: self.watch.count(Some(CONFIRMED)),
            violations: self.watch.violations.lock().expect("not poisoned").clone(),
        }
    }
}

impl Watch {
    fn running(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn all(&self) -> Vec<Arc<Tracked>> {
        self.tokens.lock().expect("not poisoned").clone()
    }

    fn count(&self, state: Option<u8>) -> usize {
        self.all()
            .iter()
            .filter(|t| state.is_none_or(|state| t.state.load(Ordering::SeqCst) == state))
            .count()
    }

    fn violation(&self, text: String) {
        self.violations.lock().expect("not poisoned").push(text);
    }
}

async fn issue(watch: Arc<Watch>) {
    while watch.running() {
        if let Ok(token) = watch.client.issue().await {
            let jti = claims(&token)["jti"].as_str().expect("jti").to_owned();
            let tracked = Tracked { token, jti, state: AtomicU8::new(VALID) };
            watch.tokens.lock().expect("not poisoned").push(Arc::new(tracked));
        }
        // Paces the traffic; nothing waits for it.
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

async fn revoke(watch: Arc<Watch>) {
    while watch.running() {
        // The oldest valid one, and never the last few: some tokens stay valid for ever.
        let victim = watch
            .all()
            .iter()
            .step_by(2)
            .find(|tracked| tracked.state.load(Ordering::SeqCst) == VALID)
            .cloned();
        if let Some(victim) = victim {
            victim.state.store(REVOKING, Ordering::SeqCst);
            let selector = json!({ "token": { "jti": victim.jti } });
            if let Ok(answer) = watch.client.revoke(&selector, 1_000).await {
                let confirmed = answer["receipt"]["complete"] == true;
                victim.state.store(if confirmed { CONFIRMED } else { STORED }, Ordering::SeqCst);
            }
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

async fn use_tokens(watch: Arc<Watch>, offset: usize) {
    let mut turn = offset;
    while watch.running() {
        let tokens = watch.all();
        let pool = &tokens[tokens.len().saturating_sub(POOL)..];
        if let Some(tracked) = pool.get(turn % pool.len().max(1)) {
            use_once(&watch, tracked).await;
        }
        turn += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn use_once(watch: &Watch, tracked: &Tracked) {
    let before = tracked.state.load(Ordering::SeqCst);
    let Ok(answer) = watch.client.use_token(&tracked.token).await else { return };
    let after = tracked.state.load(Ordering::SeqCst);
    let reason = answer.header("x-atm-reason").map(str::to_owned);
    if before == CONFIRMED && answer.status == 200 {
        watch.violation(format!("{} was accepted after the fleet had confirmed its revocation", tracked.jti));
    }
    // 503 says «ask again», and never anything about the token: the sidecar is away or has not caught up.
    let judged = answer.status != 200 && answer.status != 503;
    if before == VALID && after == VALID && judged {
        watch.violation(format!("{} is valid and got {} {reason:?}", tracked.jti, answer.status));
    }
}
