//! What can be configured is what is documented: `docs/configuration.md` against the keys that both programs ask for.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use atm_tests::programs;

/// What stands in backquotes in the first column of the table below `heading`.
fn documented(heading: &str) -> Vec<String> {
    let text = std::fs::read_to_string(programs::workspace().join("docs/configuration.md")).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")).filter(|row| row.contains('`'));
    let firsts = rows.map(|row| row.split(" | ").next().unwrap());
    firsts.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

/// A documented section stands for its keys.
fn stands_for(documented: &str, key: &str) -> bool {
    key.strip_prefix(documented).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_one() {
    let programs = [
        ("Control plane", atm_control_plane::config::Config::keys().unwrap()),
        ("Sidecar", atm_sidecar::config::Config::keys().unwrap()),
    ];
    let mut wrong = Vec::new();
    for (heading, keys) in programs {
        let documented = documented(heading);
        assert!(keys.len() > 20 && documented.len() > 20, "{keys:?} {documented:?}");
        let lacking = keys.iter().filter(|key| !documented.iter().any(|name| stands_for(name, key)));
        wrong.extend(lacking.map(|key| format!("{heading}: {key} is not in docs/configuration.md")));
        let unknown = documented.iter().filter(|name| !keys.iter().any(|key| stands_for(name, key)));
        wrong.extend(
            unknown.map(|name| format!("{heading}: docs/configuration.md has {name}, which is no key")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
