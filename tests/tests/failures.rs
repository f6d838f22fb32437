//! Each program of the local stack is killed with SIGKILL and started again while tokens are issued, used and revoked.
//!
//! Two promises are watched the whole time: a token whose revocation the whole fleet reported is never accepted again, and a
//! valid token is never judged to be anything else. A program that is down may cost an answer, never a wrong one.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

mod failures {
    pub(crate) mod traffic;
}

use std::time::Duration;

use atm_tests::dev::DevStack;
use atm_tests::wait;
use failures::traffic::Traffic;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_crash_lets_a_revoked_token_in_or_keeps_a_valid_one_out() {
    let mut stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let traffic = Traffic::start(&client);
    traffic.until_progress("before any crash").await;

    for program in ["control_plane", "nats", "sidecar"] {
        stack.kill(program);
        traffic.during_outage(Duration::from_secs(2)).await;
        stack.start_again(program);
        client.until_settled().await;
        traffic.until_progress(&format!("after {program} was killed")).await;
        traffic.assert_every_token_is_judged_rightly(program).await;
    }
    let summary = traffic.stop().await;
    assert!(
        summary.confirmed >= 10 && summary.valid >= 10,
        "too little traffic to prove anything: {summary:?}"
    );
    assert!(summary.violations.is_empty(), "{summary:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sidecar_goes_on_alone() {
    let mut stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let token = client.issue().await.expect("a token");
    let revoked = client.issue().await.expect("a token");
    let jti = atm_tests::dev::claims(&revoked)["jti"].clone();
    let receipt =
        client.revoke(&serde_json::json!({ "token": { "jti": jti } }), 10_000).await.expect("revoked");
    assert_eq!(receipt["receipt"]["complete"], true, "{receipt}");
    stack.kill("control_plane");
    stack.kill("nats");
    stack.kill("sidecar");
    stack.start_again("sidecar");
    wait::until("the sidecar to be ready alone", wait::USUAL, || async {
        match client.sidecar("/readyz").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(other.map(|answer| answer.text())),
        }
    })
    .await;
    let answer = client.use_token(&token).await.expect("Envoy answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = client.use_token(&revoked).await.expect("Envoy answers");
    assert_eq!((answer.status, answer.header("x-atm-reason")), (401, Some("revoked_token")));
}
