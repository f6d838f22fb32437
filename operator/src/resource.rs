//! What both kinds of custom resource have in common: how they are watched, and how their status is told.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// API group and version of our resources.
pub const GROUP: &str = "atm.dev";
/// As above.
pub const VERSION: &str = "v1";
/// Keeps an object until what was made of it has ended.
const FINALIZER: &str = "atm.dev/operator";
/// Changes that come within this time are looked at together.
const QUIET: Duration = Duration::from_millis(200);

/// One kind of resource in all namespaces.
#[derive(Clone)]
pub struct Kind {
    client: Client,
    resource: ApiResource,
    recorder: Recorder,
}

/// Whether the object is being deleted.
pub fn is_leaving(object: &DynamicObject) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// A condition of a status, apart from its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `Accepted`, `InForce`.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// One word for programs, in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Kind {
    /// The kind `kind` of our group, with its plural.
    pub fn new(client: Client, kind: &str, plural: &str) -> Self {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind), plural);
        let reporter = Reporter { controller: "atm-operator".to_owned(), instance: None };
        Self { recorder: Recorder::new(client.clone(), reporter), client, resource }
    }

    /// All objects in the order of their creation, those that are being deleted among them.
    pub async fn list(&self) -> kube::Result<Vec<DynamicObject>> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &self.resource);
        let mut objects = api.list(&ListParams::default()).await?.items;
        objects.sort_by_key(|object| {
            (object.creation_timestamp().map(|time| time.0), object.namespace(), object.name_any())
        });
        Ok(objects)
    }

    /// Wakes `changed` at every change, until `stop`. A watch that breaks is begun again by itself.
    pub async fn watch(&self, changed: &Notify, stop: CancellationToken) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &self.resource);
        let events = watcher(api, watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => tracing::warn!(kind = self.resource.kind, %error, "the watch broke"),
            }
        }
    }

    /// Sees to it that the object stays until [`Self::release`] when it is deleted.
    pub async fn hold(&self, object: &DynamicObject) -> kube::Result<()> {
        if Self::holds(object) {
            return Ok(());
        }
        let all = object.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
        self.set_finalizers(object, all).await
    }

    /// Whether the object is held.
    pub fn holds(object: &DynamicObject) -> bool {
        object.finalizers().iter().any(|one| one == FINALIZER)
    }

    /// Lets the object go.
    pub async fn release(&self, object: &DynamicObject) -> kube::Result<()> {
        let others = object.finalizers().iter().map(String::as_str).filter(|one| *one != FINALIZER);
        self.set_finalizers(object, others.collect()).await
    }

    async fn set_finalizers(&self, object: &DynamicObject, finalizers: Vec<&str>) -> kube::Result<()> {
        // With the version, so that nobody else's finalizer is lost.
        let metadata = json!({ "finalizers": finalizers, "resourceVersion": object.resource_version() });
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        self.of(object).patch(&object.name_any(), &PatchParams::default(), &patch).await.map(drop)
    }

    fn of(&self, object: &DynamicObject) -> Api<DynamicObject> {
        let namespace = object.namespace().unwrap_or_default();
        Api::namespaced_with(self.client.clone(), &namespace, &self.resource)
    }

    /// Writes the status where it says something new, with an event where a condition has changed.
    pub async fn tell(
        &self,
        object: &DynamicObject,
        conditions: &[Condition],
        more: &Value,
    ) -> kube::Result<()> {
        let old = &object.data["status"];
        let mut changed = Vec::new();
        let written: Vec<Value> = conditions
            .iter()
            .map(|condition| {
                let before =
                    old["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == condition.kind);
                write(condition, object, before, &mut changed)
            })
            .collect();
        let mut status = json!({ "observedGeneration": object.metadata.generation, "conditions": written });
        for (key, value) in more.as_object().into_iter().flatten() {
            status[key] = value.clone();
        }
        if &status == old {
            return Ok(());
        }
        let patch = json!({ "status": status });
        self.of(object)
            .patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        for condition in changed {
            self.event(object, condition).await;
        }
        Ok(())
    }

    async fn event(&self, object: &DynamicObject, condition: &Condition) {
        let event = Event {
            type_: if condition.holds { EventType::Normal } else { EventType::Warning },
            reason: condition.reason.to_owned(),
            note: Some(condition.message.chars().take(1_000).collect()),
            action: condition.kind.to_owned(),
            secondary: None,
        };
        let reference: ObjectReference = object.object_ref(&self.resource);
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!(%error, "an event was not recorded"); // the status says the same
        }
    }
}

fn write<'c>(
    condition: &'c Condition,
    object: &DynamicObject,
    before: Option<&Value>,
    changed: &mut Vec<&'c Condition>,
) -> Value {
    let status = if condition.holds { "True" } else { "False" };
    let same =
        before.is_some_and(|before| before["status"] == status && before["reason"] == condition.reason);
    if !same {
        changed.push(condition);
    }
    let since =
        before.filter(|before| before["status"] == status).map(|before| before["lastTransitionTime"].clone());
    json!({
        "type": condition.kind,
        "status": status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": object.metadata.generation,
        "lastTransitionTime": since.unwrap_or_else(|| jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()),
    })
}

/// Waits for a change, for `at_most` otherwise; false when `stop` came.
pub async fn next_round(changed: &Notify, at_most: Duration, stop: &CancellationToken) -> bool {
    let waited = async {
        let _ = tokio::time::timeout(at_most, changed.notified()).await;
        tokio::time::sleep(QUIET).await;
    };
    stop.run_until_cancelled(waited).await.is_some()
}
