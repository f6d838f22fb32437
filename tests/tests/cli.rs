//! `atmctl` as scripts use it: exit statuses, JSON on standard output, errors that say what to do.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use atm_tests::dev::DevStack;
use atm_tests::process::{run, run_with, stderr, stdout};
use atm_tests::token::{TokenMint, base64url};
use atm_tests::{programs, wait};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(30);

async fn atmctl(arguments: &[&str]) -> Output {
    run(&programs::ours("atmctl"), arguments, BOUND).await
}

#[tokio::test]
async fn help_names_every_command_and_completions_are_printed() {
    let help = atmctl(&["--help"]).await;
    assert_eq!(help.status.code(), Some(0));
    for command in ["dev", "client", "token", "revoke", "keys", "policy", "fleet", "completions"] {
        assert!(stdout(&help).contains(command), "{command} is not in:\n{}", stdout(&help));
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = atmctl(&["completions", shell]).await;
        assert!(
            output.status.success() && stdout(&output).contains("atmctl"),
            "{shell}: {}",
            stderr(&output)
        );
    }
    assert_eq!(atmctl(&["--version"]).await.status.code(), Some(0));
    assert_eq!(atmctl(&["no-such-command"]).await.status.code(), Some(2));
}

/// A JWKS file with the mint's Ed25519 key, made without the code under test.
fn write_jwks(directory: &Path, mint: &TokenMint) -> String {
    let spki = mint.key("ed").spki();
    let x = base64url(&spki[spki.len() - 32..]);
    let jwks = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "use": "sig", "x": x }] });
    let path = directory.join("jwks.json");
    std::fs::write(&path, jwks.to_string()).expect("written");
    path.display().to_string()
}

#[tokio::test]
async fn token_verify_exits_0_only_for_a_valid_token() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mint = TokenMint::new("https://issuer.test", "main", &[("ed", "EdDSA")]);
    let jwks = write_jwks(directory.path(), &mint);
    let stranger = TokenMint::new("https://issuer.test", "main", &[("ed", "EdDSA")]);
    let valid = mint.token().sign();
    let expired = mint.token().claim("exp", 1_000_000).sign();
    let forged = stranger.token().sign();
    let none = mint.token().header("alg", "none").unsigned();
    let cases: [(&str, &str, &[&str], bool); 8] = [
        ("valid", &valid, &["--audience", "orders-api"], true),
        ("wrong audience", &valid, &["--audience", "billing"], false),
        ("wrong issuer", &valid, &["--audience", "orders-api", "--issuer", "https://else.test"], false),
        ("expired", &expired, &["--audience", "orders-api"], false),
        ("expired, signature only", &expired, &["--signature-only"], true),
        ("forged", &forged, &["--audience", "orders-api"], false),
        ("forged, signature only", &forged, &["--signature-only"], false),
        ("alg none, signature only", &none, &["--signature-only"], false),
    ];
    for (name, token, more, valid) in cases {
        let file = directory.path().join("token");
        std::fs::write(&file, token).expect("written");
        let mut arguments = vec!["token", "verify", "--jwks", &jwks];
        arguments.extend(more);
        arguments.push(token);
        let output = atmctl(&arguments).await;
        let text = format!("{}{}", stdout(&output), stderr(&output));
        assert_eq!(output.status.success(), valid, "{name}: {text}");
        assert!(!text.contains("panicked") && !text.is_empty(), "{name}: {text}");
    }
}

#[tokio::test]
async fn token_inspect_prints_the_claims_of_any_token() {
    let mint = TokenMint::new("https://issuer.test", "main", &[("ed", "EdDSA")]);
    let token = mint.token().claim("sub", "inspected").sign();
    let output = atmctl(&["token", "inspect", "--output", "json", &token]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let inspected: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!(inspected.to_string().contains("inspected"), "{inspected}");
    assert!(!atmctl(&["token", "inspect", "not-a-token"]).await.status.success());
}

#[tokio::test]
async fn an_unreachable_control_plane_is_named_with_what_to_do() {
    let environment = [("ATM_ADMIN_URL", "http://127.0.0.1:1"), ("ATM_ADMIN_TOKEN", "x")];
    let output = run_with(&programs::ours("atmctl"), &["fleet"], &environment, BOUND).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("127.0.0.1:1"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    // Without any address it says how to give one.
    let output =
        run_with(&programs::ours("atmctl"), &["fleet"], &[("ATM_DEV_DIR", "/nonexistent")], BOUND).await;
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("--dir") || stderr(&output).contains("--admin-url"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_way_on_the_command_line() {
    let stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;

    let issued = stack.atmctl(&["token", "issue"]).await;
    assert!(issued.status.success(), "{}", stderr(&issued));
    let token = stdout(&issued).trim().to_owned();
    assert_eq!(client.use_token(&token).await.expect("Envoy answers").status, 200);

    let revoked = stack.atmctl(&["revoke", "--wait", "--output", "json", "--token", &token]).await;
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    let answer: Value = serde_json::from_str(&stdout(&revoked)).expect("JSON");
    assert_eq!(answer["receipt"]["complete"], true, "{answer}");
    let refused = client.use_token(&token).await.expect("Envoy answers");
    assert_eq!((refused.status, refused.header("x-atm-reason")), (401, Some("revoked_token")));

    for listing in
        [&["client", "list"][..], &["keys", "list"], &["policy", "list"], &["fleet"], &["dev", "status"]]
    {
        let human = stack.atmctl(listing).await;
        assert!(human.status.success(), "{listing:?}: {}", stderr(&human));
        assert!(!stdout(&human).contains('\u{1b}'), "{listing:?}: colour without a terminal");
        let mut arguments = listing.to_vec();
        arguments.extend(["--output", "json"]);
        let output = stack.atmctl(&arguments).await;
        let parsed = serde_json::from_str::<Value>(&stdout(&output));
        assert!(parsed.is_ok(), "{listing:?}: {}{}", stdout(&output), stderr(&output));
    }
    let secrets = stack.atmctl(&["client", "list", "--output", "json"]).await;
    assert!(!stdout(&secrets).contains(stack.field("client_secret")), "a secret is shown once only");

    let bad_policy = stack.path().join("bad.yaml");
    std::fs::write(
        &bad_policy,
        "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: { name: x }\nspec: { rulez: [] }\n",
    )
    .expect("written");
    let applied = stack.atmctl(&["policy", "apply", bad_policy.to_str().expect("UTF-8 path")]).await;
    assert_eq!(applied.status.code(), Some(1), "{}", stderr(&applied));
    assert!(stderr(&applied).contains("rulez"), "{}", stderr(&applied));
    let token = client.issue().await.expect("a token");
    let answer = client.use_token(&token).await.expect("Envoy answers");
    assert_eq!(answer.status, 200, "a refused policy set displaced the good one: {}", answer.text());

    let rotated = stack.atmctl(&["keys", "rotate"]).await;
    assert!(rotated.status.success(), "{}", stderr(&rotated));
    assert_eq!(
        client.use_token(&token).await.expect("Envoy answers").status,
        200,
        "tokens of the old key live"
    );
}

#[tokio::test]
async fn doctor_finds_what_was_taken_away() {
    let mut stack = DevStack::up().await;
    // The sidecar's first report may be of before it was ready.
    wait::until("doctor to find nothing", Duration::from_secs(30), || async {
        let output = stack.atmctl(&["doctor"]).await;
        let well = output.status.success() && !stdout(&output).contains("wrong");
        if well { Ok(()) } else { Err(format!("{}{}", stdout(&output), stderr(&output))) }
    })
    .await;
    stack.kill("nats");
    let found = wait::until("doctor to miss NATS", Duration::from_secs(30), || async {
        let output = stack.atmctl(&["doctor", "--output", "json"]).await;
        let answer: Value = serde_json::from_str(&stdout(&output)).map_err(|error| error.to_string())?;
        let bad = |name: &str| {
            let findings = answer["findings"].as_array().expect("findings");
            findings.iter().any(|one| {
                one["check"].as_str().is_some_and(|what| what.contains(name)) && one["outcome"] == "bad"
            })
        };
        let all = bad("nats") && bad("control plane to nats") && bad(": nats");
        if all { Ok((output.status.code(), answer)) } else { Err(answer.to_string()) }
    })
    .await;
    assert_eq!(found.0, Some(1));
    let advice =
        |one: &Value| one["outcome"] == "good" || !one["advice"].as_str().unwrap_or_default().is_empty();
    assert!(found.1["findings"].as_array().unwrap().iter().all(advice), "{}", found.1);
}

/// Every `atmctl` command that a page shows is one that the program has.
#[tokio::test]
async fn pages_show_commands_that_exist() {
    let reference = stdout(&atmctl(&["reference"]).await);
    let page = std::fs::read_to_string(programs::workspace().join("docs/cli.md")).expect("docs/cli.md");
    assert!(page == reference, "make it anew: atmctl reference > docs/cli.md");
    let headings = reference.lines().filter_map(|line| line.strip_prefix("## `atmctl "));
    let known: Vec<Vec<&str>> = headings.map(|heading| command_words(heading)).collect();
    let mut wrong = Vec::new();
    for folder in ["docs", "docs/runbooks", "examples", "examples/gitops"] {
        for entry in std::fs::read_dir(programs::workspace().join(folder)).expect(folder).flatten() {
            let file = entry.path();
            if file.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            // In code only: after a backtick, or after a prompt.
            for shown in
                text.split(['`', '$', '(']).filter_map(|code| code.trim_start().strip_prefix("atmctl "))
            {
                let words = command_words(shown);
                let fits =
                    |command: &Vec<&str>| command.starts_with(&words[..words.len().min(command.len())]);
                if !words.is_empty() && !known.iter().any(fits) {
                    wrong.push(format!("{}: atmctl {}", file.display(), words.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The command's own words: small letters and hyphens, up to the first that is something else.
fn command_words(text: &str) -> Vec<&str> {
    let is_word = |word: &&str| {
        !word.starts_with('-') && !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
    };
    text.split([' ', '\n', '`']).take_while(is_word).collect()
}
