//! Changing policies without fear: tables of tests, and shares of the requests.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::documents::Documents;
use crate::output::{self, Format};
use crate::policy_table::Table;

/// `atmctl policy test`.
pub(super) fn test(
    tables: &[PathBuf],
    policies: &[PathBuf],
    explain: bool,
    shadow: bool,
    format: Format,
) -> Result<ExitCode> {
    let set = Documents::read(policies)?.compile()?;
    let (mut passed, mut failed, mut results) = (0, 0, Vec::new());
    for file in tables {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let outcomes = Table::parse(&text).and_then(|table| table.run(&set, shadow));
        for outcome in outcomes.with_context(|| file.display().to_string())? {
            results.push(json!({
                "file": file, "test": outcome.name, "found": outcome.found, "rule": outcome.rule,
                "problem": outcome.problem,
            }));
            let Some(problem) = outcome.problem else {
                passed += 1;
                continue;
            };
            failed += 1;
            if format == Format::Human {
                output::print(&format!("FAILED  {}: {}: {problem}", file.display(), outcome.name))?;
                for (step, passed, what) in outcome.steps.iter().filter(|_| explain) {
                    let mark = if *passed { "passed" } else { "refused" };
                    output::print(&format!("        {:<13} {mark:<8} {what}", step.as_str()))?;
                }
            }
        }
    }
    let sentence = format!("{passed} passed, {failed} failed");
    output::show(&json!({"passed": passed, "failed": failed, "tests": results}), format, &sentence)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The documents with the share of one policy changed; everything else, comments too, stays as it was written.
pub(super) fn with_rollout(mut documents: Vec<String>, name: &str, percent: f64) -> Result<Vec<String>> {
    ensure!(percent > 0.0 && percent <= 100.0, "--percent must be more than 0, at most 100");
    let named = |document: &&mut String| {
        serde_norway::from_str::<serde_norway::Value>(document)
            .is_ok_and(|value| value["metadata"]["name"] == name)
    };
    let document =
        documents.iter_mut().find(named).with_context(|| format!("the set in force has no policy {name}"))?;
    *document = put_percent(document, percent)?;
    Ok(documents)
}

fn put_percent(document: &str, percent: f64) -> Result<String> {
    let lines: Vec<&str> = document.lines().collect();
    let is_key =
        |line: &str, key: &str| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.starts_with(':'));
    let Some(spec) = lines.iter().position(|line| is_key(line, "spec") && !line.starts_with(' ')) else {
        bail!("the policy's `spec` is not written on a line of its own; change the file and apply it");
    };
    let mut edited: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let level = lines[spec + 1..].iter().find(|line| !line.trim().is_empty()).map_or(2, |line| indent(line));
    let rollout =
        (spec + 1..lines.len()).find(|at| indent(lines[*at]) == level && is_key(lines[*at], "rollout"));
    match rollout {
        None => edited.insert(spec + 1, format!("{}rollout: {{ percent: {percent} }}", " ".repeat(level))),
        Some(at) => {
            let end = (at + 1..lines.len())
                .find(|next| !lines[*next].trim().is_empty() && indent(lines[*next]) <= level);
            let place =
                (at..end.unwrap_or(lines.len())).find_map(|at| Some((at, lines[at].find("percent:")?)));
            let (at, start) =
                place.context("the policy's `rollout` has no `percent`; change the file and apply it")?;
            let tail = &lines[at][start + "percent:".len()..];
            let number = tail.trim_start();
            let rest = number.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            edited[at] = format!("{}percent: {percent}{rest}", &lines[at][..start]);
        }
    }
    Ok(edited.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use atm_core::policy;

    use super::*;

    const POLICY: &str = include_str!("../../../examples/policies/orders.yaml");

    #[test]
    fn a_share_is_put_in_and_changed_and_nothing_else() {
        let first = with_rollout(vec![POLICY.to_owned()], "orders", 25.0).unwrap().remove(0);
        assert!(first.contains("  rollout: { percent: 25 }\n"), "{first}");
        assert_eq!(first.replace("  rollout: { percent: 25 }\n", ""), POLICY);
        let second = with_rollout(vec![first], "orders", 50.5).unwrap().remove(0);
        assert!(second.contains("percent: 50.5 }"), "{second}");
        let set = policy::compile(&[second]).unwrap();
        assert_eq!(set.rules()[0].rollout.as_ref().unwrap().per_ten_thousand, 5_050);
        let block = POLICY.replace("spec:\n", "spec:\n  rollout:\n    by: x-user\n    percent: 5 # canary\n");
        let third = with_rollout(vec![block], "orders", 6.0).unwrap().remove(0);
        assert!(third.contains("    percent: 6 # canary\n"), "{third}");
        assert!(with_rollout(vec![POLICY.to_owned()], "none", 5.0).is_err());
        assert!(with_rollout(vec![POLICY.to_owned()], "orders", 0.0).is_err());
    }
}
