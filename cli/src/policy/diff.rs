//! What one policy set says differently from another, rule by rule.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::process::ExitCode;

use anyhow::Result;
use atm_core::policy::{
    Access, BindingNeed, Encoding, Mode, PolicySet, Rule, Share, StaleAction, TokenRequirements,
};
use serde_json::{Value, json};

use crate::output::{self, Format};

/// What a rule says, by the key that says it.
type Said = BTreeMap<&'static str, String>;

/// `atmctl policy diff`; exit status 1 where there is a difference.
pub(super) fn diff(before: &PolicySet, after: &PolicySet, format: Format) -> Result<ExitCode> {
    let (before, after) = (by_name(before), by_name(after));
    let added: Vec<_> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    let removed: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    let mut lines = String::new();
    for (mark, names) in [("+", &added), ("-", &removed)] {
        for name in names {
            let _ = writeln!(lines, "{mark} {name}"); // writing to a String cannot fail
        }
    }
    let mut changed = Vec::new();
    for (name, new) in &after {
        let Some(old) = before.get(name).filter(|old| *old != new) else { continue };
        let _ = writeln!(lines, "~ {name}");
        let mut keys = Vec::new();
        for key in new.keys().filter(|key| old[**key] != new[**key]) {
            let _ = writeln!(lines, "    {key}: {} -> {}", old[key], new[key]);
            keys.push(json!({"key": key, "from": old[key], "to": new[key]}));
        }
        changed.push(json!({"rule": name, "keys": keys}));
    }
    let same = lines.is_empty();
    if same {
        lines.push_str("no rule differs");
    }
    let value: Value = json!({"added": added, "removed": removed, "changed": changed});
    output::show(&value, format, lines.trim_end())?;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every rule by policy and name. Places in the documents do not count.
fn by_name(set: &PolicySet) -> BTreeMap<String, Said> {
    set.rules().iter().map(|rule| (format!("{}/{}", rule.policy, rule.name), said(rule))).collect()
}

fn said(rule: &Rule) -> Said {
    let mut said = Said::from([
        ("mode", if rule.mode == Mode::Enforce { "enforce" } else { "shadow" }.to_owned()),
        ("rollout", rollout(rule)),
        ("hosts", list(rule.hosts())),
        ("methods", if rule.methods.is_empty() { "any".to_owned() } else { list(&rule.methods) }),
        ("paths", list(rule.paths())),
        ("extensions", list(rule.extensions.iter().map(|(name, value)| format!("{name}={value}")))),
        ("credential", list(rule.credential.iter())),
        ("forwardToken", rule.forward_token.to_string()),
        ("onStale", stale(rule.on_stale)),
        ("upstreamHeaders", upstream_headers(rule)),
        ("metadataClaims", list(rule.upstream.metadata.iter().map(|path| path.join(".")))),
    ]);
    let nothing = TokenRequirements {
        issuers: Vec::new(),
        audiences: Vec::new(),
        clock_skew: 0,
        all_scopes: Vec::new(),
        any_scopes: Vec::new(),
        accepts: Vec::new(),
        condition: None,
        binding: BindingNeed::None,
        dpop: atm_core::policy::DpopRequirements { nonce: false, max_age_seconds: 0, origins: Vec::new() },
    };
    let (anonymous, token) = match &rule.access {
        Access::Anonymous => (true, &nothing),
        Access::Token(requirements) => (false, requirements),
    };
    let origins = token.dpop.origins.iter().map(|(scheme, authority)| format!("{scheme}://{authority}"));
    said.extend([
        ("allowAnonymous", anonymous.to_string()),
        ("issuers", if token.issuers.is_empty() { "any".to_owned() } else { list(&token.issuers) }),
        ("audiences", list(&token.audiences)),
        ("clockSkewSeconds", token.clock_skew.to_string()),
        ("scopes.all", list(&token.all_scopes)),
        ("scopes.any", list(&token.any_scopes)),
        ("accepts", list(token.accepts.iter().map(|kind| kind.as_str()))),
        (
            "condition",
            token.condition.as_ref().map_or_else(|| "none".to_owned(), |one| one_line(one.as_str())),
        ),
        ("binding.require", binding(token.binding).to_owned()),
        ("binding.dpop.nonce", token.dpop.nonce.to_string()),
        ("binding.dpop.maxAgeSeconds", token.dpop.max_age_seconds.to_string()),
        ("binding.dpop.origins", list(origins)),
    ]);
    said
}

fn list<T: Display>(entries: impl IntoIterator<Item = T>) -> String {
    let entries: Vec<String> = entries.into_iter().map(|entry| entry.to_string()).collect();
    if entries.is_empty() { "none".to_owned() } else { entries.join(", ") }
}

fn rollout(rule: &Rule) -> String {
    rule.rollout.as_ref().map_or_else(
        || "all".to_owned(),
        |rollout| {
            let by = match &rollout.by {
                Share::Credential => "credential",
                Share::Address => "address",
                Share::Header(name) => name,
            };
            format!("{}% by {by}", f64::from(rollout.per_ten_thousand) / 100.0)
        },
    )
}

fn stale(action: StaleAction) -> String {
    match action {
        StaleAction::Deny => "deny".to_owned(),
        StaleAction::Introspect => "introspect".to_owned(),
        StaleAction::Allow(None) => "allow".to_owned(),
        StaleAction::Allow(Some(seconds)) => format!("allow for {seconds} s"),
    }
}

fn binding(need: BindingNeed) -> &'static str {
    match need {
        BindingNeed::None => "none",
        BindingNeed::Any => "any",
        BindingNeed::Dpop => "dpop",
        BindingNeed::Certificate => "certificate",
    }
}

fn upstream_headers(rule: &Rule) -> String {
    list(rule.upstream.headers.iter().map(|header| {
        let encoding = match header.encode {
            None => "",
            Some(Encoding::Comma) => " as comma",
            Some(Encoding::Space) => " as space",
            Some(Encoding::Json) => " as json",
            Some(Encoding::Base64url) => " as base64url",
        };
        format!("{} from {}{encoding}", header.name, header.claim.join("."))
    }))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use atm_core::policy::compile;

    use super::*;

    const POLICY: &str = include_str!("../../../examples/policies/orders.yaml");

    fn rules(text: &str) -> BTreeMap<String, Said> {
        by_name(&compile(&[text.to_owned()]).unwrap())
    }

    #[test]
    fn a_change_is_seen_at_its_key_and_nothing_else_is() {
        let before = rules(POLICY);
        let after = rules(&POLICY.replace("[\"orders.write\"]", "[\"orders.admin\"]"));
        let differs: Vec<_> = before
            .iter()
            .flat_map(|(name, old)| old.iter().map(move |(key, old)| (name.as_str(), *key, old)))
            .filter(|(name, key, old)| after[*name][key] != **old)
            .collect();
        assert_eq!(differs, [("orders/write", "scopes.all", &"orders.write".to_owned())]);
        let moved = POLICY.replace("# Who may do what", "# Who\n# may do what");
        assert_eq!(rules(&moved), before);
    }
}
