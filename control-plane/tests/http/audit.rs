//! The audit chain through the admin API.

use std::time::{Duration, Instant};

use atm_proto::audit::{Report, Verifier};
use atm_proto::signature::TrustedFeedKeys;
use serde_json::{Value, json};

use crate::harness::{Server, answer, assert_problem};

/// The newest events of `action`, as soon as there is one.
async fn events(server: &Server, query: &str) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, page) = answer(server.admin("GET", &format!("/admin/v1/audit?{query}"))).await;
        assert_eq!(status, 200, "{page}");
        let items = page["items"].as_array().unwrap().clone();
        if !items.is_empty() {
            return items;
        }
        assert!(Instant::now() < deadline, "no event for {query}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What `atmctl audit verify` does.
async fn verify(server: &Server) -> Report {
    let (_, chains) = answer(server.admin("GET", "/admin/v1/audit/chains")).await;
    let key = chains["key"].as_str().unwrap().parse().unwrap();
    let mut verifier = Verifier::new(TrustedFeedKeys::new(vec![key]), true);
    for chain in chains["items"].as_array().unwrap() {
        let name = chain["chain"].as_str().unwrap();
        let mut next = "1".to_owned();
        loop {
            let path = format!("/admin/v1/audit/export/{name}?from={next}");
            let response = server.admin("GET", &path).send().await.unwrap();
            assert_eq!(response.status(), 200);
            let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            next = header("atm-audit-next");
            let more = header("atm-audit-more") == "true";
            for line in response.text().await.unwrap().lines() {
                verifier.line(line.as_bytes());
            }
            if !more {
                break;
            }
        }
    }
    verifier.finish()
}

#[tokio::test]
async fn what_an_operator_changes_is_recorded_before_the_answer() {
    let server = Server::start().await;
    let client = server.client().await;
    let query = format!("action=client.created&client={}", client.id);
    let (_, page) = answer(server.admin("GET", &format!("/admin/v1/audit?{query}"))).await;
    let event = &page["items"][0];
    assert_eq!((&event["actor"]["kind"], &event["actor"]["id"]), (&json!("admin"), &json!("admin")));
    assert_eq!((&event["outcome"], &event["detail"]["status"]), (&json!("success"), &json!(201)));
    let text = page.to_string();
    assert!(!text.contains(&client.secret), "no secret: {text}");
}

#[tokio::test]
async fn a_revocation_is_recorded_with_what_it_names() {
    let server = Server::start().await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body = json!({ "selector": { "subject": "alice" }, "reason": "left" });
    let request =
        server.admin("POST", "/admin/v1/revocations").header("traceparent", traceparent).json(&body);
    assert_eq!(answer(request).await.0, 200);
    let event = &events(&server, "action=revocation.applied&subject=alice").await[0];
    assert_eq!(event["detail"]["why"], "left");
    assert_eq!(event["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
}

#[tokio::test]
async fn the_whole_chain_verifies_through_the_api_and_through_a_restart() {
    let server = Server::start().await;
    for _ in 0..5 {
        server.client().await;
    }
    let server = server.restarted().await;
    server.client().await;
    let report = verify(&server).await;
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.chains.len(), 2);
    assert_eq!(report.chains.iter().filter(|chain| chain.closed).count(), 1);
}

#[tokio::test]
async fn lists_page_and_bad_queries_are_told() {
    let server = Server::start().await;
    for _ in 0..5 {
        server.client().await;
    }
    let (_, first) = answer(server.admin("GET", "/admin/v1/audit?action=client.created&limit=2")).await;
    let next = first["next"].as_str().unwrap();
    let (_, second) =
        answer(server.admin("GET", &format!("/admin/v1/audit?action=client.created&limit=2&after={next}")))
            .await;
    assert_ne!(first["items"][1], second["items"][0]);
    assert_eq!(second["items"].as_array().unwrap().len(), 2);
    assert_problem(server.admin("GET", "/admin/v1/audit?limit=0"), 422).await;
    assert_problem(server.admin("GET", "/admin/v1/audit?after=x"), 422).await;
    assert_problem(server.admin("GET", "/admin/v1/audit?nonsense=1"), 400).await;
    assert_problem(server.admin("GET", "/admin/v1/audit/trace/unknown"), 404).await;
}
