//! What the parts' own words mean: pure, so that each case has a test.

use anyhow::Result;
use serde_json::{Value, json};

use crate::output::text;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// As it should be.
    Good,
    /// It works, and should be looked at.
    Attention,
    /// It does not work.
    Bad,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) what: String,
    pub(super) outcome: Outcome,
    pub(super) detail: String,
    /// What to do; empty where there is nothing to be done.
    pub(super) advice: String,
}

impl Finding {
    pub(super) fn good(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), outcome: Outcome::Good, detail: detail.into(), advice: String::new() }
    }

    pub(super) fn attention(what: impl Into<String>, detail: impl Into<String>, advice: &str) -> Self {
        Self {
            what: what.into(),
            outcome: Outcome::Attention,
            detail: detail.into(),
            advice: advice.to_owned(),
        }
    }

    pub(super) fn bad(what: impl Into<String>, detail: impl Into<String>, advice: &str) -> Self {
        Self { what: what.into(), outcome: Outcome::Bad, detail: detail.into(), advice: advice.to_owned() }
    }

    pub(super) fn as_json(&self) -> Value {
        let outcome = match self.outcome {
            Outcome::Good => "good",
            Outcome::Attention => "attention",
            Outcome::Bad => "bad",
        };
        json!({ "check": self.what, "outcome": outcome, "detail": self.detail, "advice": self.advice })
    }
}

/// A NATS server's greeting.
pub(super) fn nats(greeting: Result<Value>) -> Finding {
    match greeting {
        Err(error) => {
            Finding::bad("nats", format!("{error:#}"), "start it, or give its address with --nats-url")
        }
        Ok(info) if info["jetstream"] != true => Finding::bad(
            "nats",
            format!("version {} without JetStream", text(&info["version"])),
            "turn JetStream on: the feed's log is kept there",
        ),
        Ok(info) => Finding::good("nats", format!("version {}, JetStream is on", text(&info["version"]))),
    }
}

/// `GET /admin/v1/feed`.
pub(super) fn feed(feed: &Value) -> Vec<Finding> {
    let (revision, published) = (number(&feed["revision"]), number(&feed["published"]));
    let carrier = match feed["degraded"].as_str() {
        Some(problem) => Finding::bad(
            "control plane to nats",
            problem,
            "revocations wait in the store until this is mended; its log and docs/runbooks/feed-gap.md say more",
        ),
        None => Finding::good("control plane to nats", "connected"),
    };
    let log = if published < revision {
        Finding::bad(
            "feed",
            format!("revision {revision} is stored, {published} is published"),
            "see docs/runbooks/feed-gap.md",
        )
    } else {
        Finding::good("feed", format!("epoch {}, revision {revision}", text(&feed["epoch"])))
    };
    vec![carrier, log]
}

/// `GET /admin/v1/fleet`.
pub(super) fn fleet(fleet: &Value) -> Vec<Finding> {
    let (live, in_force) = (number(&fleet["live"]), number(&fleet["in_force_on"]));
    if live == 0 {
        return vec![Finding::attention(
            "fleet",
            "no sidecar reports",
            "sidecars need the same realmGroup, a way to NATS, and the right to publish on atm.GROUP.fleet.ID",
        )];
    }
    let count = format!("revision {} is in force on {in_force} of {live}", text(&fleet["revision"]));
    let mut found = vec![if in_force < live {
        Finding::bad("fleet", count, "see docs/runbooks/fleet-behind.md")
    } else {
        Finding::good("fleet", count)
    }];
    for sidecar in fleet["sidecars"].as_array().into_iter().flatten().filter(|one| one["state"] == "live") {
        let name = format!("fleet: {}", text(&sidecar["id"]));
        if sidecar["ready"] == false {
            found.push(Finding::bad(name, "is not ready: it refuses every request", "look at its /readyz"));
        } else if let Some(problem) = sidecar["degraded"].as_str() {
            found.push(Finding::attention(
                name,
                problem,
                "it serves; see docs/runbooks/disk.md and staleness.md",
            ));
        }
    }
    found
}

/// `GET /admin/v1/keys`.
pub(super) fn keys(keys: &Value) -> Finding {
    let all = keys.as_array().or_else(|| keys["items"].as_array()).or_else(|| keys["keys"].as_array());
    let with = |state: &str| all.into_iter().flatten().filter(|key| key["state"] == state).count();
    match (with("active"), with("pending")) {
        (0, _) => Finding::bad("signing keys", "none is active", "atmctl keys rotate --wait"),
        (_, 0) => Finding::good("signing keys", "one is active"),
        _ => Finding::attention(
            "signing keys",
            "one is active, one waits until every live sidecar has it",
            "if it waits for long, a sidecar is behind",
        ),
    }
}

/// A sidecar's `/state`, beside what the control plane says of the feed.
pub(super) fn sidecar(state: &Value, feed: Option<&Value>) -> Vec<Finding> {
    let what = |part: &str| format!("sidecar {}: {part}", text(&state["id"]));
    let mut found = Vec::new();
    found.push(if state["nats_connected"] == true {
        Finding::good(what("nats"), "connected")
    } else {
        Finding::bad(
            what("nats"),
            "not connected",
            "check its nats.url and its login; the log of NATS names refusals",
        )
    });
    let forged = number(&state["change_sets"]["refused"]["signature"]);
    if forged > 0 {
        let key = feed.map(|feed| text(&feed["feed_public_key"])).unwrap_or_default();
        found.push(Finding::bad(
            what("feed key"),
            format!("{forged} messages were signed by a key that it does not believe"),
            &format!("the control plane signs with {key}: is that in its feedKeys? If it is, somebody else publishes"),
        ));
    }
    if number(&state["change_sets"]["refused"]["conflict"]) > 0 {
        found.push(Finding::bad(
            what("history"),
            "it was sent another history than its own",
            "is there a second control plane in this realm group? See docs/runbooks/feed-gap.md",
        ));
    }
    if let Some(feed) = feed {
        found.push(position(state, feed, &what));
    }
    found.push(freshness(state, &what));
    if let Some(fault) = state["policies"]["fault"].as_str() {
        found.push(Finding::bad(
            what("policies"),
            fault,
            "it keeps the last good set; is it older than the control plane?",
        ));
    } else if number(&state["policies"]["rules"]) == 0 {
        found.push(Finding::attention(
            what("policies"),
            "none: everything is refused",
            "atmctl policy apply FILE",
        ));
    }
    found
}

fn position(state: &Value, feed: &Value, what: &dyn Fn(&str) -> String) -> Finding {
    let (here, there) = (number(&state["revision"]), number(&feed["revision"]));
    if !state["epoch"].is_null() && state["epoch"] != feed["epoch"] {
        return Finding::bad(
            what("epoch"),
            format!(
                "it follows {}, the control plane writes {}",
                text(&state["epoch"]),
                text(&feed["epoch"])
            ),
            "are both in one realm group and on one NATS? After a restore it changes over within seconds",
        );
    }
    if here < there {
        return Finding::bad(
            what("revision"),
            format!("{here}, the feed is at {there}"),
            "see docs/runbooks/fleet-behind.md",
        );
    }
    Finding::good(what("revision"), here.to_string())
}

fn freshness(state: &Value, what: &dyn Fn(&str) -> String) -> Finding {
    let age = state["feed_age_ms"]
        .as_u64()
        .map_or("no heartbeat yet".to_owned(), |age| format!("heartbeat {age} ms ago"));
    if state["ready"] != true {
        return Finding::bad(
            what("readiness"),
            "not ready: it refuses every request",
            "see docs/runbooks/staleness.md",
        );
    }
    match (state["freshness"].as_str(), state["degraded"].as_str()) {
        (Some("fresh"), None) => Finding::good(what("freshness"), age),
        (Some("stale"), _) => {
            Finding::bad(what("freshness"), format!("stale, {age}"), "see docs/runbooks/staleness.md")
        }
        (_, problem) => Finding::attention(
            what("freshness"),
            problem.map_or(age, str::to_owned),
            "it serves; see docs/runbooks/staleness.md",
        ),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> (Value, Value) {
        let state = json!({
            "id": "one", "ready": true, "degraded": null, "epoch": "e", "revision": 7, "freshness": "fresh", "feed_age_ms": 400,
            "nats_connected": true, "policies": { "rules": 2, "fault": null },
            "change_sets": { "refused": { "signature": 0, "conflict": 0 } },
        });
        (state, json!({ "epoch": "e", "revision": 7, "published": 7, "feed_public_key": "KEY" }))
    }

    fn outcomes(found: &[Finding]) -> Vec<(&str, Outcome)> {
        found.iter().map(|finding| (finding.what.as_str(), finding.outcome)).collect()
    }

    #[test]
    fn all_is_well() {
        let (state, control_plane) = healthy();
        let mut found = sidecar(&state, Some(&control_plane));
        found.extend(feed(&control_plane));
        found.push(nats(Ok(json!({ "version": "2.15", "jetstream": true }))));
        found.push(keys(&json!({ "items": [{ "state": "active" }] })));
        assert!(found.iter().all(|finding| finding.outcome == Outcome::Good), "{:?}", outcomes(&found));
    }

    #[test]
    fn each_fault_is_found_and_says_what_to_do() {
        let cases: [(&str, Value, &str); 8] = [
            ("/nats_connected", json!(false), "nats"),
            ("/change_sets/refused/signature", json!(3), "feed key"),
            ("/change_sets/refused/conflict", json!(1), "history"),
            ("/epoch", json!("other"), "epoch"),
            ("/revision", json!(6), "revision"),
            ("/freshness", json!("stale"), "freshness"),
            ("/ready", json!(false), "readiness"),
            ("/policies/fault", json!("too new"), "policies"),
        ];
        for (pointer, value, part) in cases {
            let (mut state, control_plane) = healthy();
            *state.pointer_mut(pointer).expect(pointer) = value;
            let found = sidecar(&state, Some(&control_plane));
            let wrong: Vec<_> = found.iter().filter(|finding| finding.outcome == Outcome::Bad).collect();
            assert_eq!(wrong.len(), 1, "{pointer}: {:?}", outcomes(&found));
            assert!(wrong[0].what.ends_with(part) && !wrong[0].advice.is_empty(), "{:?}", wrong[0]);
        }
    }

    #[test]
    fn a_feed_key_that_is_not_believed_is_shown() {
        let (mut state, control_plane) = healthy();
        state["change_sets"]["refused"]["signature"] = json!(1);
        let found = sidecar(&state, Some(&control_plane));
        assert!(found.iter().any(|finding| finding.advice.contains("KEY")));
    }

    #[test]
    fn the_fleet_names_who_is_not_well() {
        let found = fleet(&json!({ "revision": 9, "live": 2, "in_force_on": 1, "sidecars": [
            { "id": "a", "state": "live", "ready": true, "degraded": "a full disk" },
            { "id": "b", "state": "live", "ready": false },
            { "id": "c", "state": "gone", "ready": false },
        ] }));
        let expected =
            [("fleet", Outcome::Bad), ("fleet: a", Outcome::Attention), ("fleet: b", Outcome::Bad)];
        assert_eq!(outcomes(&found), expected);
        assert_eq!(fleet(&json!({ "live": 0 }))[0].outcome, Outcome::Attention);
    }
}
