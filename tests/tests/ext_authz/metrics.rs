//! What is measured is what is documented: `docs/metrics.md` against both programs.

use std::collections::{BTreeMap, BTreeSet};

use atm_tests::dev::DevStack;
use atm_tests::{http, programs};

use super::fixture::{Asked, Fixture};

/// Name → type and labels.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

/// The tables' rows: `name`, type, labels, meaning.
fn documented(prefix: &str) -> Families {
    let text = std::fs::read_to_string(programs::workspace().join("docs/metrics.md")).unwrap();
    let rows =
        text.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|row| row.split_once("` | "));
    rows.filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, rest)| {
            let mut cells = rest.split(" | ");
            let kind = cells.next().unwrap_or_default().to_owned();
            let labels =
                cells.next().unwrap_or_default().split(", ").map(|label| label.trim_matches('`').to_owned());
            (name.to_owned(), (kind, labels.filter(|label| label != "-").collect()))
        })
        .collect()
}

fn scraped(text: &str) -> Families {
    let mut families = Families::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((series, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
            let family = family.filter(|name| families.contains_key(*name)).unwrap_or(series);
            let (labels, _) = labels.rsplit_once('}').expect("a closing brace");
            let names =
                labels.split("\",").filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.to_owned());
            let known = families.get_mut(family).unwrap_or_else(|| panic!("{series} has no type"));
            known.1.extend(names.filter(|name| name != "le"));
        }
    }
    families
}

fn compare(program: &str, found: &Families, prefix: &str) {
    let documented = documented(prefix);
    let ours: Families = found
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(a, b)| (a.clone(), b.clone()))
        .collect();
    assert_eq!(ours.len(), found.len(), "{program} has metrics that do not begin with {prefix}");
    for (name, of) in &ours {
        assert_eq!(
            documented.get(name),
            Some(of),
            "{program}: {name} in docs/metrics.md beside what is measured"
        );
    }
    let missing: Vec<_> = documented.keys().filter(|name| !ours.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{program} does not measure what docs/metrics.md lists: {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sidecars_metrics_are_the_documented_ones() {
    let fixture = Fixture::start().await;
    let envoy = fixture.envoy(Asked::Grpc, |_| {}).await;
    // A request that a policy in shadow mode covers, too: its counter has no series before.
    let token = fixture.mint.token().sign();
    for target in ["/orders/1", "/orders/1", "/nothing"] {
        fixture.get(&envoy, target, Some(&token)).await;
    }
    let text = fixture.sidecar.admin("/metrics").await.unwrap().text();
    compare("the sidecar", &scraped(&text), "atm_sidecar_");
    let value = |series: &str| atm_tests::sidecar::count(&text, series);
    assert_eq!(value("atm_sidecar_decisions_total{reason=\"permit\"}"), 2);
    assert_eq!(value("atm_sidecar_verified_token_cache_hits_total"), 1 + 2, "shadow looks the token up, too");
    assert_eq!(value("atm_sidecar_store_block_cache_capacity_bytes"), 8 << 20);
    assert!(value("atm_sidecar_store_memtable_bytes") > 0, "{text}");
    assert_eq!(value("atm_sidecar_store_write_stopped"), 0);

    let state = fixture.sidecar.state().await;
    assert_eq!(state["decisions"]["permits"], 2, "{state}");
    assert_eq!(state["decisions"]["denials"]["no_policy"], 1, "{state}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_planes_metrics_are_the_documented_ones() {
    let stack = DevStack::up().await;
    let text = http::get(http::authority(stack.field("admin_url")), "/metrics").await.unwrap().text();
    compare("the control plane", &scraped(&text), "atm_control_plane_");
}
