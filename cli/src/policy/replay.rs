//! Recorded decisions, judged again by other policies.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::documents::Documents;
use crate::output::{self, Format, text};
use crate::policy_table::{Asked, Judge};

/// Reasons that do not come from policies, or from what a record does not tell: such records are not judged again.
const BEYOND_POLICIES: [&str; 15] = [
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
    "revocation_unconfirmed",
];
/// Beginnings of further ones.
const BEYOND_POLICIES_BEGIN: [&str; 5] = ["revoked_", "dpop_", "binding_", "certificate_", "claim_"];
/// Examples of one difference that are shown.
const EXAMPLES: usize = 3;

/// `atmctl policy replay`; exit status 1 where a decision would change.
pub(super) fn replay(logs: &[PathBuf], policies: &[PathBuf], format: Format) -> Result<ExitCode> {
    let mut judge = Judge::new(&Documents::read(policies)?.compile()?, true)?;
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

/// One kind of difference: what was decided, by which rule, and what would be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    from: String,
    from_rule: String,
    to: String,
    to_rule: String,
}

#[derive(Debug, Default)]
struct Replay {
    same: u64,
    skipped: u64,
    other: u64,
    /// By new reason: what hangs on facts that a record does not have.
    untold: BTreeMap<String, u64>,
    /// How often, and some of the requests.
    changed: BTreeMap<Change, (u64, Vec<String>)>,
}

impl Replay {
    fn judge(&mut self, record: &Value, judge: &mut Judge) -> Result<()> {
        let old = text(&record["reason"]);
        let has_token = record["token"].is_object();
        // Without a token, what was sent instead is not known; only where nothing was, it is.
        let known = has_token
            || matches!(old.as_str(), "permit" | "credential_missing" | "no_policy" | "ambiguous_path");
        let beyond = BEYOND_POLICIES.contains(&old.as_str())
            || BEYOND_POLICIES_BEGIN.iter().any(|start| old.starts_with(start));
        if beyond || !known {
            self.skipped += 1;
            return Ok(());
        }
        let mut asked = Asked {
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
        if has_token {
            let token = &record["token"];
            let (opaque, bound) = (token["kind"] == "opaque", token["bound"] == true);
            let fitting = judge.fitting(&asked, claims(token), opaque, bound);
            // What it was bound to was proved then: a good proof and certificate stand for that.
            asked.proof = fitting.to_key.then(Default::default);
            asked.certificate = fitting.to_certificate.then(Default::default);
            asked.token = Some(fitting);
        }
        let shown = format!("{} {}{}", asked.method, asked.host, asked.target);
        let decision = judge.decide(asked)?.decision;
        let new = decision.as_str();
        if new == old {
            self.same += 1;
            return Ok(());
        }
        if new == "condition_fault" {
            *self.untold.entry(new.to_owned()).or_default() += 1;
            return Ok(());
        }
        let rule = |policy: &str, rule: &str| {
            if policy.is_empty() { String::new() } else { format!("{policy}/{rule}") }
        };
        let change = Change {
            from: old,
            from_rule: rule(&text(&record["policy"]), &text(&record["rule"])),
            to: new.to_owned(),
            to_rule: decision.rule().map(|by| rule(&by.policy, &by.name)).unwrap_or_default(),
        };
        let (count, examples) = self.changed.entry(change).or_default();
        *count += 1;
        if examples.len() < EXAMPLES && !examples.contains(&shown) {
            examples.push(shown);
        }
        Ok(())
    }

    fn show(self, format: Format) -> Result<ExitCode> {
        let Self { same, skipped, other, untold, changed } = self;
        let total: u64 = changed.values().map(|(count, _)| count).sum();
        let unknown: u64 = untold.values().sum();
        let mut lines = String::new();
        let mut list = Vec::new();
        let mut sorted: Vec<_> = changed.iter().collect();
        sorted.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (Change { from, from_rule, to, to_rule }, (count, examples)) in sorted {
            let by = |rule: &str| if rule.is_empty() { String::new() } else { format!(" ({rule})") };
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "{count:>8}  {from}{} -> {to}{}", by(from_rule), by(to_rule));
            for example in examples {
                let _ = writeln!(lines, "          {example}");
            }
            list.push(json!({
                "from": from, "from_rule": from_rule, "to": to, "to_rule": to_rule, "count": count,
                "examples": examples,
            }));
        }
        let _ = write!(lines, "{total} decisions would change, {same} would not");
        if unknown > 0 {
            let _ = write!(lines, "; {unknown} hang on claims or headers that are not recorded");
        }
        let _ = write!(lines, "; {skipped} do not come from policies, {other} lines are no decisions");
        let value = json!({
            "changed": list, "same": same, "unknown": untold, "skipped": skipped, "other_lines": other,
        });
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

#[cfg(test)]
mod tests {
    use atm_core::policy;

    use super::*;

    const POLICY: &str = include_str!("../../../examples/policies/orders.yaml");

    fn replayed(policy: &str, records: &[Value]) -> Replay {
        let set = policy::compile(&[policy.to_owned()]).unwrap_or_else(|errors| panic!("{}", errors[0]));
        let mut judge = Judge::new(&set, true).unwrap();
        let mut replay = Replay::default();
        for record in records {
            replay.judge(record, &mut judge).unwrap();
        }
        replay
    }

    fn record(reason: &str, method: &str, token: &Value) -> Value {
        json!({
            "event": "decision", "reason": reason, "method": method, "host": "h", "path": "/orders", "token": token,
            "policy": "orders", "rule": "read",
        })
    }

    fn token(kind: &str, bound: bool) -> Value {
        json!({
            "issuer": "https://i", "subject": "a", "client_id": "c", "jti": "j", "audience": ["orders-api"],
            "scope": "orders.read orders.write", "kind": kind, "bound": bound,
        })
    }

    #[test]
    fn recorded_decisions_are_judged_again() {
        let policy = POLICY.replace("[\"orders.write\"]", "[\"orders.admin\"]");
        let replay = replayed(
            &policy,
            &[
                record("permit", "GET", &token("jwt", false)),
                record("permit", "POST", &token("jwt", false)),
                record("permit", "GET", &token("opaque", false)),
                record("expired", "GET", &token("jwt", false)),
                record("credential_missing", "GET", &Value::Null),
                record("signature_invalid", "GET", &Value::Null),
            ],
        );
        assert_eq!((replay.same, replay.skipped), (3, 2));
        assert_eq!(replay.changed.len(), 1, "{replay:?}");
        let (change, (count, examples)) = replay.changed.first_key_value().unwrap();
        assert_eq!((change.from.as_str(), change.to.as_str(), *count), ("permit", "scope_insufficient", 1));
        assert_eq!((change.from_rule.as_str(), change.to_rule.as_str()), ("orders/read", "orders/write"));
        assert_eq!(examples, &["POST h/orders"]);
    }

    /// What was proved when a decision was recorded counts as proved; where the token was does not matter.
    #[test]
    fn what_a_record_does_not_tell_is_no_difference() {
        let elsewhere = POLICY.replace("{ header: authorization, scheme: Bearer }", "{ cookie: session }");
        assert_eq!(replayed(&elsewhere, &[record("permit", "GET", &token("jwt", false))]).same, 1);
        let keys = POLICY.replace("  forwardToken: true\n", "  accepts: [apiKey]\n");
        assert_eq!(replayed(&keys, &[record("permit", "GET", &token("opaque", false))]).same, 1);
        for need in ["dpop", "certificate"] {
            let bound = POLICY
                .replace(
                    "  forwardToken: true\n",
                    &format!("  binding: {{ require: {need}, dpop: {{ nonce: true }} }}\n"),
                )
                .replace("  credential: { header: authorization, scheme: Bearer }\n", "");
            assert_eq!(replayed(&bound, &[record("permit", "GET", &token("jwt", true))]).same, 1, "{need}");
            let changed = replayed(&bound, &[record("permit", "GET", &token("jwt", false))]).changed;
            assert_eq!(changed.first_key_value().unwrap().0.to, "binding_required", "{need}");
        }
        let condition =
            POLICY.replace("scopes: { all: [\"orders.read\"] }", "condition: token.org == 'acme'");
        let untold = replayed(&condition, &[record("permit", "GET", &token("jwt", false))]);
        assert_eq!((untold.untold["condition_fault"], untold.changed.len()), (1, 0));
    }
}
