//! The client programs of `examples/clients`, against a real control plane and a real Envoy: they get a token, use it, and
//! get a new one when it was revoked.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use atm_tests::dev::DevStack;
use atm_tests::process::{run_with, stderr, stdout};
use atm_tests::programs;

const BOUND: Duration = Duration::from_mins(1);

/// Runs a client with the stack's registered client; `url` is what it calls.
async fn call(stack: &DevStack, program: &Path, before: &[&str], secret: &str, url: &str) -> Output {
    let file = stack.path().join("client-secret");
    std::fs::write(&file, secret).expect("written");
    let file = file.display().to_string();
    let environment = [
        ("ATM_ISSUER", stack.field("issuer")),
        ("ATM_CLIENT_ID", stack.field("client_id")),
        ("ATM_CLIENT_SECRET_FILE", &file),
    ];
    let arguments = [before, &[stack.field("audience"), "orders.read", url]].concat();
    run_with(program, &arguments, &environment, BOUND).await
}

fn example(name: &str) -> String {
    programs::workspace().join("examples/clients").join(name).display().to_string()
}

#[tokio::test]
async fn every_client_gets_a_token_and_is_let_through() {
    let stack = DevStack::up().await;
    let url = format!("{}/orders", stack.field("envoy_url"));
    let (python, node) = (example("python/atm_client.py"), example("node/atm-client.mjs"));
    let clients: [(PathBuf, &[&str]); 3] = [
        (programs::interpreter("python"), &[&python]),
        (programs::interpreter("node"), &[&node]),
        (programs::example("atm-client"), &[]),
    ];
    for (program, before) in clients {
        let output = call(&stack, &program, before, stack.field("client_secret"), &url).await;
        let said = format!("{}: {}{}", program.display(), stdout(&output), stderr(&output));
        assert!(output.status.success(), "{said}");
        // What the service behind Envoy saw.
        assert!(stdout(&output).contains("x-atm-client"), "{said}");
        let output = call(&stack, &program, before, "atm_cs_wrong", &url).await;
        let said = format!("{}: {}{}", program.display(), stdout(&output), stderr(&output));
        assert!(!output.status.success() && stderr(&output).contains("invalid_client"), "{said}");
        assert!(!said.contains("atm_cs_wrong"), "the secret is in what it printed: {said}");
    }
}

/// As a library: a token is shared, dropped when it was revoked, and the next one is let through.
#[tokio::test]
async fn a_revoked_token_is_replaced() {
    let stack = DevStack::up().await;
    let url = format!("{}/orders", stack.field("envoy_url"));
    let driver = stack.path().join("driver.py");
    std::fs::write(
        &driver,
        r#"
import subprocess, sys
sys.path.insert(0, sys.argv[1])
import atm_client
issuer, client_id, secret, audience, url, atmctl = sys.argv[2:]
source = atm_client.TokenSource(issuer, client_id, secret, audience, "orders.read")
first = source.token()
assert first == source.token(), "a token is shared until it is renewed"
assert atm_client.call(source, url)[0] == 200
subprocess.run([atmctl, "revoke", "--wait", "--token", "-"], input=first.encode(), check=True, stdout=subprocess.DEVNULL)
assert atm_client.call(source, url)[0] == 200, "a new token after the refusal"
assert source.token() != first
"#,
    )
    .expect("written");
    let (library, program) = (example("python"), programs::ours("atmctl"));
    let arguments = [
        driver.to_str().unwrap(),
        &library,
        stack.field("issuer"),
        stack.field("client_id"),
        stack.field("client_secret"),
        stack.field("audience"),
        &url,
        program.to_str().unwrap(),
    ];
    let directory = stack.path().display().to_string();
    let output =
        run_with(&programs::interpreter("python"), &arguments, &[("ATM_DEV_DIR", &directory)], BOUND).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}
