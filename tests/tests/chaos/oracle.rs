//! Who knows what was revoked when, and watches whether everybody keeps to it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atm_proto::report::SidecarReport;
use atm_tests::authority::FeedAuthority;
use atm_tests::authz::Authz;
use atm_tests::dev::claims;
use atm_tests::{http, wait};
use futures::StreamExt;
use prost::Message;
use serde_json::json;
use tokio::task::JoinHandle;

use super::stack::Stack;

/// Reasons with which a valid token may be refused: nobody can know better then.
const EXCUSED: [&str; 3] = ["stale", "not_ready", "revocation_unconfirmed"];

/// How long a control plane may take for an answer before another one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// Tokens that are used more often than others: those about to be revoked, and revoked lately.
const RECENT: usize = 40;

#[derive(Debug, Clone)]
enum Standing {
    /// Never named in a revocation.
    Valid,
    /// A call named it, and its answer did not come: it may be revoked or not.
    Unknown,
    /// Revoked with this revision.
    Revoked(u64),
}

#[derive(Debug, Clone)]
struct Token {
    text: String,
    jti: String,
    expires_at: i64,
    standing: Standing,
}

#[derive(Debug, Default)]
struct Knowledge {
    tokens: Vec<Token>,
    /// The newest revision that each sidecar ever reported.
    reported: HashMap<String, u64>,
    newest: u64,
    summary: Summary,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Summary {
    pub(crate) acknowledged: u64,
    pub(crate) permits: u64,
    pub(crate) refusals: u64,
    pub(crate) excused: u64,
    pub(crate) unanswered: u64,
    pub(crate) violations: Vec<String>,
}

impl Summary {
    /// Answers of sidecars.
    pub(crate) fn decisions(&self) -> u64 {
        self.permits + self.refusals + self.excused
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, permits, refusals, excused, unanswered, violations } = self;
        write!(
            f,
            "{acknowledged} revocations acknowledged, {permits} permits, {refusals} refusals of revoked tokens, {excused} stale or \
             not ready, {unanswered} unanswered, {} violations",
            violations.len()
        )
    }
}

/// Issues, uses and revokes tokens for as long as it lives.
pub(crate) struct Traffic {
    knowledge: Arc<Mutex<Knowledge>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Traffic {
    pub(crate) async fn start(stack: &Stack) -> Self {
        let knowledge = Arc::new(Mutex::new(Knowledge::default()));
        let planes: Vec<_> = stack.planes.iter().map(|plane| Addresses::of(&plane.control_plane)).collect();
        for number in 0..20 {
            let oauth = &planes[number % planes.len()].oauth;
            let token = issue(oauth, &stack.client).await.expect("a token before any fault");
            knowledge.lock().unwrap().tokens.push(token);
        }
        let mut tasks = vec![tokio::spawn(revoke(Arc::clone(&knowledge), planes, stack.client.clone()))];
        // At each server, for the time that one of them is away.
        for server in &stack.nats {
            tasks.push(tokio::spawn(hear_reports(Arc::clone(&knowledge), server.url())));
        }
        for node in &stack.nodes {
            let authz = Authz::lazy(&node.socket);
            tasks.push(tokio::spawn(check(Arc::clone(&knowledge), node.id.clone(), authz)));
        }
        Self { knowledge, tasks }
    }

    /// The newest revision that was acknowledged.
    pub(crate) fn newest(&self) -> u64 {
        self.knowledge.lock().unwrap().newest
    }

    /// Ends the traffic and judges every token at every sidecar once more; all are level now.
    pub(crate) async fn settle(self, stack: &Stack) -> Summary {
        self.tasks.iter().for_each(JoinHandle::abort);
        let tokens = self.knowledge.lock().unwrap().tokens.clone();
        for node in &stack.nodes {
            let authz = Authz::lazy(&node.socket);
            for token in &tokens {
                let asked = || async { authz.try_check_token(&token.text).await.ok_or("no answer") };
                let verdict = wait::until("an answer: nothing is broken now", wait::USUAL, asked).await;
                let right = match token.standing {
                    Standing::Valid => verdict.is_permit(),
                    Standing::Unknown => verdict.is_permit() || verdict.reason == "revoked_token",
                    Standing::Revoked(_) => verdict.reason == "revoked_token",
                };
                if !right {
                    let violation =
                        format!("at the end {} of {}: {:?} {verdict:?}", token.jti, node.id, token.standing);
                    self.knowledge.lock().unwrap().summary.violations.push(violation);
                }
            }
        }
        self.knowledge.lock().unwrap().summary.clone()
    }
}

/// Where a control plane listens; the same after each start.
struct Addresses {
    oauth: String,
    admin: String,
}

impl Addresses {
    fn of(control_plane: &FeedAuthority) -> Self {
        let oauth = control_plane.oauth_url().trim_start_matches("http://").to_owned();
        Self { oauth, admin: control_plane.admin_address() }
    }
}

async fn issue(oauth: &str, client: &(String, String)) -> Option<Token> {
    let body = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}&audience=orders-api&scope=orders.read",
        client.0, client.1
    );
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let request = http::request("POST", "/oauth2/token", oauth, &headers, &body);
    let answer = tokio::time::timeout(PATIENCE, http::exchange(oauth, &request)).await.ok()?;
    let answer = answer.ok().filter(|answer| answer.status == 200)?;
    let text = answer.json()["access_token"].as_str()?.to_owned();
    let claims = claims(&text);
    Some(Token {
        jti: claims["jti"].as_str()?.to_owned(),
        expires_at: claims["exp"].as_i64()?,
        standing: Standing::Valid,
        text,
    })
}

/// Revokes one token after the other, and issues another one for each.
async fn revoke(knowledge: Arc<Mutex<Knowledge>>, planes: Vec<Addresses>, client: (String, String)) {
    for Addresses { oauth, admin } in planes.iter().cycle() {
        tokio::time::sleep(Duration::from_millis(60)).await;
        if let Some(token) = issue(oauth, &client).await {
            knowledge.lock().unwrap().tokens.push(token);
        }
        let chosen = {
            let mut knowledge = knowledge.lock().unwrap();
            let valid =
                knowledge.tokens.iter().filter(|token| matches!(token.standing, Standing::Valid)).count();
            let at = knowledge.tokens.iter().position(|token| matches!(token.standing, Standing::Valid));
            at.filter(|_| valid > 10).map(|at| {
                // From here on it may be revoked, whatever the answer says.
                knowledge.tokens[at].standing = Standing::Unknown;
                (at, knowledge.tokens[at].clone())
            })
        };
        let Some((at, token)) = chosen else { continue };
        let body = json!({ "selector": { "token": { "jti": token.jti, "expires_at": token.expires_at } } });
        let bearer = atm_tests::authority::ADMIN_TOKEN;
        let call = http::json("POST", admin, "/admin/v1/revocations", bearer, &body);
        let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, call).await else { continue };
        if answer.status == 200
            && let Some(revision) = answer.json()["revision"].as_u64()
        {
            let mut knowledge = knowledge.lock().unwrap();
            knowledge.tokens[at].standing = Standing::Revoked(revision);
            knowledge.summary.acknowledged += 1;
            knowledge.newest = knowledge.newest.max(revision);
        }
    }
}

/// Hears what sidecars report, at NATS itself: what a receipt is made of.
async fn hear_reports(knowledge: Arc<Mutex<Knowledge>>, nats: String) {
    let client =
        async_nats::ConnectOptions::new().retry_on_initial_connect().connect(nats).await.expect("a URL");
    let mut reports = client.subscribe("atm.default.fleet.*").await.expect("subscribed");
    while let Some(message) = reports.next().await {
        let report = SidecarReport::decode(message.payload).expect("a report");
        let mut knowledge = knowledge.lock().unwrap();
        let newest = knowledge.reported.entry(report.sidecar_id).or_default();
        *newest = (*newest).max(report.applied_revision);
    }
}

/// Uses every token at one sidecar, again and again.
async fn check(knowledge: Arc<Mutex<Knowledge>>, id: String, authz: Authz) {
    let mut turn = 0_usize;
    loop {
        tokio::time::sleep(Duration::from_millis(4)).await;
        turn = turn.wrapping_add(1);
        // What is known before the question is asked.
        let (token, before) = {
            let knowledge = knowledge.lock().unwrap();
            let number = knowledge.tokens.len();
            let at = if turn.is_multiple_of(2) {
                turn / 2 % number
            } else {
                number - 1 - turn / 2 % RECENT.min(number)
            };
            (knowledge.tokens[at].clone(), knowledge.reported.get(&id).copied().unwrap_or_default())
        };
        let Some(verdict) = authz.try_check_token(&token.text).await else {
            knowledge.lock().unwrap().summary.unanswered += 1;
            continue;
        };
        let mut knowledge = knowledge.lock().unwrap();
        let excused = EXCUSED.contains(&verdict.reason.as_str());
        match (&token.standing, verdict.is_permit()) {
            (Standing::Revoked(revision), true) if *revision <= before => {
                let jti = &token.jti;
                knowledge.summary.violations.push(format!(
                    "{id} accepted {jti}, revoked with revision {revision}, after it had reported revision {before}"
                ));
            }
            (_, true) => knowledge.summary.permits += 1,
            (_, false) if excused => knowledge.summary.excused += 1,
            (Standing::Valid, false) => {
                // It may have been named in a call while the question was under way.
                let still = knowledge.tokens.iter().find(|known| known.jti == token.jti);
                if matches!(still.map(|known| &known.standing), Some(Standing::Valid)) {
                    let violation = format!("{id} refused {}, which is valid: {verdict:?}", token.jti);
                    knowledge.summary.violations.push(violation);
                }
            }
            (_, false) => knowledge.summary.refusals += 1,
        }
    }
}
