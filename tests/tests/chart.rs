//! The Helm chart, rendered by Helm's own library over a matrix of values: every object is right for Kubernetes, and every
//! file that a container would find in its volumes is taken by the program that reads it.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use atm_core::jwk::jwk_from_spki;
use atm_core::key::Algorithm;
use atm_proto::signature::FeedSigner;
use atm_tests::process::{Process, run, run_with, stderr, stdout};
use atm_tests::token::TokenMint;
use atm_tests::{http, programs, python, wait};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tempfile::TempDir;

const BOUND: Duration = Duration::from_mins(3);

fn chart() -> String {
    programs::workspace().join("helm/atm").display().to_string()
}

/// Renders one variant, or all; the directory holds `<variant>/<workload>/<container>/` with the container's files.
async fn rendered(variant: Option<&str>) -> TempDir {
    let directory = TempDir::new().expect("temporary directory");
    let (chart, out) = (chart(), directory.path().to_str().expect("UTF-8"));
    let arguments: Vec<&str> = [chart.as_str(), out].into_iter().chain(variant).collect();
    let output = python::run("check_chart.py", &arguments, BOUND).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    directory
}

fn children(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).expect("readable").flatten().map(|entry| entry.path()).collect()
}

/// The directories of all containers that are called `name`.
fn containers(rendered: &Path, name: &str) -> Vec<PathBuf> {
    let workloads =
        children(rendered).into_iter().filter(|path| path.is_dir()).flat_map(|path| children(&path));
    workloads.map(|workload| workload.join(name)).filter(|home| home.is_dir()).collect()
}

/// What the operator brings, where the chart made no Secret.
fn bring_given_files(home: &Path) {
    let key = URL_SAFE_NO_PAD.encode([7; 32]);
    for (name, content) in [
        ("secrets/wrapping.key", key.as_str()),
        ("secrets/feed.key", &key),
        ("secrets/admin.token", &key),
        ("postgresql/password", "secret"),
        ("nats-callout/callout.seed", &nkeys::KeyPair::new_account().seed().expect("a seed")),
    ] {
        let file = home.join("etc/atm").join(name);
        if !file.exists() {
            std::fs::create_dir_all(file.parent().expect("a directory")).expect("created");
            std::fs::write(file, content).expect("written");
        }
    }
}

/// Lets the container's program check its configuration, with the container's directory in place of `/`.
async fn check(home: &Path, program: &str) -> Result<(), String> {
    let description = std::fs::read_to_string(home.join("container.json")).expect("container.json");
    let description: Value = serde_json::from_str(&description).expect("JSON");
    let inside = description["args"][1].as_str().expect("--config FILE");
    assert_eq!(description["args"][0], "--config");
    let file = home.join(inside.trim_start_matches('/'));
    let text = std::fs::read_to_string(&file).expect("the configuration is mounted where the program looks");
    let here = file.with_extension("checked.yaml");
    std::fs::write(&here, text.replace(": /etc/", &format!(": {}/etc/", home.display()))).expect("written");
    let output =
        run(&programs::ours(program), &["--config", here.to_str().expect("UTF-8"), "--check"], BOUND).await;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}{}", file.display(), stdout(&output), stderr(&output)))
}

#[tokio::test]
async fn every_variant_is_right_for_kubernetes_and_for_the_programs() {
    let directory = rendered(None).await;
    let mut wrong = Vec::new();
    let planes = containers(directory.path(), "control-plane");
    let validators = containers(directory.path(), "validator");
    assert!(planes.len() > 5 && validators.len() > 5, "{planes:?} {validators:?}");
    for home in &planes {
        bring_given_files(home);
        wrong.extend(check(home, "atm-control-plane").await.err());
    }
    for home in &validators {
        wrong.extend(check(home, "atm-sidecar").await.err());
    }
    for home in containers(directory.path(), "nats") {
        wrong.extend(check_nats(&home).await.err());
    }
    let rules = directory.path().join("production/rules.yaml");
    let output = run(&programs::tool("promtool"), &["check", "rules", rules.to_str().unwrap()], BOUND).await;
    if !output.status.success() {
        wrong.push(format!("{}{}", stdout(&output), stderr(&output)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    validators_believe_the_key_that_the_control_plane_signs_with(directory.path());
    nats_believes_the_key_that_the_control_plane_answers_with(directory.path());
}

/// nats-server reads the configuration with the files that it includes, and exits.
async fn check_nats(home: &Path) -> Result<(), String> {
    let file = home.join("etc/nats/nats.conf");
    let text = std::fs::read_to_string(&file).expect("nats.conf");
    let data = home.join("data").display().to_string();
    std::fs::write(&file, text.replace("/data", &data)).expect("written");
    let arguments = ["-t", "--config", file.to_str().expect("UTF-8")];
    let output =
        run_with(&programs::tool("nats-server"), &arguments, &[("POD_NAME", "prod-atm-nats-0")], BOUND).await;
    if output.status.success() { Ok(()) } else { Err(format!("{}: {}", file.display(), stderr(&output))) }
}

/// Helm has no function that derives a public key; what the chart does in its place must be right.
fn validators_believe_the_key_that_the_control_plane_signs_with(rendered: &Path) {
    let variant = rendered.join("smallest");
    let seed = std::fs::read_to_string(
        variant.join("prod-atm-control-plane/control-plane/etc/atm/secrets/feed.key"),
    );
    let seed: [u8; 32] =
        URL_SAFE_NO_PAD.decode(seed.expect("feed.key")).unwrap().try_into().expect("32 bytes");
    let public = FeedSigner::from_seed(&seed).expect("a seed").public_key().to_string();
    let validator =
        std::fs::read_to_string(variant.join("prod-atm-gateway/validator/etc/atm/validator/sidecar.yaml"));
    let validator: Value = serde_norway::from_str(&validator.expect("sidecar.yaml")).expect("YAML");
    assert_eq!(validator["feedKeys"], json!([public]));
}

/// Nor has Helm a function for nkeys.
fn nats_believes_the_key_that_the_control_plane_answers_with(rendered: &Path) {
    for variant in ["token-logins", "token-logins-beside-the-password"] {
        let read = |file: &str| std::fs::read_to_string(rendered.join(variant).join(file)).expect("readable");
        let seed = read("prod-atm-control-plane/control-plane/etc/atm/nats-callout/callout.seed");
        let pair = nkeys::KeyPair::from_seed(&seed).expect("the seed of an nkey");
        let accounts = read("prod-atm-nats/nats/etc/nats/secret/accounts.conf");
        assert!(accounts.contains(&format!("issuer: \"{}\"", pair.public_key())), "{variant}");
    }
}

#[tokio::test]
async fn alerts_fire_when_they_should() {
    let file = programs::workspace().join("tests/kubernetes/alerts.test.yaml");
    let output = run(&programs::tool("promtool"), &["test", "rules", file.to_str().unwrap()], BOUND).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

#[tokio::test]
async fn an_upgrade_loses_no_key_and_no_volume() {
    let output = python::run("check_upgrade.py", &[&chart()], BOUND).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

#[tokio::test]
async fn images_hold_what_the_chart_starts() {
    let root = programs::workspace().display().to_string();
    let directory = programs::ours("atmctl").parent().expect("a directory").display().to_string();
    let output = python::run("check_images.py", &[&root, &directory], BOUND).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

/// The programs in the places that the chart gives them: NATS with its accounts, a control plane and a validator with what
/// their containers find.
struct Installation {
    _processes: Vec<Process>,
    nats_url: String,
    plane_admin: String,
    validator_admin: String,
    /// What the chart rendered for this variant.
    files: PathBuf,
    _directory: TempDir,
}

impl Installation {
    async fn start(variant: &str) -> Self {
        let directory = rendered(Some(variant)).await;
        let variant = directory.path().join(variant);
        let nats = variant.join("prod-atm-nats/nats");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let nats_url = format!("nats://127.0.0.1:{port}");
        let config = nats.join("etc/nats/nats.conf");
        let text = std::fs::read_to_string(&config).expect("nats.conf");
        let here = [
            ("0.0.0.0:4222", format!("127.0.0.1:{port}")),
            ("0.0.0.0:8222", "127.0.0.1:-1".to_owned()),
            ("/data", nats.join("data").display().to_string()),
            ("/var/run/nats/nats.pid", nats.join("pid").display().to_string()),
        ];
        let text = here.iter().fold(text, |text, (from, to)| text.replace(from, to));
        std::fs::write(&config, text).expect("written");
        let mut command = Command::new(programs::tool("nats-server"));
        command.arg("--config").arg(&config).env("POD_NAME", "prod-atm-nats-0");
        let mut processes = vec![Process::start_command("nats-server", command, &nats.join("log"))];

        let plane = variant.join("prod-atm-control-plane/control-plane");
        let addresses = |home: &Path| home.join("addresses.json").display().to_string();
        let store = |home: &Path| home.join("store").display().to_string();
        let common = |home: &Path| {
            [
                ("ATM_NATS__URL", nats_url.clone()),
                ("ATM_LISTEN__ADMIN", "127.0.0.1:0".to_owned()),
                ("ATM_LISTEN__ADDRESS_FILE", addresses(home)),
                ("ATM_STORE__PATH", store(home)),
            ]
        };
        let mut command = program(&plane, "atm-control-plane");
        command.envs(common(&plane)).env("ATM_LISTEN__OAUTH", "127.0.0.1:0");
        processes.push(Process::start_command("atm-control-plane", command, &plane.join("log")));

        let validator = variant.join("prod-atm-gateway/validator");
        let mut command = program(&validator, "atm-sidecar");
        command.envs(common(&validator)).env("ATM_ID", fleet_id(&validator));
        command.env("ATM_LISTEN__GRPC", "127.0.0.1:0").env("ATM_LISTEN__HTTP", "127.0.0.1:0");
        processes.push(Process::start_command("atm-sidecar", command, &validator.join("log")));
        let admin = async |home: &Path| {
            wait::until_some("a program to listen", wait::USUAL, || {
                let text = std::fs::read_to_string(addresses(home)).ok()?;
                let bound: Value = serde_json::from_str(&text).ok()?;
                bound["admin"].as_str().map(str::to_owned)
            })
            .await
        };
        let (plane_admin, validator_admin) = (admin(&plane).await, admin(&validator).await);
        Self {
            _processes: processes,
            nats_url,
            plane_admin,
            validator_admin,
            files: variant,
            _directory: directory,
        }
    }

    /// The validator's state, once it has one that it verified.
    async fn ready(&self) -> Value {
        wait::until("the validator to hold a verified state", wait::USUAL, || async {
            let answer =
                http::get(&self.validator_admin, "/readyz").await.map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
        http::get(&self.validator_admin, "/state").await.expect("state").json()
    }
}

/// What Kubernetes makes of the container's `ATM_ID` in the first pod of the gateway.
fn fleet_id(home: &Path) -> String {
    let description = std::fs::read_to_string(home.join("container.json")).expect("container.json");
    let description: Value = serde_json::from_str(&description).expect("JSON");
    let environment = description["env"].as_array().expect("env");
    let id = environment.iter().find(|variable| variable["name"] == "ATM_ID").expect("ATM_ID");
    let id = id["value"].as_str().expect("a value");
    id.replace("$(POD_NAMESPACE)", "atm").replace("$(POD_NAME)", "prod-atm-gateway-0")
}

/// A container's program, with the container's directory in place of `/`.
fn program(home: &Path, name: &str) -> Command {
    let description = std::fs::read_to_string(home.join("container.json")).expect("container.json");
    let description: Value = serde_json::from_str(&description).expect("JSON");
    let file = home.join(description["args"][1].as_str().expect("--config FILE").trim_start_matches('/'));
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let here = file.with_extension("here.yaml");
    std::fs::write(&here, text.replace(": /etc/", &format!(": {}/etc/", home.display()))).expect("written");
    let mut command = Command::new(programs::ours(name));
    command.arg("--config").arg(here);
    command
}

/// The users and permissions of the bundled NATS: a validator gets all that it needs, and can publish nothing of the feed.
#[tokio::test]
async fn the_bundled_nats_lets_each_side_do_its_part_and_no_more() {
    let installation = Installation::start("smallest").await;
    let state = installation.ready().await;
    assert_eq!(
        (&state["id"], &state["nats_connected"]),
        (&"atm_prod-atm-gateway-0".into(), &true.into()),
        "{state}"
    );

    let password = installation.files.join("prod-atm-gateway/validator/etc/atm/nats/validator");
    let password = std::fs::read_to_string(password).expect("the validator's password");
    let (sender, mut violations) = tokio::sync::mpsc::channel(16);
    let client = async_nats::ConnectOptions::with_user_and_password("validator".to_owned(), password)
        .event_callback(move |event| {
            let sender = sender.clone();
            async move {
                let _ = sender.try_send(event.to_string()); // more than were asked for are not needed
            }
        })
        .connect(&installation.nats_url)
        .await
        .expect("connected");
    for subject in
        ["atm.default.feed", "atm.default.live", "atm.default.heartbeat", "$JS.API.STREAM.DELETE.ATM_FEED"]
    {
        client.publish(subject, "forged".into()).await.expect("sent");
        client.flush().await.expect("flushed");
        let refused = async {
            while let Some(event) = violations.recv().await {
                if event.to_lowercase().contains("permissions violation") && event.contains(subject) {
                    return;
                }
            }
        };
        tokio::time::timeout(wait::USUAL, refused).await.unwrap_or_else(|_| panic!("{subject} was taken"));
    }
}

/// No secret is shared: the token that the kubelet would give the pod is all that the validator shows.
#[tokio::test]
async fn a_validator_is_let_in_by_the_token_of_its_pod() {
    const CLUSTER: &str = "https://kubernetes.default.svc.cluster.local";
    let installation = Installation::start("token-logins").await;
    let mint = TokenMint::new(CLUSTER, "", &[("k1", "ES256")]);
    let keys = installation.files.join("jwks.json");
    let jwk = jwk_from_spki("k1", Algorithm::ES256, &mint.key("k1").spki()).expect("a key");
    std::fs::write(&keys, json!({ "keys": [jwk] }).to_string()).expect("written");
    trust(&installation, CLUSTER, &keys).await;

    let token = mint
        .token()
        .header("typ", "JWT")
        .claim("sub", "system:serviceaccount:atm:prod-atm-validator")
        .claim("aud", json!(["atm-nats"]))
        .claim("kubernetes.io", json!({ "namespace": "atm", "pod": { "name": "prod-atm-gateway-0" } }));
    let file = installation.files.join("prod-atm-gateway/validator/etc/atm/nats/token");
    assert!(file.exists(), "no token is mounted where the validator looks");
    std::fs::write(file, token.sign()).expect("written");
    let state = installation.ready().await;
    assert_eq!((&state["id"], &state["nats_connected"]), (&"atm_prod-atm-gateway-0".into(), &true.into()));
}

/// As docs/install.md says it.
async fn trust(installation: &Installation, issuer: &str, keys: &Path) {
    let read = |file: &str| std::fs::read_to_string(installation.files.join(file)).expect("readable");
    let token = read("prod-atm-control-plane/control-plane/etc/atm/secrets/admin.token");
    let authority = installation.files.join("prod-atm-operator/operator/etc/atm/admin-ca/ca.crt");
    let url = format!("https://{}", installation.plane_admin);
    let environment = [
        ("ATM_ADMIN_URL", url.as_str()),
        ("ATM_ADMIN_TOKEN", &token),
        ("ATM_CA_FILE", authority.to_str().unwrap()),
    ];
    let keys = keys.to_str().unwrap();
    let arguments = ["issuer", "add", issuer, "--jwks", keys, "--token-type", "JWT", "--token-type", "none"];
    let output = run_with(&programs::ours("atmctl"), &arguments, &environment, BOUND).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}
