//! Spans continue the caller's trace, through the sidecar and on to the control plane.

use atm_tests::collector::Collector;
use atm_tests::dev::DevStack;
use atm_tests::{http, process, wait};
use serde_json::{Value, json};

use super::fixture::{Asked, Fixture};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn traceparent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{SPAN}-{flags}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_is_a_span_of_the_callers_trace_where_the_caller_records_it() {
    let collector = Collector::start().await;
    let fixture = Fixture::start_with(|sidecar| {
        sidecar.set("tracing", json!({ "endpoint": collector.endpoint() }));
        sidecar.set("decisionLog", json!({ "permitSample": 1 }));
    })
    .await;
    let envoy = fixture.envoy(Asked::Grpc, |_| {}).await;
    let token = format!("Bearer {}", fixture.mint.token().sign());
    let get = async |target: &str, traceparent: &str| {
        let headers = [("authorization", token.as_str()), ("traceparent", traceparent)];
        http::exchange(envoy.address(), &http::request("GET", target, "orders.test", &headers, ""))
            .await
            .unwrap()
    };
    let unsampled = "5bf92f3577b34da6a3ce929d0e0e4736";
    get("/orders", &traceparent(unsampled, "00")).await;
    get("/orders", "garbage").await;
    get("/orders", &traceparent(TRACE, "01")).await;
    let span = collector.until_span("atm-sidecar", "atm.check", TRACE).await;
    assert_eq!(hex::encode(&span.span.parent_span_id), SPAN);
    let told = ["atm.reason", "atm.policy", "atm.rule", "atm.freshness"].map(|name| span.attribute(name));
    assert_eq!(told, ["permit", "edges", "orders", "fresh"]);
    assert!(span.span.end_time_unix_nano > span.span.start_time_unix_nano, "{span:?}");
    let refused_trace = "6bf92f3577b34da6a3ce929d0e0e4736";
    get("/nothing", &traceparent(refused_trace, "01")).await;
    let span = collector.until_span("atm-sidecar", "atm.check", refused_trace).await;
    assert_eq!(span.attribute("atm.reason"), "no_policy");
    assert_eq!(span.span.status.unwrap_or_default().code, 0, "a refusal is no fault");
    assert_eq!(
        collector.spans().len(),
        2,
        "one that the caller does not record is nobody's: {:?}",
        collector.spans()
    );
    let secret = token.rsplit('.').next().unwrap();
    assert!(!format!("{:?}", collector.spans()).contains(secret), "a credential is in a span");
    // The log's records are found from the trace.
    wait::until_some("the record of the traced decision", wait::USUAL, || {
        fixture.sidecar.log().lines().find(|line| line.contains(TRACE)).map(str::to_owned)
    })
    .await;
    fixture.sidecar.until_metric("atm_sidecar_spans_total{outcome=\"exported\"}", 2.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_holds_nothing_up_and_what_is_lost_is_counted() {
    let fixture = Fixture::start_with(|sidecar| {
        // Nobody listens on the discard port.
        sidecar.set("tracing", json!({ "endpoint": "http://127.0.0.1:9", "sample": 1, "queue": 16 }));
    })
    .await;
    let envoy = fixture.envoy(Asked::Grpc, |_| {}).await;
    let token = fixture.mint.token().sign();
    for _ in 0..5 {
        assert!(fixture.get(&envoy, "/orders", Some(&token)).await.reached_upstream());
    }
    fixture.sidecar.until_metric("atm_sidecar_spans_total{outcome=\"failed\"}", 5.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_introspection_is_one_trace_from_the_gateway_to_the_control_plane() {
    let collector = Collector::start().await;
    let stack = DevStack::up_with(&[("ATM_TRACING__ENDPOINT", collector.endpoint())]).await;
    let policy = stack.path().join("keys.yaml");
    std::fs::write(&policy, include_str!("../../../examples/policies/api-keys.yaml")).unwrap();
    let atmctl = async |arguments: &[&str]| {
        let output = stack.atmctl(&[&["--output", "json"], arguments].concat()).await;
        assert!(output.status.success(), "{arguments:?}: {}", process::stderr(&output));
        serde_json::from_str::<Value>(&process::stdout(&output)).unwrap()
    };
    atmctl(&["policy", "apply", policy.to_str().unwrap()]).await;
    let key = atmctl(&[
        "api-key",
        "create",
        "--subject",
        "robot",
        "--audience",
        "orders-api",
        "--scope",
        "orders.read",
    ])
    .await["api_key"]
        .as_str()
        .unwrap()
        .to_owned();
    stack.client().until_settled().await;
    let traceparent = traceparent(TRACE, "01");
    let headers = [("x-api-key", key.as_str()), ("traceparent", traceparent.as_str())];
    let envoy = http::authority(stack.field("envoy_url"));
    let answer =
        http::exchange(envoy, &http::request("GET", "/orders/1", "orders.test", &headers, "")).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let check = collector.until_span("atm-sidecar", "atm.check", TRACE).await;
    let asked = collector.until_span("atm-sidecar", "atm.introspection", TRACE).await;
    let answered = collector.until_span("atm-control-plane", "atm.introspect", TRACE).await;
    assert_eq!(hex::encode(&check.span.parent_span_id), SPAN);
    assert_eq!(asked.span.parent_span_id, check.span.span_id);
    assert_eq!(answered.span.parent_span_id, asked.span.span_id);
    assert_eq!(asked.attribute("atm.introspection.outcome"), "active");
    assert_eq!(answered.attribute("atm.introspection.active"), "true");
}
