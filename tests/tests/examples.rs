//! Every file of `examples/` is loaded by the program that it is for.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::Path;
use std::time::Duration;

use atm_tests::dev::DevStack;
use atm_tests::process::{run, stderr, stdout};
use atm_tests::{envoy, http, programs, python, wait};

const BOUND: Duration = Duration::from_secs(30);

#[tokio::test]
async fn envoy_accepts_the_shipped_configuration() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("envoy.yaml");
    std::fs::write(&file, envoy::shipped_config("127.0.0.1:9", Path::new("/tmp/atm.sock"))).expect("written");
    let arguments = ["--mode", "validate", "--config-path", file.to_str().expect("UTF-8 path")];
    let output = run(&programs::tool("envoy"), &arguments, BOUND).await;
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn every_policy_compiles() {
    let directory = programs::workspace().join("examples/policies");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).expect("examples/policies").flatten() {
        if entry.path().to_string_lossy().ends_with(".test.yaml") {
            continue; // a table of tests, which atmctl's own tests judge
        }
        let document = std::fs::read_to_string(entry.path()).expect("readable");
        if let Err(errors) = atm_core::policy::compile(&[document]) {
            panic!("{}: {errors:?}", entry.path().display());
        }
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn the_schema_for_editors_is_the_one_that_the_program_prints() {
    let file = programs::workspace().join("docs/schemas/token-policy.json");
    let written: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).expect("the schema")).expect("JSON");
    assert_eq!(
        written,
        atm_core::policy::json_schema(),
        "make it anew: atmctl policy schema > docs/schemas/token-policy.json"
    );
}

#[tokio::test]
async fn gateways_examples_are_right_and_envoy_takes_what_they_make_of_it() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let examples = programs::workspace().join("examples").display().to_string();
    let out = directory.path().to_str().expect("UTF-8 path");
    let output = python::run("check_examples.py", &[&examples, out], BOUND).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    let file = directory.path().join("istio-envoy-filter.json");
    let arguments = ["--mode", "validate", "--config-path", file.to_str().expect("UTF-8 path")];
    let output = run(&programs::tool("envoy"), &arguments, BOUND).await;
    assert!(output.status.success(), "{}", stderr(&output));
}

#[tokio::test]
async fn the_gitops_repository_passes_its_own_pipeline() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let examples = programs::workspace().join("examples");
    let out = directory.path().to_str().expect("UTF-8 path");
    python::run("check_examples.py", &[&examples.display().to_string(), out], BOUND).await;
    let commands =
        std::fs::read_to_string(directory.path().join("gitops-commands.json")).expect("the commands");
    let commands: Vec<String> = serde_json::from_str(&commands).expect("JSON");
    let path = programs::ours("atmctl").parent().expect("a directory").display().to_string();
    // The jobs that need a control plane are those of `apply`; their commands are run by the tests of atmctl.
    let checks: Vec<&String> =
        commands.iter().filter(|c| c.contains(" check ") || c.contains(" test ")).collect();
    assert_eq!(checks.len(), 2, "{commands:?}");
    for command in checks {
        let script = format!("cd '{}' && PATH='{path}':$PATH {command}", examples.join("gitops").display());
        let output = run(Path::new("bash"), &["-euc", &script], BOUND).await;
        assert!(output.status.success(), "{command}: {}{}", stdout(&output), stderr(&output));
    }
}

/// Listeners and clusters by xDS, the validator over TCP with its health checked, as behind the chart's Service.
#[tokio::test]
async fn envoy_by_xds_asks_the_validator() {
    let stack = DevStack::up().await;
    let upstream = stack.field("upstream_url").trim_start_matches("http://").to_owned();
    let envoy = envoy::Envoy::start_xds(&upstream, stack.field("sidecar_grpc")).await;
    let token = stdout(&stack.atmctl(&["token", "issue"]).await);
    let authorization = format!("Bearer {}", token.trim());
    wait::until("Envoy to let the token through", wait::USUAL, || async {
        let headers = [("authorization", authorization.as_str())];
        let request = http::request("GET", "/orders", envoy.address(), &headers, "");
        match http::exchange(envoy.address(), &request).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let refused = http::get(envoy.address(), "/orders").await.expect("answered");
    assert_eq!((refused.status, refused.header("x-atm-reason")), (401, Some("credential_missing")));
}
