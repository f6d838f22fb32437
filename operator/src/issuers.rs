//! `TrustedIssuer` resources are the control plane's trusted issuers. An issuer that was registered by other means is left alone;
//! one whose resource goes is removed, which ends its tokens; the resource stays until that is done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::api::DynamicObject;
use kube::{Client, ResourceExt};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::admin_api::{AdminApi, AdminError};
use crate::health::Health;
use crate::resource::{Condition, Kind, is_leaving, next_round};

const RECHECK: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(2);

/// The resource's keys and the API's.
const KEYS: [(&str, &str); 7] = [
    ("issuer", "issuer"),
    ("jwksUri", "jwks_uri"),
    ("jwks", "jwks"),
    ("algorithms", "algorithms"),
    ("tokenTypes", "token_types"),
    ("allowPrivateAddresses", "allow_private_addresses"),
    ("caCertificate", "ca_certificate"),
];

/// Keeps the registered issuers equal to the resources, until `stop`.
pub async fn run(client: Client, admin: AdminApi, health: Arc<Health>, stop: CancellationToken) {
    let kind = Kind::new(client, "TrustedIssuer", "trustedissuers");
    let changed = Arc::new(Notify::new());
    let watching = tokio::spawn({
        let (kind, changed, stop) = (kind.clone(), Arc::clone(&changed), stop.clone());
        async move { kind.watch(&changed, stop).await }
    });
    loop {
        let round = round(&kind, &admin).await;
        health.issuers(round.is_ok());
        let pause = match round {
            Ok(true) => RECHECK,
            Ok(false) => AGAIN,
            Err(error) => {
                tracing::warn!(%error, "issuers were not compared with the control plane's; trying again");
                AGAIN
            }
        };
        if !next_round(&changed, pause, &stop).await {
            break;
        }
    }
    let _ = watching.await; // it ends with `stop`, too
}

/// One comparison. True when every resource's issuer is trusted.
async fn round(kind: &Kind, admin: &AdminApi) -> anyhow::Result<bool> {
    let (leaving, mut objects): (Vec<_>, Vec<_>) = kind.list().await?.into_iter().partition(is_leaving);
    // Who has an issuer keeps it: a resource made within the same second would be the elder by its name alone.
    objects.sort_by_key(|object| !Kind::holds(object));
    let registered = admin.issuers().await?;
    let mut wanted = BTreeSet::new();
    let mut all_trusted = true;
    for object in &objects {
        let settings = settings_of(object);
        let name = settings["issuer"].as_str().unwrap_or_default().to_owned();
        let condition = if wanted.insert(name.clone()) {
            kind.hold(object).await?;
            reconcile(admin, &settings, find(&registered, &name)).await?
        } else {
            refused("Conflict", "Another resource names this issuer.")
        };
        all_trusted &= condition.holds;
        if let Err(error) = kind.tell(object, &[condition], &json!({})).await {
            tracing::warn!(issuer = object.name_any(), %error, "a status was not written");
        }
    }
    // One that was in conflict is not held, and had no part in it.
    for object in leaving.iter().filter(|object| Kind::holds(object)) {
        let name = object.data["spec"]["issuer"].as_str().unwrap_or_default();
        let registered = find(&registered, name).filter(|_| !wanted.contains(name));
        if let Some(id) = registered.and_then(|one| one["id"].as_str()) {
            admin.remove_issuer(id).await?;
            tracing::info!(issuer = name, "the trust in an issuer has ended with its resource");
        }
        kind.release(object).await?;
    }
    Ok(all_trusted)
}

fn find<'v>(registered: &'v [Value], issuer: &str) -> Option<&'v Value> {
    registered.iter().find(|one| one["issuer"] == issuer)
}

/// Registers what is missing, replaces what differs, and says how it stands.
async fn reconcile(
    admin: &AdminApi,
    settings: &Value,
    found: Option<&Value>,
) -> Result<Condition, AdminError> {
    if let Some(found) = found {
        if differs(settings, found) {
            if let Some(id) = found["id"].as_str() {
                admin.remove_issuer(id).await?;
            }
        } else if found["status"] == "trusted" {
            let keys = found["keys"].as_u64().unwrap_or_default();
            let message = format!("Trusted with {keys} keys.");
            return Ok(Condition { kind: "Accepted", holds: true, reason: "Trusted", message });
        } else {
            let why = found["last_error"].as_str().unwrap_or("its keys have not been fetched yet");
            return Ok(refused("Unreachable", why));
        }
    }
    match admin.add_issuer(settings).await {
        Ok(()) => Ok(refused("Registered", "Registered; its keys are being fetched.")),
        Err(AdminError::Refused { status, problem }) if status.is_client_error() => {
            Ok(refused("Invalid", &problem))
        }
        Err(error) => Err(error),
    }
}

fn refused(reason: &'static str, message: &str) -> Condition {
    Condition { kind: "Accepted", holds: false, reason, message: message.to_owned() }
}

/// The spec under the API's keys.
fn settings_of(object: &DynamicObject) -> Value {
    let spec = &object.data["spec"];
    let given =
        KEYS.iter().filter_map(|(ours, theirs)| Some(((*theirs).to_owned(), spec.get(*ours)?.clone())));
    Value::Object(given.collect::<Map<_, _>>())
}

/// Whether a registered issuer has other settings. What is left out is the default: nothing, an empty list or false.
fn differs(settings: &Value, found: &Value) -> bool {
    let meant = |value: Option<&Value>| match value {
        None | Some(Value::Null | Value::Bool(false)) => Value::Null,
        Some(Value::Array(list)) if list.is_empty() => Value::Null,
        Some(value) => value.clone(),
    };
    KEYS.iter().any(|(_, key)| meant(settings.get(*key)) != meant(found.get(*key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_no_difference() {
        let settings = json!({ "issuer": "https://a.test", "token_types": ["JWT"] });
        let found = json!({ "id": "1", "issuer": "https://a.test", "algorithms": [], "token_types": ["JWT"], "allow_private_addresses": false });
        assert!(!differs(&settings, &found));
        assert!(differs(&settings, &json!({ "issuer": "https://a.test", "token_types": [] })));
    }
}
