//! What Grafana and Prometheus are given: every metric, label and label value that a dashboard or an alert uses is one that the
//! programs export, every expression is right, and every alert has its runbook.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use atm_tests::dev::DevStack;
use atm_tests::kubernetes::{ApiServer, start_operator};
use atm_tests::process::{run, stderr, stdout};
use atm_tests::{http, programs, wait};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_mins(1);

/// Metrics of others: the kubelet's.
const FOREIGN: [&str; 2] = ["kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"];
/// Labels that Prometheus and Kubernetes add to every series.
const TARGET_LABELS: [&str; 4] = ["namespace", "instance", "le", "persistentvolumeclaim"];

const SHADOW: &str = r#"
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: stricter }
spec:
  mode: shadow
  audiences: [orders-api]
  rules: [{ name: orders, hosts: ["*"], paths: ["/orders"], scopes: { all: [orders.admin] } }]
"#;

/// Where an expression stands, and the expression.
type Expression = (String, String);

fn chart() -> PathBuf {
    programs::workspace().join("helm/atm")
}

fn rules() -> Vec<Value> {
    let text = std::fs::read_to_string(chart().join("rules/alerts.yaml")).expect("alerts");
    let file: Value = serde_norway::from_str(&text).expect("YAML");
    let groups = file["groups"].as_array().expect("groups").clone();
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

fn dashboards() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(chart().join("dashboards")).expect("dashboards").flatten();
    let load = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("readable");
        (path.file_name().unwrap().to_string_lossy().into_owned(), serde_json::from_str(&text).expect("JSON"))
    };
    files.map(|entry| load(entry.path())).collect()
}

fn expressions() -> Vec<Expression> {
    let mut found: Vec<Expression> = rules()
        .iter()
        .map(|rule| (rule["alert"].as_str().unwrap().to_owned(), rule["expr"].as_str().unwrap().to_owned()))
        .collect();
    for (file, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let place = format!("{file}: {}", panel["title"].as_str().unwrap());
                found.push((place, target["expr"].as_str().unwrap().to_owned()));
            }
        }
    }
    found
}

/// Metric → label → values, as the programs export them that have issued, decided, refused and revoked.
type Exported = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn read_metrics(text: &str, exported: &mut Exported) {
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) {
            exported.entry(name.to_owned()).or_default();
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (name, rest) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap(), "}"));
        let labels = exported.entry(name.to_owned()).or_default();
        for pair in rest.split('}').next().unwrap().split("\",").filter(|pair| !pair.is_empty()) {
            let (label, value) = pair.split_once("=\"").expect("a label");
            labels.entry(label.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
        }
    }
}

async fn exported() -> Exported {
    let stack = DevStack::up().await;
    // A family that has series only where there is a policy in shadow mode, and a request that it would decide.
    let shadow = stack.path().join("shadow.yaml");
    std::fs::write(&shadow, SHADOW).expect("written");
    let orders = programs::workspace().join("examples/policies/orders.yaml");
    let applied =
        stack.atmctl(&["policy", "apply", orders.to_str().unwrap(), shadow.to_str().unwrap()]).await;
    assert!(applied.status.success(), "{}", stderr(&applied));
    let sidecar = http::authority(stack.field("sidecar_admin_url"));
    wait::until("a shadow policy to be compared", wait::USUAL, || async {
        http::get(http::authority(stack.field("envoy_url")), "/orders").await.map_err(|e| e.to_string())?;
        let text = http::get(sidecar, "/metrics").await.map_err(|e| e.to_string())?.text();
        if text.contains("atm_sidecar_shadow_decisions_total{") {
            Ok(())
        } else {
            Err("no series yet".to_owned())
        }
    })
    .await;
    let mut exported = Exported::new();
    for url in [stack.field("admin_url"), stack.field("sidecar_admin_url")] {
        let address = url.trim_start_matches("http://");
        let answer = http::get(address, "/metrics").await.expect("metrics");
        assert_eq!(answer.status, 200);
        read_metrics(&answer.text(), &mut exported);
    }
    read_metrics(&operators_metrics(&stack).await, &mut exported);
    exported
}

/// What an operator exports that has compared policies and issuers.
async fn operators_metrics(stack: &DevStack) -> String {
    let server = ApiServer::start(&[]).await;
    let crds = std::fs::read_to_string(chart().join("crds/crds.yaml")).expect("crds");
    for document in crds.split("\n---\n") {
        let crd: Value = serde_norway::from_str(document).expect("YAML");
        server.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).await;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let token = directory.path().join("admin.token");
    std::fs::write(&token, stack.field("admin_token")).expect("written");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let config = json!({
        "controlPlane": { "url": stack.field("admin_url"), "tokenFile": token },
        "listen": { "health": address },
    });
    let _operator = start_operator(&server, &config, directory.path());
    wait::until("the operator to have compared both kinds", wait::USUAL, || async {
        let text = http::get(&address, "/metrics").await.map_err(|error| error.to_string())?.text();
        let both = ["policies", "issuers"].iter().all(|kind| text.contains(&format!("{{kind=\"{kind}\"}}")));
        if both { Ok(text) } else { Err(text) }
    })
    .await
}

/// The selectors of an expression: a metric and the text between its braces.
fn selectors(expression: &str) -> Vec<(String, String)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let name: String = rest[at..].chars().take_while(|c| is_name(*c)).collect();
        rest = &rest[at + name.len()..];
        if !(name.starts_with("atm_") || name.starts_with("kubelet_")) {
            // Past texts in quotes: their words are no metrics.
            continue;
        }
        let matchers = rest.strip_prefix('{').map(|inside| {
            let end = inside.find('}').expect("braces are closed");
            rest = &inside[end + 1..];
            inside[..end].to_owned()
        });
        found.push((name, matchers.unwrap_or_default()));
    }
    found
}

/// What is wrong with the use of a metric.
fn mistakes((place, expression): &Expression, exported: &Exported) -> Vec<String> {
    let mut wrong = Vec::new();
    for (metric, matchers) in selectors(expression) {
        if FOREIGN.contains(&metric.as_str()) {
            continue;
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| metric.strip_suffix(suffix));
        let Some(labels) = exported.get(&metric).or_else(|| exported.get(base?)) else {
            wrong.push(format!("{place}: no program exports {metric}"));
            continue;
        };
        for matcher in matchers.split("\",").filter(|text| !text.is_empty()) {
            let (label, value) = matcher.split_once(['=', '!']).expect("a matcher");
            let Some(values) = labels.get(label) else {
                // A family without a series yet (shadow policies) has no labels to compare with.
                if !TARGET_LABELS.contains(&label) && !labels.is_empty() {
                    wrong.push(format!("{place}: {metric} has no label {label}"));
                }
                continue;
            };
            let value = value.trim_start_matches(['=', '~', '"']).trim_end_matches('"');
            for alternative in value.split('|') {
                let fits = |known: &String| match alternative.strip_suffix(".*") {
                    Some(prefix) => known.starts_with(prefix),
                    None => known == alternative,
                };
                if !values.iter().any(fits) {
                    wrong.push(format!("{place}: {metric}{{{label}}} is never {alternative}"));
                }
            }
        }
    }
    wrong
}

#[tokio::test]
async fn dashboards_and_alerts_use_what_the_programs_export() {
    let exported = exported().await;
    assert!(exported.len() > 30, "{:?}", exported.keys());
    let expressions = expressions();
    assert!(expressions.len() > 60);
    let wrong: Vec<String> = expressions.iter().flat_map(|one| mistakes(one, &exported)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Prometheus's own parser takes every expression of the dashboards; those of the alerts are checked with the chart.
#[tokio::test]
async fn prometheus_understands_every_panel() {
    let rules: Vec<Value> = expressions()
        .iter()
        .enumerate()
        .map(|(at, (_, expression))| {
            let expression = expression.replace("$__rate_interval", "5m").replace("$__range", "1h");
            json!({ "record": format!("panel:{at}"), "expr": expression.replace("$namespace", "atm") })
        })
        .collect();
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("panels.yaml");
    std::fs::write(&file, json!({ "groups": [{ "name": "panels", "rules": rules }] }).to_string()).unwrap();
    let output = run(&programs::tool("promtool"), &["check", "rules", file.to_str().unwrap()], BOUND).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn dashboards_are_ones_that_grafana_can_keep_apart() {
    let dashboards = dashboards();
    let names: Vec<&str> = dashboards.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["fleet.json", "decisions.json", "issuance.json", "keys.json", "audit.json", "stores.json"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let mut uids = BTreeSet::new();
    for (name, dashboard) in &dashboards {
        assert!(uids.insert(dashboard["uid"].as_str().expect("uid").to_owned()), "{name}: its uid is taken");
        let ids: Vec<u64> =
            dashboard["panels"].as_array().unwrap().iter().filter_map(|p| p["id"].as_u64()).collect();
        let distinct: BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), dashboard["panels"].as_array().unwrap().len(), "{name}: ids of panels");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let directory = programs::workspace().join("docs/runbooks");
    let mut mentioned = BTreeSet::new();
    for rule in rules() {
        let alert = rule["alert"].as_str().unwrap();
        let path = rule["annotations"]["runbook_url"].as_str().expect("runbook_url");
        let name = path.strip_prefix("docs/runbooks/").unwrap_or_else(|| panic!("{alert}: {path}"));
        mentioned.insert(name.to_owned());
        let text =
            std::fs::read_to_string(directory.join(name)).unwrap_or_else(|e| panic!("{alert}: {name}: {e}"));
        assert!(text.contains(&format!("`{alert}`")), "{name} does not name {alert}");
        let index = std::fs::read_to_string(directory.join("README.md")).unwrap();
        assert!(index.contains(alert), "docs/runbooks/README.md does not name {alert}");
    }
    for entry in std::fs::read_dir(&directory).expect("docs/runbooks").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "README.md" {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).unwrap();
        for part in
            ["## What it means", "## How to see it", "## What to do", "## How to know that it is over"]
        {
            assert!(text.contains(part), "{name} has no «{part}»");
        }
        assert!(mentioned.contains(&name), "no alert leads to {name}");
    }
}
