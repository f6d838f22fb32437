//! Recorded decisions, judged again.

use atm_tests::{process, programs, wait};
use serde_json::{Value, json};

use super::fixture::{Asked, Fixture};

const POLICY: &str = include_str!("policy.yaml");
const ORDERS: &str = r#"paths: ["/orders", "/orders/{id}"], scopes: { all: [orders.read] }"#;

/// The records that a sidecar wrote are those that `atmctl policy replay` judges again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_decisions_are_judged_again_by_another_set() {
    let fixture =
        Fixture::start_with(|sidecar| sidecar.set("decisionLog", json!({ "permitSample": 1 }))).await;
    let envoy = fixture.envoy(Asked::Grpc, |_| {}).await;
    let good = fixture.mint.token().sign();
    let narrow = fixture.mint.token().claim("scope", "profile").sign();
    for (target, token) in [
        ("/orders", Some(&good)),
        ("/orders/7", Some(&good)),
        ("/orders", Some(&narrow)),
        ("/nothing", None),
        ("/healthz", None),
    ] {
        fixture.get(&envoy, target, token.map(String::as_str)).await;
    }
    let records = wait::until_some("five records", wait::USUAL, || {
        let log = fixture.sidecar.log();
        let records = log.lines().filter(|line| line.contains("\"event\":\"decision\"")).count();
        (records == 5).then_some(log)
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let log = file("sidecar.log", &records);
    let replay = async |policy: &str| {
        let arguments = ["--output", "json", "policy", "replay", &log, "--policy", policy];
        let output = process::run(&programs::ours("atmctl"), &arguments, wait::USUAL).await;
        let told = process::stdout(&output);
        let told: Value =
            serde_json::from_str(&told).unwrap_or_else(|_| panic!("{told}{}", process::stderr(&output)));
        (output.status.code(), told)
    };
    let (status, told) = replay(&file("same.yaml", POLICY)).await;
    assert_eq!((status, &told["same"]), (Some(0), &json!(5)), "{told}");
    let stricter = POLICY.replace(ORDERS, r#"paths: ["/orders"], scopes: { any: [orders.read, profile] }"#);
    assert_ne!(stricter, POLICY);
    let (status, told) = replay(&file("other.yaml", &stricter)).await;
    assert_eq!((status, &told["same"]), (Some(1), &json!(3)), "{told}");
    let changes = told["changed"].as_array().unwrap();
    let from_to =
        |from: &str, to: &str| changes.iter().any(|change| change["from"] == from && change["to"] == to);
    assert!(from_to("permit", "no_policy") && from_to("scope_insufficient", "permit"), "{told}");
}
