//! `TokenPolicy` resources are policies of the control plane, beside those that were applied by other means, which are left alone.
//!
//! A resource that does not compile displaces nothing: the last good version of it stays in force, and its status says what is
//! wrong, with line and column of the document as it would be applied.

use std::sync::Arc;
use std::time::Duration;

use atm_core::policy;
use kube::api::DynamicObject;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::admin_api::{AdminApi, Reach};
use crate::health::Health;
use crate::resource::{Condition, Kind, is_leaving, next_round};

/// Without a change everything is compared again so often: somebody may have applied policies by hand.
const RECHECK: Duration = Duration::from_secs(30);
/// While a revision is on its way to validators.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The label of documents that were made of resources.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
const US: &str = "atm-operator";

/// A resource, and what becomes of it.
struct Judged {
    object: DynamicObject,
    /// As it is applied: the resource's own, the last good one, or none.
    document: Option<String>,
    /// Why the resource's own is not applied.
    mistake: Option<(&'static str, String)>,
}

/// Keeps the control plane's policies equal to the resources, until `stop`.
pub async fn run(client: Client, admin: AdminApi, health: Arc<Health>, stop: CancellationToken) {
    let kind = Kind::new(client, "TokenPolicy", "tokenpolicies");
    let changed = Arc::new(Notify::new());
    let watching = tokio::spawn({
        let (kind, changed, stop) = (kind.clone(), Arc::clone(&changed), stop.clone());
        async move { kind.watch(&changed, stop).await }
    });
    let mut revision = None;
    loop {
        let round = round(&kind, &admin, &mut revision).await;
        health.policies(round.is_ok());
        let pause = match round {
            Ok(true) => RECHECK,
            Ok(false) => ON_ITS_WAY,
            Err(error) => {
                tracing::warn!(%error, "policies were not compared with the control plane's; trying again");
                ON_ITS_WAY
            }
        };
        if !next_round(&changed, pause, &stop).await {
            break;
        }
    }
    let _ = watching.await; // it ends with `stop`, too
}

/// One comparison. True when everything that is accepted is in force everywhere.
async fn round(kind: &Kind, admin: &AdminApi, revision: &mut Option<u64>) -> anyhow::Result<bool> {
    let mut objects = kind.list().await?;
    objects.retain(|object| !is_leaving(object));
    let current = admin.policies().await?;
    let (ours, foreign): (Vec<String>, Vec<String>) =
        current.iter().cloned().partition(|document| is_ours(document));
    let judged = judge(objects, &ours, &foreign);
    let mut wanted = foreign;
    wanted.extend(judged.iter().filter_map(|one| one.document.clone()));
    if wanted != current {
        let applied = admin.apply_policies(&wanted).await?;
        tracing::info!(policies = wanted.len(), revision = applied, "policies applied");
        *revision = Some(applied);
    }
    let mut reach = admin.reach(revision.unwrap_or_default()).await?;
    if revision.is_none() {
        // Applied before this process began: the newest revision is at least as new.
        *revision = Some(reach.revision);
        reach = admin.reach(reach.revision).await?;
    }
    let everywhere = reach.in_force_on >= reach.live;
    for one in &judged {
        let (conditions, more) = status(one, reach, revision.unwrap_or_default());
        if let Err(error) = kind.tell(&one.object, &conditions, &more).await {
            tracing::warn!(policy = one.object.name_any(), %error, "a status was not written");
        }
    }
    Ok(everywhere)
}

/// The policy's name in the set: unique over namespaces.
fn name_of(object: &DynamicObject) -> String {
    format!("{}.{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// The document as it is applied. JSON is YAML, and its keys are in one order.
fn document_of(object: &DynamicObject) -> String {
    let document = json!({
        "apiVersion": "atm.dev/v1",
        "kind": "TokenPolicy",
        "metadata": { "name": name_of(object), "labels": { MANAGED_BY: US } },
        "spec": object.data["spec"],
    });
    serde_norway::to_string(&document).unwrap_or_default()
}

/// Each resource's own document where it compiles beside those of others and those before it; else the version of it that is in
/// force.
fn judge(objects: Vec<DynamicObject>, current: &[String], foreign: &[String]) -> Vec<Judged> {
    let mut taken = foreign.to_vec();
    let mut judged = Vec::new();
    for object in objects {
        let own = document_of(&object);
        let mistake = check(&taken, &own);
        let document = if mistake.is_none() {
            Some(own)
        } else {
            let marker = name_of(&object);
            let last_good = current.iter().find(|document| is_named(document, &marker));
            last_good.filter(|document| check(&taken, document).is_none()).cloned()
        };
        taken.extend(document.clone());
        judged.push(Judged { object, document, mistake });
    }
    judged
}

/// What is wrong with `document` alone, or beside those that are taken already.
fn check(taken: &[String], document: &str) -> Option<(&'static str, String)> {
    let words = |errors: &[policy::PolicyError]| {
        let lines = errors
            .iter()
            .map(|error| format!("{}:{}: {}: {}", error.line, error.column, error.path, error.message));
        lines.collect::<Vec<_>>().join("; ")
    };
    let own = [document.to_owned()];
    if let Err(errors) = policy::compile(&own) {
        return Some(("Invalid", words(&errors)));
    }
    policy::compile(&[taken, &own].concat()).err().map(|errors| ("Conflict", words(&errors)))
}

fn is_named(document: &str, name: &str) -> bool {
    metadata(document)["name"] == name
}

fn is_ours(document: &str) -> bool {
    metadata(document)["labels"][MANAGED_BY] == US
}

fn metadata(document: &str) -> Value {
    let value: Option<Value> = serde_norway::from_str(document).ok();
    value.map(|value| value["metadata"].clone()).unwrap_or_default()
}

fn status(one: &Judged, reach: Reach, revision: u64) -> ([Condition; 2], Value) {
    let accepted = match &one.mistake {
        None => Condition {
            kind: "Accepted",
            holds: true,
            reason: "Accepted",
            message: "It is part of the set of policies.".to_owned(),
        },
        Some((reason, mistake)) => {
            let stays = if one.document.is_some() {
                "The version before it stays in force."
            } else {
                "Nothing of it is in force."
            };
            Condition { kind: "Accepted", holds: false, reason, message: format!("{mistake}. {stays}") }
        }
    };
    let count = format!("{} of {} validators", reach.in_force_on, reach.live);
    let holds = one.mistake.is_none() && reach.live > 0 && reach.in_force_on >= reach.live;
    let (reason, message) = match (&one.mistake, reach.live) {
        (Some(_), _) => ("NotAccepted", "It was not accepted.".to_owned()),
        (None, 0) => ("NoValidators", "No validator reports.".to_owned()),
        (None, _) if holds => ("InForce", format!("In force on {count}.")),
        (None, _) => ("OnItsWay", format!("In force on {count}.")),
    };
    let in_force = Condition { kind: "InForce", holds, reason, message };
    let more = json!({ "revision": revision, "inForceOn": reach.in_force_on, "validators": reach.live });
    ([accepted, in_force], more)
}

#[cfg(test)]
mod tests {
    use kube::api::ApiResource;
    use kube::core::GroupVersionKind;

    use super::*;

    fn resource(name: &str, spec: &Value) -> DynamicObject {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("atm.dev", "v1", "TokenPolicy"));
        DynamicObject::new(name, &kind).within("shop").data(json!({ "spec": spec }))
    }

    fn good(host: &str) -> Value {
        json!({ "audiences": ["a"], "rules": [{ "name": "all", "hosts": [host], "paths": ["/{rest...}"] }] })
    }

    #[test]
    fn a_bad_resource_keeps_its_last_good_version_and_displaces_no_other() {
        let before = document_of(&resource("orders", &good("orders.test")));
        assert!(check(&[], &before).is_none(), "{:?}", check(&[], &before));
        let objects = vec![
            resource("orders", &json!({ "rules": [{ "paths": ["no-slash"] }] })),
            resource("new-and-bad", &json!({ "rule": [] })),
            resource("billing", &good("billing.test")),
        ];
        let judged = judge(objects, std::slice::from_ref(&before), &[]);
        assert_eq!(judged[0].document.as_ref(), Some(&before));
        assert_eq!(judged[0].mistake.as_ref().unwrap().0, "Invalid");
        assert!(judged[1].document.is_none() && judged[1].mistake.is_some());
        assert!(judged[2].document.is_some() && judged[2].mistake.is_none(), "{:?}", judged[2].mistake);
    }

    #[test]
    fn what_others_have_applied_is_known_and_not_displaced() {
        let ours = document_of(&resource("orders", &good("orders.test")));
        let others = ours.replace(US, "somebody").replace("shop.orders", "shop.billing");
        assert!(is_ours(&ours) && !is_ours(&others), "{others}");
        let judged = judge(
            vec![resource("billing", &good("billing.test")), resource("orders", &good("orders.test"))],
            &[],
            std::slice::from_ref(&others),
        );
        // A second document of the name that another one has.
        assert_eq!(judged[0].mistake.as_ref().unwrap().0, "Conflict");
        assert!(judged[0].document.is_none());
    }

    #[test]
    fn a_status_counts_validators() {
        let one = judge(vec![resource("a", &good("a.test"))], &[], &[]).remove(0);
        let (conditions, more) = status(&one, Reach { revision: 7, live: 3, in_force_on: 2 }, 7);
        assert!(conditions[0].holds && !conditions[1].holds);
        assert_eq!(conditions[1].message, "In force on 2 of 3 validators.");
        assert_eq!(more, json!({ "revision": 7, "inForceOn": 2, "validators": 3 }));
        let (conditions, _) = status(&one, Reach { revision: 7, live: 0, in_force_on: 0 }, 7);
        assert_eq!(conditions[1].reason, "NoValidators");
    }
}
