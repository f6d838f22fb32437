//! Every file of `examples/` is loaded by the program that it is for.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::Path;
use std::time::Duration;

use atm_tests::process::{run, stderr};
use atm_tests::{envoy, programs};

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
