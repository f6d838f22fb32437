//! The operator against an API server of the tests and a real control plane with a real sidecar: resources become policies and
//! issuers, their status says how far they are, pods get a sidecar, and nothing is asked for that the chart's roles do not grant.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use atm_tests::dev::DevStack;
use atm_tests::kubernetes::{ApiServer, start_operator};
use atm_tests::process::{Process, run, stderr, stdout};
use atm_tests::{programs, python, wait};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

const BOUND: Duration = Duration::from_mins(1);
const POLICIES: &str = "/apis/atm.dev/v1/namespaces/shop/tokenpolicies";
const WEBHOOK_TLS: &str = "/api/v1/namespaces/atm/secrets/prod-atm-webhook-tls";
const ISSUERS: &str = "/apis/atm.dev/v1/namespaces/shop/trustedissuers";

/// An API server with our definitions, a namespace `shop`, and what the operator needs.
struct Cluster {
    server: ApiServer,
    directory: TempDir,
    webhook_port: u16,
}

impl Cluster {
    async fn start() -> Self {
        let webhook_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = ApiServer::start(&[format!("atm/prod-atm-webhook=127.0.0.1:{webhook_port}")]).await;
        for namespace in ["atm", "shop"] {
            server.create("/api/v1/namespaces", &json!({ "metadata": { "name": namespace } })).await;
        }
        let crds =
            std::fs::read_to_string(programs::workspace().join("helm/atm/crds/crds.yaml")).expect("crds");
        for document in crds.split("\n---\n") {
            let crd: Value = serde_norway::from_str(document).expect("YAML");
            server.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).await;
        }
        Self { server, directory: TempDir::new().expect("temporary directory"), webhook_port }
    }

    /// The chart's variant `operator`, rendered; the directory of the operator's container.
    async fn rendered(&self) -> std::path::PathBuf {
        let out = self.directory.path().join("rendered");
        std::fs::create_dir(&out).expect("created");
        let chart = programs::workspace().join("helm/atm").display().to_string();
        let output =
            python::run("check_chart.py", &[&chart, out.to_str().unwrap()], Duration::from_mins(3)).await;
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        out.join("operator")
    }

    fn operator(&self, config: &Value) -> Process {
        start_operator(&self.server, config, self.directory.path())
    }

    fn control_plane(&self, stack: &DevStack) -> Value {
        let token = self.directory.path().join("admin.token");
        std::fs::write(&token, stack.field("admin_token")).expect("written");
        json!({ "url": stack.field("admin_url"), "tokenFile": token })
    }

    /// Waits until the condition of an object has this status, and gives the object.
    async fn condition(&self, path: &str, kind: &str, status: &str) -> (Value, Value) {
        wait::until(&format!("{path} to be {kind}={status}"), BOUND, || async {
            let object = self.server.get(path).await;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            match conditions.into_iter().find(|one| one["type"] == kind && one["status"] == status) {
                Some(condition) => Ok((condition, object)),
                None => Err(object["status"].to_string()),
            }
        })
        .await
    }
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "atm.dev/v1", "kind": "TokenPolicy", "metadata": { "name": name }, "spec": spec })
}

fn spec(host: &str) -> Value {
    json!({ "audiences": ["orders-api"], "rules": [{ "name": "all", "hosts": [host], "paths": ["/{rest...}"] }] })
}

#[tokio::test]
async fn resources_become_policies_and_say_how_far_they_are() {
    let cluster = Cluster::start().await;
    let stack = DevStack::up().await;
    let operator = cluster.operator(&json!({
        "controlPlane": cluster.control_plane(&stack),
        "listen": { "health": "127.0.0.1:0" },
        "log": { "format": "text" },
    }));

    cluster.server.create(POLICIES, &policy("orders", &spec("orders.test"))).await;
    let (condition, object) = cluster.condition(&format!("{POLICIES}/orders"), "InForce", "True").await;
    assert_eq!(condition["message"], "In force on 1 of 1 validators.");
    assert_eq!(object["status"]["observedGeneration"], 1);
    let documents = || async { stdout(&stack.atmctl(&["policy", "show"]).await) };
    assert!(documents().await.contains("shop.orders"), "{}", documents().await);

    // One that the schema takes and the compiler does not: it says where, and the good one stays.
    let bad = json!({ "audiences": ["a"], "rules": [{ "name": "all", "hosts": ["orders.test"], "paths": ["no-slash"] }] });
    cluster.server.create(POLICIES, &policy("broken", &bad)).await;
    let (condition, _) = cluster.condition(&format!("{POLICIES}/broken"), "Accepted", "False").await;
    let message = condition["message"].as_str().unwrap();
    assert!(message.contains("paths[0]") && message.contains("Nothing of it is in force"), "{message}");

    // The good one becomes bad: its last good version stays in force.
    cluster.server.merge(&format!("{POLICIES}/orders"), &json!({ "spec": bad })).await;
    let (condition, _) = cluster.condition(&format!("{POLICIES}/orders"), "Accepted", "False").await;
    assert!(condition["message"].as_str().unwrap().contains("stays in force"), "{condition}");
    assert!(documents().await.contains("shop.orders"));

    // What the schema refuses never gets here.
    let (status, answer) =
        cluster.server.ask(Method::POST, POLICIES, Some(&policy("x", &json!({ "ruls": [] })))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");

    // Events, for `kubectl describe`.
    let events = cluster.server.get("/apis/events.k8s.io/v1/namespaces/shop/events").await;
    let reasons: BTreeSet<&str> =
        events["items"].as_array().unwrap().iter().filter_map(|e| e["reason"].as_str()).collect();
    assert!(reasons.contains("InForce") && reasons.contains("Invalid"), "{reasons:?}");

    // Gone: the set is empty.
    for name in ["orders", "broken"] {
        cluster.server.ask(Method::DELETE, &format!("{POLICIES}/{name}"), None).await;
    }
    wait::until("the policy to go with its resource", BOUND, || async {
        let text = documents().await;
        if text.contains("shop.") { Err(text) } else { Ok(()) }
    })
    .await;
    assert!(documents().await.contains("orders"), "what was applied by other means stays");
    drop(operator);
    within_the_charts_roles(&cluster).await;
}

#[tokio::test]
async fn resources_become_trusted_issuers() {
    let cluster = Cluster::start().await;
    let stack = DevStack::up().await;
    let _operator = cluster.operator(&json!({
        "controlPlane": cluster.control_plane(&stack),
        "listen": { "health": "127.0.0.1:0" },
        "policies": { "enabled": false },
    }));
    let jwks = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "a", "alg": "EdDSA", "use": "sig", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }] });
    let issuer = |name: &str, spec: Value| json!({ "apiVersion": "atm.dev/v1", "kind": "TrustedIssuer", "metadata": { "name": name }, "spec": spec });
    let good = issuer("idp", json!({ "issuer": "https://idp.example", "jwks": jwks, "tokenTypes": ["JWT"] }));
    cluster.server.create(ISSUERS, &good).await;
    let (condition, _) = cluster.condition(&format!("{ISSUERS}/idp"), "Accepted", "True").await;
    assert_eq!(condition["message"], "Trusted with 1 keys.");
    let held = cluster.server.get(&format!("{ISSUERS}/idp")).await;
    assert_eq!(held["metadata"]["finalizers"], json!(["atm.dev/operator"]));
    let again = issuer("again", json!({ "issuer": "https://idp.example", "jwks": jwks }));
    cluster.server.create(ISSUERS, &again).await;
    let (condition, _) = cluster.condition(&format!("{ISSUERS}/again"), "Accepted", "False").await;
    assert_eq!(condition["reason"], "Conflict");
    let nonsense = issuer("nonsense", json!({ "issuer": "not a url" }));
    cluster.server.create(ISSUERS, &nonsense).await;
    let (condition, _) = cluster.condition(&format!("{ISSUERS}/nonsense"), "Accepted", "False").await;
    assert_eq!(condition["reason"], "Invalid", "{condition}");
    for name in ["again", "idp"] {
        cluster.server.ask(Method::DELETE, &format!("{ISSUERS}/{name}"), None).await;
    }
    wait::until("the trust to end with its resource", BOUND, || async {
        let text = stdout(&stack.atmctl(&["issuer", "list"]).await);
        if text.contains("idp.example") { Err(text) } else { Ok(()) }
    })
    .await;
    wait::until("the resource to go after it", BOUND, || async {
        let (status, answer) = cluster.server.ask(Method::GET, &format!("{ISSUERS}/idp"), None).await;
        if status == StatusCode::NOT_FOUND { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    within_the_charts_roles(&cluster).await;
}

/// The manifests that the chart renders, as the API server would hold them.
async fn install_webhook(cluster: &Cluster) {
    let output = python::run(
        "render_one.py",
        &[&programs::workspace().join("helm/atm").display().to_string(), "MutatingWebhookConfiguration"],
        BOUND,
    )
    .await;
    assert!(output.status.success(), "{}", stderr(&output));
    let configuration: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    cluster
        .server
        .create("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", &configuration)
        .await;
}

#[tokio::test]
async fn pods_that_ask_get_a_sidecar() {
    let cluster = Cluster::start().await;
    let home = cluster.rendered().await;
    install_webhook(&cluster).await;
    let template = home.join("prod-atm-operator/operator/etc/atm/injection/injection.yaml");
    let token = cluster.directory.path().join("token");
    std::fs::write(&token, "x").expect("written");
    let config = json!({
        "controlPlane": { "url": "http://127.0.0.1:9", "tokenFile": token },
        "listen": { "health": "127.0.0.1:0", "webhook": format!("127.0.0.1:{}", cluster.webhook_port) },
        "policies": { "enabled": false }, "issuers": { "enabled": false },
        "webhook": {
            "enabled": true, "namespace": "atm", "service": "prod-atm-webhook", "secret": "prod-atm-webhook-tls",
            "configuration": "prod-atm-injection", "templateFile": template,
        },
    });
    let operator = cluster.operator(&config);
    let pod = |name: &str, labels: Value, annotations: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels, "annotations": annotations },
            "spec": { "containers": [{ "name": "app", "image": "app:1" }, { "name": "envoy", "image": "envoy:1" }] },
        })
    };
    let asks = json!({ "atm.dev/inject": "enabled" });
    let injected = wait::until("the webhook to be known and to answer", BOUND, || async {
        let wishes = json!({ "atm.dev/mount": "envoy", "atm.dev/config": "log: {level: debug}" });
        let (status, answer) = cluster
            .server
            .ask(Method::POST, "/api/v1/namespaces/shop/pods", Some(&pod("one", asks.clone(), wishes)))
            .await;
        if status.is_success() { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await;
    let sidecar = &injected["spec"]["initContainers"][0];
    assert_eq!((&sidecar["name"], &sidecar["restartPolicy"]), (&json!("atm-validator"), &json!("Always")));
    assert!(injected["spec"]["containers"][0]["volumeMounts"].is_null());
    assert_eq!(injected["spec"]["containers"][1]["volumeMounts"][0]["mountPath"], "/run/atm");
    takes_its_configuration(&injected, cluster.directory.path()).await;

    // Who does not ask gets none; wrong wishes are refused with their name.
    let plain =
        cluster.server.create("/api/v1/namespaces/shop/pods", &pod("two", json!({}), json!({}))).await;
    assert!(plain["spec"]["initContainers"].is_null());
    let wrong = pod("three", asks.clone(), json!({ "atm.dev/memory-limit": "lots" }));
    let (status, answer) =
        cluster.server.ask(Method::POST, "/api/v1/namespaces/shop/pods", Some(&wrong)).await;
    assert!(
        !status.is_success() && answer["message"].as_str().unwrap().contains("atm.dev/memory-limit"),
        "{answer}"
    );

    // A namespace that asks, and a pod in it that does not want.
    cluster
        .server
        .merge(
            "/api/v1/namespaces/shop",
            &json!({ "metadata": { "labels": { "atm.dev/inject": "enabled" } } }),
        )
        .await;
    let four =
        cluster.server.create("/api/v1/namespaces/shop/pods", &pod("four", json!({}), json!({}))).await;
    assert_eq!(four["spec"]["initContainers"][0]["name"], "atm-validator");
    let five = cluster
        .server
        .create(
            "/api/v1/namespaces/shop/pods",
            &pod("five", json!({ "atm.dev/inject": "disabled" }), json!({})),
        )
        .await;
    assert!(five["spec"]["initContainers"].is_null());

    // Without the webhook the pod is refused: failurePolicy Fail.
    drop(operator);
    let (status, _) = cluster
        .server
        .ask(Method::POST, "/api/v1/namespaces/shop/pods", Some(&pod("six", asks.clone(), json!({}))))
        .await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);

    // The next one takes the certificate that is there; one that is near its end is made anew, and believed.
    let secret = cluster.server.get(WEBHOOK_TLS).await;
    assert_eq!(secret["type"], "kubernetes.io/tls");
    let operator = cluster.operator(&config);
    let again = |name: &'static str| {
        let (server, pod) = (&cluster.server, pod(name, asks.clone(), json!({})));
        wait::until("the webhook to answer", BOUND, move || {
            let pod = pod.clone();
            async move {
                let (status, answer) =
                    server.ask(Method::POST, "/api/v1/namespaces/shop/pods", Some(&pod)).await;
                if status.is_success() { Ok(answer) } else { Err(answer.to_string()) }
            }
        })
    };
    let seven = again("seven").await;
    assert_eq!(seven["spec"]["initContainers"][0]["name"], "atm-validator");
    let kept = cluster.server.get(WEBHOOK_TLS).await;
    assert_eq!(kept["data"], secret["data"]);
    drop(operator);
    cluster
        .server
        .merge(WEBHOOK_TLS, &json!({ "metadata": { "annotations": { "atm.dev/valid-until": "1" } } }))
        .await;
    let _operator = cluster.operator(&config);
    let eight = again("eight").await;
    assert_eq!(eight["spec"]["initContainers"][0]["name"], "atm-validator");
    let renewed = cluster.server.get(WEBHOOK_TLS).await;
    assert_ne!(renewed["data"]["tls.crt"], secret["data"]["tls.crt"]);
    within_the_charts_roles(&cluster).await;
}

/// The sidecar's own check of what the pod shows it as a file.
async fn takes_its_configuration(pod: &Value, directory: &Path) {
    let text = pod["metadata"]["annotations"]["atm.dev/sidecar-config"].as_str().expect("the configuration");
    assert!(text.contains("debug"), "{text}");
    let file = directory.join("injected.yaml");
    std::fs::write(&file, text).expect("written");
    let output =
        run(&programs::ours("atm-sidecar"), &["--config", file.to_str().unwrap(), "--check"], BOUND).await;
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Everything that the operator asked the API server for is granted by the roles that the chart makes.
async fn within_the_charts_roles(cluster: &Cluster) {
    let chart = programs::workspace().join("helm/atm").display().to_string();
    let mut granted = BTreeSet::new();
    for kind in ["ClusterRole", "Role"] {
        let output = python::run("render_one.py", &[&chart, kind], BOUND).await;
        let role: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        for rule in role["rules"].as_array().expect("rules") {
            let all = |key: &str| {
                rule[key]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|v| v.as_str().unwrap().to_owned())
                    .collect::<Vec<_>>()
            };
            for (group, resource, verb) in product(&all("apiGroups"), &all("resources"), &all("verbs")) {
                granted.insert((group, resource, verb));
            }
        }
    }
    let requests = cluster.server.get("/requests").await;
    let asked: Vec<(String, String, String, String)> = serde_json::from_value(requests).expect("requests");
    let beyond: Vec<_> = asked
        .into_iter()
        .filter(|(user, verb, group, resource)| {
            user == "operator" && !granted.contains(&(group.clone(), resource.clone(), verb.clone()))
        })
        .collect();
    assert!(beyond.is_empty(), "not granted by the chart: {beyond:?}");
}

fn product(groups: &[String], resources: &[String], verbs: &[String]) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for group in groups {
        for resource in resources {
            all.extend(verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
        }
    }
    all
}

#[tokio::test]
async fn the_definitions_are_those_of_the_code() {
    let output = run(&programs::ours("atm-operator"), &["crds"], BOUND).await;
    let file = programs::workspace().join("helm/atm/crds/crds.yaml");
    let written = std::fs::read_to_string(file).expect("crds");
    assert!(written == stdout(&output), "make them anew: atm-operator crds > helm/atm/crds/crds.yaml");
}
