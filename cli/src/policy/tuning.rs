//! Changing policies without fear: tables of tests, differences, recorded decisions judged again, shares of the requests.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail, ensure};
use atm_core::policy::{self, PolicySet, Rule};
use serde_json::{Map, Value, json};

use super::Documents;
use crate::output::{self, Format, text};
use crate::policy_table::{Asked, Judge, Table};

/// Reasons that do not come from policies, or from what a record does not tell: such records are not judged again.
const BEYOND_POLICIES: [&str; 14] = [
    "not_ready",
    "internal",
    "malformed_request",
    "credential_multiple",
    "credential_malformed",
    "token_inactive",
    "introspection_timeout",
    "introspection_unavailable",
    "introspection_overload",
    "expired",
    "not_yet_valid",
    "issued_in_future",
    "network_refused",
    "stale",
];
/// Examples of one difference that are shown.
const EXAMPLES: usize = 3;

/// `atmctl policy test`.
pub(super) fn test(
    tables: &[PathBuf],
    policies: &[PathBuf],
    explain: bool,
    format: Format,
) -> Result<ExitCode> {
    let set = Documents::read(policies)?.compile()?;
    let (mut passed, mut failed, mut results) = (0, 0, Vec::new());
    for file in tables {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let outcomes = Table::parse(&text).and_then(|table| table.run(&set));
        for outcome in outcomes.with_context(|| file.display().to_string())? {
            results.push(json!({"file": file, "test": outcome.name, "found": outcome.found, "problem": outcome.problem}));
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

/// `atmctl policy diff`; exit status 1 where there is a difference.
pub(super) fn diff(before: &[String], after: &Documents, format: Format) -> Result<ExitCode> {
    let before = policy::compile(before)
        .map_err(|errors| anyhow!("the set in force does not compile here: {}", errors[0]))?;
    let after = after.compile()?;
    let (before, after) = (by_name(&before), by_name(&after));
    let added: Vec<_> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    let removed: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    let changed: Vec<_> = after
        .iter()
        .filter(|(name, rule)| before.get(*name).is_some_and(|old| old != *rule))
        .map(|(name, _)| name)
        .collect();
    let mut lines = String::new();
    for (mark, names) in [("+", &added), ("-", &removed), ("~", &changed)] {
        for name in names {
            let _ = writeln!(lines, "{mark} {name}"); // writing to a String cannot fail
        }
    }
    let same = lines.is_empty();
    if same {
        lines.push_str("no rule differs");
    }
    output::show(&json!({"added": added, "removed": removed, "changed": changed}), format, lines.trim_end())?;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every rule by policy and name, as all that it says. Places in the documents do not count.
fn by_name(set: &PolicySet) -> BTreeMap<String, String> {
    let said = |rule: &Rule| format!("{rule:?}").replacen(&format!("index: {}", rule.index), "", 1);
    set.rules().iter().map(|rule| (format!("{}/{}", rule.policy, rule.name), said(rule))).collect()
}

/// `atmctl policy replay`; exit status 1 where a decision would change.
pub(super) fn replay(logs: &[PathBuf], policies: &[PathBuf], format: Format) -> Result<ExitCode> {
    let mut judge = Judge::new(&Documents::read(policies)?.compile()?)?;
    let mut replay = Replay::default();
    for file in logs {
        let reader: Box<dyn Read> = if file == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
        };
        for (number, line) in BufReader::new(reader).lines().enumerate() {
            let line = line.with_context(|| format!("{}:{}", file.display(), number + 1))?;
            // Programs log beside the records; only records are looked at.
            match serde_json::from_str::<Value>(&line) {
                Ok(record) if record["event"] == "decision" => replay.judge(&record, &mut judge)?,
                _ => replay.other += 1,
            }
        }
    }
    replay.show(format)
}

#[derive(Default)]
struct Replay {
    same: u64,
    skipped: u64,
    other: u64,
    /// By old and new reason: how often, and some of the requests.
    changed: BTreeMap<(String, String), (u64, Vec<String>)>,
}

impl Replay {
    fn judge(&mut self, record: &Value, judge: &mut Judge) -> Result<()> {
        let old = text(&record["reason"]);
        let has_token = record["token"].is_object();
        // Without a token, what was sent instead is not known; only where nothing was, it is.
        let known = has_token
            || matches!(old.as_str(), "permit" | "credential_missing" | "no_policy" | "ambiguous_path");
        let beyond = BEYOND_POLICIES.contains(&old.as_str())
            || ["revoked_", "dpop_", "binding_", "certificate_", "claim_"]
                .iter()
                .any(|start| old.starts_with(start));
        if beyond || !known {
            self.skipped += 1;
            return Ok(());
        }
        let token = if has_token { Some(judge.token(&Map::new(), claims(&record["token"]))?) } else { None };
        let asked = Asked {
            method: text(&record["method"]),
            host: text(&record["host"]),
            target: text(&record["path"]),
            scheme: "https".to_owned(),
            source: record["source"].as_str().map(str::to_owned),
            extensions: record["extensions"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.clone(), text(value)))
                .collect(),
            ..Asked::default()
        };
        let shown = format!("{} {}{}", asked.method, asked.host, asked.target);
        let (decision, _) = judge.decide(asked, token.as_deref());
        if decision.as_str() == old {
            self.same += 1;
            return Ok(());
        }
        let (count, examples) = self.changed.entry((old, decision.as_str().to_owned())).or_default();
        *count += 1;
        if examples.len() < EXAMPLES && !examples.contains(&shown) {
            examples.push(shown);
        }
        Ok(())
    }

    fn show(self, format: Format) -> Result<ExitCode> {
        let Self { same, skipped, other, changed } = self;
        let total: u64 = changed.values().map(|(count, _)| count).sum();
        let mut lines = String::new();
        let mut list = Vec::new();
        for ((old, new), (count, examples)) in &changed {
            let _ = writeln!(lines, "{count:>8}  {old} -> {new}"); // writing to a String cannot fail
            for example in examples {
                let _ = writeln!(lines, "          {example}");
            }
            list.push(json!({"from": old, "to": new, "count": count, "examples": examples}));
        }
        let _ = write!(
            lines,
            "{total} decisions would change, {same} would not; {skipped} do not come from policies and {other} lines are no decisions"
        );
        let value = json!({"changed": list, "same": same, "skipped": skipped, "other_lines": other});
        output::show(&value, format, &lines)?;
        Ok(if total == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What a record tells of a token, as its claims.
fn claims(token: &Value) -> Map<String, Value> {
    let names = [
        ("issuer", "iss"),
        ("subject", "sub"),
        ("client_id", "client_id"),
        ("jti", "jti"),
        ("session", "sid"),
        ("audience", "aud"),
        ("scope", "scope"),
    ];
    names.into_iter().map(|(name, claim)| (claim.to_owned(), token[name].clone())).collect()
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

    #[test]
    fn recorded_decisions_are_judged_again() {
        let mut judge = Judge::new(
            &policy::compile(&[POLICY.replace("[\"orders.write\"]", "[\"orders.admin\"]")]).unwrap(),
        )
        .unwrap();
        let token = json!({"issuer": "https://i", "subject": "a", "client_id": "c", "jti": "j", "audience": ["orders-api"], "scope": "orders.read orders.write"});
        let record = |reason: &str, method: &str, token: &Value| json!({"event": "decision", "reason": reason, "method": method, "host": "h", "path": "/orders", "token": token});
        let mut replay = Replay::default();
        replay.judge(&record("permit", "GET", &token), &mut judge).unwrap();
        replay.judge(&record("permit", "POST", &token), &mut judge).unwrap();
        replay.judge(&record("expired", "GET", &token), &mut judge).unwrap();
        replay.judge(&record("credential_missing", "GET", &Value::Null), &mut judge).unwrap();
        replay.judge(&record("signature_invalid", "GET", &Value::Null), &mut judge).unwrap();
        assert_eq!((replay.same, replay.skipped), (2, 2));
        let (pair, (count, examples)) = replay.changed.first_key_value().unwrap();
        assert_eq!((pair.0.as_str(), pair.1.as_str(), *count), ("permit", "scope_insufficient", 1));
        assert_eq!(examples, &["POST h/orders"]);
    }
}
