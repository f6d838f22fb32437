//! What becomes of a pod: a validator beside its containers, its socket in each of them, and its configuration in an
//! annotation that the pod itself shows the validator as a file. No ConfigMap in the pod's namespace is needed.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The injected container's name.
pub const CONTAINER: &str = "atm-validator";
/// The volume with the socket.
pub const SOCKET_VOLUME: &str = "atm-socket";
/// The annotation that holds the configuration.
pub const CONFIG_ANNOTATION: &str = "atm.dev/sidecar-config";
/// The label that is put on injected pods.
pub const INJECTED: &str = "atm.dev/injected";
/// The label by which a pod asks for a sidecar (`enabled`) or refuses it (`disabled`).
pub const INJECT: &str = "atm.dev/inject";
/// Where the socket's directory is mounted.
const SOCKET_DIRECTORY: &str = "/run/atm";

/// What is injected, from a file that the chart makes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// A container as of Kubernetes' API; its name is [`CONTAINER`].
    pub container: Map<String, Value>,
    /// Volumes as of Kubernetes' API; one of them is [`SOCKET_VOLUME`].
    pub volumes: Vec<Value>,
    /// The sidecar's configuration.
    pub config: Value,
}

/// Why a pod cannot be injected as it asks: one line for whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongPod(String);

impl Template {
    /// Reads the file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| anyhow::anyhow!("webhook.templateFile: {}: {error}", path.display()))?;
        let template: Self = serde_norway::from_str(&text)
            .map_err(|error| anyhow::anyhow!("webhook.templateFile: {}: {error}", path.display()))?;
        if template.container.get("name") != Some(&json!(CONTAINER)) {
            anyhow::bail!("webhook.templateFile: container.name must be {CONTAINER}");
        }
        if !template.volumes.iter().any(|volume| volume["name"] == SOCKET_VOLUME) {
            anyhow::bail!("webhook.templateFile: volumes lack {SOCKET_VOLUME}");
        }
        Ok(template)
    }

    /// The pod with a sidecar; none where it has one already or does not want one.
    pub fn inject(&self, pod: &Value) -> Result<Option<Value>, WrongPod> {
        if pod["metadata"]["labels"][INJECT] == "disabled" || has_sidecar(pod) {
            return Ok(None);
        }
        let wishes = Wishes::read(pod)?;
        let mut pod = pod.clone();
        let config = serde_norway::to_string(&wishes.config(&self.config))
            .map_err(|error| WrongPod(format!("the configuration cannot be written: {error}")))?;
        set(&mut pod, "annotations", CONFIG_ANNOTATION, config);
        set(&mut pod, "labels", INJECTED, "true".to_owned());
        self.add_volumes(&mut pod)?;
        mount_socket(&mut pod, wishes.mount.as_deref())?;
        // First of the init containers and with a restart policy: a native sidecar. It is there before the others begin, and
        // ends after Envoy has.
        let container = Value::Object(wishes.container(&self.container));
        list(&mut pod["spec"], "initContainers").insert(0, container);
        Ok(Some(pod))
    }

    fn add_volumes(&self, pod: &mut Value) -> Result<(), WrongPod> {
        let volumes = list(&mut pod["spec"], "volumes");
        for volume in &self.volumes {
            if volumes.iter().any(|there| there["name"] == volume["name"]) {
                let name = volume["name"].as_str().unwrap_or_default();
                return Err(WrongPod(format!(
                    "the pod has a volume {name} of its own; give it another name"
                )));
            }
            volumes.push(volume.clone());
        }
        Ok(())
    }
}

fn has_sidecar(pod: &Value) -> bool {
    let named = |key: &str| pod["spec"][key].as_array().into_iter().flatten().any(|c| c["name"] == CONTAINER);
    named("initContainers") || named("containers")
}

fn set(pod: &mut Value, section: &str, key: &str, value: String) {
    if !pod["metadata"][section].is_object() {
        pod["metadata"][section] = json!({});
    }
    pod["metadata"][section][key] = value.into();
}

fn list<'v>(parent: &'v mut Value, key: &str) -> &'v mut Vec<Value> {
    if !parent[key].is_array() {
        parent[key] = json!([]);
    }
    #[expect(clippy::expect_used, reason = "it is an array since the line above")]
    parent[key].as_array_mut().expect("an array")
}

/// Mounts the socket's directory into the containers that are named, or into all.
fn mount_socket(pod: &mut Value, names: Option<&[String]>) -> Result<(), WrongPod> {
    let containers = list(&mut pod["spec"], "containers");
    for name in names.unwrap_or_default() {
        if !containers.iter().any(|container| container["name"] == name.as_str()) {
            return Err(WrongPod(format!("atm.dev/mount: the pod has no container {name}")));
        }
    }
    for container in containers {
        let name = container["name"].as_str().unwrap_or_default();
        if names.is_none_or(|names| names.iter().any(|wanted| wanted == name)) {
            let mount = json!({ "name": SOCKET_VOLUME, "mountPath": SOCKET_DIRECTORY, "readOnly": true });
            list(container, "volumeMounts").push(mount);
        }
    }
    Ok(())
}

/// What a pod's annotations ask for.
#[derive(Debug, Default)]
struct Wishes {
    /// `atm.dev/image`.
    image: Option<String>,
    /// `atm.dev/cpu-request`, `atm.dev/memory-request`, `atm.dev/memory-limit`.
    resources: Vec<(&'static str, &'static str, String)>,
    /// `atm.dev/mount`: containers that get the socket, with commas.
    mount: Option<Vec<String>>,
    /// `atm.dev/config`: YAML over the template's configuration.
    config: Value,
}

impl Wishes {
    fn read(pod: &Value) -> Result<Self, WrongPod> {
        let mut wishes = Self::default();
        for (key, value) in pod["metadata"]["annotations"].as_object().into_iter().flatten() {
            let (Some(wish), Some(value)) = (key.strip_prefix("atm.dev/"), value.as_str()) else { continue };
            match wish {
                "image" => wishes.image = Some(value.to_owned()),
                "cpu-request" => wishes.resources.push(("requests", "cpu", quantity(key, value)?)),
                "memory-request" => wishes.resources.push(("requests", "memory", quantity(key, value)?)),
                "memory-limit" => wishes.resources.push(("limits", "memory", quantity(key, value)?)),
                "mount" => wishes.mount = Some(value.split(',').map(|name| name.trim().to_owned()).collect()),
                "config" => {
                    wishes.config =
                        serde_norway::from_str(value).ok().filter(Value::is_object).ok_or_else(|| {
                            WrongPod(format!("{key}: must be a YAML mapping of the sidecar's keys"))
                        })?;
                }
                // Ours, of an earlier injection or of other parts.
                "sidecar-config" => {}
                _ => {
                    return Err(WrongPod(format!(
                        "{key}: is no annotation of ours; there are image, cpu-request, memory-request, memory-limit, mount and config"
                    )));
                }
            }
        }
        Ok(wishes)
    }

    fn container(&self, template: &Map<String, Value>) -> Map<String, Value> {
        let mut container = Value::Object(template.clone());
        if let Some(image) = &self.image {
            container["image"] = image.clone().into();
        }
        for (section, resource, quantity) in &self.resources {
            container["resources"][*section][*resource] = quantity.clone().into();
        }
        match container {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn config(&self, template: &Value) -> Value {
        let mut config = template.clone();
        merge(&mut config, &self.config);
        config
    }
}

fn quantity(key: &str, value: &str) -> Result<String, WrongPod> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &value[digits.len()..];
    let known = ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"].contains(&unit);
    if known && digits.parse::<f64>().is_ok_and(|number| number > 0.0) {
        Ok(value.to_owned())
    } else {
        Err(WrongPod(format!("{key}: must be a quantity, as in 100m or 256Mi")))
    }
}

fn merge(target: &mut Value, over: &Value) {
    match (target, over) {
        (_, Value::Null) => {}
        (Value::Object(target), Value::Object(over)) => {
            for (key, value) in over {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (target, over) => *target = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        serde_json::from_value(json!({
            "container": {
                "name": CONTAINER, "image": "atm/sidecar:1", "restartPolicy": "Always",
                "resources": { "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "memory": "256Mi" } },
            },
            "volumes": [{ "name": SOCKET_VOLUME, "emptyDir": {} }],
            "config": { "realmGroup": "default", "cache": { "verifiedTokensMiB": 16 } },
        }))
        .unwrap()
    }

    fn pod(annotations: &Value) -> Value {
        json!({
            "metadata": { "name": "orders", "annotations": annotations },
            "spec": { "containers": [{ "name": "orders" }, { "name": "envoy" }], "initContainers": [{ "name": "first" }] },
        })
    }

    #[test]
    fn a_sidecar_comes_first_and_its_socket_is_mounted() {
        let pod = template().inject(&pod(&json!({}))).unwrap().expect("injected");
        assert_eq!(pod["spec"]["initContainers"][0]["name"], CONTAINER);
        assert_eq!(pod["spec"]["initContainers"][1]["name"], "first");
        for container in pod["spec"]["containers"].as_array().unwrap() {
            assert_eq!(container["volumeMounts"][0]["mountPath"], "/run/atm");
        }
        assert_eq!(pod["metadata"]["labels"][INJECTED], "true");
        assert!(pod["metadata"]["annotations"][CONFIG_ANNOTATION].as_str().unwrap().contains("realmGroup"));
        assert_eq!(template().inject(&pod), Ok(None), "a second time nothing is left to do");
    }

    #[test]
    fn annotations_override() {
        let wishes = json!({
            "atm.dev/image": "other:2", "atm.dev/memory-limit": "1Gi", "atm.dev/mount": "envoy",
            "atm.dev/config": "cache: {verifiedTokensMiB: 64}\nlog: {level: debug}",
        });
        let pod = template().inject(&pod(&wishes)).unwrap().expect("injected");
        let sidecar = &pod["spec"]["initContainers"][0];
        assert_eq!(sidecar["image"], "other:2");
        assert_eq!(sidecar["resources"]["limits"]["memory"], "1Gi");
        assert_eq!(sidecar["resources"]["requests"]["cpu"], "50m");
        assert!(pod["spec"]["containers"][0].get("volumeMounts").is_none());
        let config: Value =
            serde_norway::from_str(pod["metadata"]["annotations"][CONFIG_ANNOTATION].as_str().unwrap())
                .unwrap();
        assert_eq!(config["cache"]["verifiedTokensMiB"], 64);
        assert_eq!((&config["realmGroup"], &config["log"]["level"]), (&json!("default"), &json!("debug")));
    }

    #[test]
    fn wrong_wishes_name_themselves() {
        for (key, value) in [
            ("atm.dev/cpu-request", "much"),
            ("atm.dev/memory-limit", "-1Gi"),
            ("atm.dev/mount", "nobody"),
            ("atm.dev/config", "- a list"),
            ("atm.dev/imgae", "x"),
        ] {
            let error = template().inject(&pod(&json!({ key: value }))).unwrap_err();
            let said = error.to_string();
            assert!(said.starts_with(key), "{said}");
        }
        let mut taken = pod(&json!({}));
        taken["spec"]["volumes"] = json!([{ "name": SOCKET_VOLUME }]);
        assert!(template().inject(&taken).unwrap_err().to_string().contains(SOCKET_VOLUME));
    }

    #[test]
    fn who_does_not_want_one_gets_none() {
        let mut pod = pod(&json!({ "atm.dev/mount": "nobody" }));
        pod["metadata"]["labels"] = json!({ INJECT: "disabled" });
        assert_eq!(template().inject(&pod), Ok(None));
    }
}
