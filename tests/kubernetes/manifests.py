"""Kubernetes objects as the chart and the examples give them: strict validation, and what no schema can tell."""

import functools
import json
import pathlib

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

HERE = pathlib.Path(__file__).resolve().parent
SCHEMAS = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
# The oldest version that the chart takes, and the newest that there are schemas for.
VERSIONS = ("1.30", "1.37")


@functools.cache
def _registry(folder):
    definitions = json.loads((SCHEMAS / folder / "_definitions.json").read_text())
    return Registry().with_resource("_definitions.json", Resource.from_contents(definitions)), definitions


@functools.cache
def _builtin(version, kind, api_version):
    """The strict validator of a built-in kind, or None for a custom resource."""
    group, _, name = api_version.rpartition("/")
    api = "-".join(part for part in (group.split(".")[0], name) if part)
    (folder,) = [p.name for p in SCHEMAS.glob(f"v{version}.*-local-strict")]
    file = SCHEMAS / folder / f"{kind.lower()}-{api}.json"
    if not file.exists():
        return None
    registry, definitions = _registry(folder)
    schema = json.loads(file.read_text())
    registry = Resource.from_contents(schema) @ (Resource.from_contents(definitions) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.cache
def _custom(kind, api_version):
    """The validator of a custom resource: a schema of ours in `schemas/`."""
    file = HERE / "schemas" / f"{api_version.replace('/', '_')}_{kind}.json"
    if not file.exists():
        return None
    schema = json.loads(file.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def mistakes(document):
    """What is wrong with one object, for every Kubernetes version, as lines of text."""
    where = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
    found = []
    for version in VERSIONS:
        validator = _builtin(version, document["kind"], document["apiVersion"])
        if validator is None:
            validator = _custom(document["kind"], document["apiVersion"])
            if validator is None:
                return [f"{where}: no schema for {document['apiVersion']} {document['kind']}; add one to tests/kubernetes/schemas"]
        for error in validator.iter_errors(document):
            found.append(f"{where} (Kubernetes {version}): {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}")
    return found


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, as it is for Kubernetes' strict decoding."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} occurs twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load(text):
    """The documents of a YAML stream, without the empty ones."""
    return [document for document in yaml.load_all(text, StrictLoader) if document]


WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


def pods(objects):
    """(owner, pod template) of everything that makes pods."""
    for document in objects:
        if document["kind"] in WORKLOADS:
            yield document, document["spec"]["template"]
        elif document["kind"] == "Pod":
            yield document, document


def inconsistencies(objects, given):
    """
    What holds between objects: selectors find pods, ports have names, everything that is referred to exists or is in
    `given` (names of Secrets that the operator brings). And the house rules for containers.
    """
    found = []
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    if len({(o["kind"], o["metadata"]["name"], o["metadata"].get("namespace")) for o in objects}) != len(objects):
        found.append("two objects of one kind have one name")
    templates = list(pods(objects))
    for owner, pod in templates:
        found += _pod(owner, pod, names, given)
    for document in objects:
        where = f"{document['kind']}/{document['metadata']['name']}"
        spec = document.get("spec", {})
        selector = _selector(document)
        matching = [pod for _, pod in templates if selector is not None and _matches(selector, pod["metadata"].get("labels", {}))]
        if selector is not None and not matching:
            found.append(f"{where}: its selector finds no pod of this release")
        ports = {p["name"] for pod in matching for c in pod["spec"]["containers"] for p in c.get("ports", [])}
        wanted = []
        if document["kind"] == "Service":
            wanted = [p["targetPort"] for p in spec["ports"]]
        if document["kind"] == "NetworkPolicy":
            wanted = [p["port"] for rule in spec.get("ingress", []) for p in rule.get("ports", [])]
        if document["kind"] == "PodMonitor" and matching:
            wanted = [e["port"] for e in spec["podMetricsEndpoints"]]
        for port in wanted:
            if port not in ports:
                found.append(f"{where}: no container has a port named {port}")
        target = spec.get("scaleTargetRef")
        if target and (target["kind"], target["name"]) not in names:
            found.append(f"{where}: scales {target['kind']}/{target['name']}, which is not there")
        if document["kind"] == "StatefulSet" and ("Service", spec["serviceName"]) not in names:
            found.append(f"{where}: serviceName names no Service")
    return found


def _selector(document):
    spec = document.get("spec", {})
    if document["kind"] == "Service":
        return {"matchLabels": spec.get("selector", {})}
    if document["kind"] == "NetworkPolicy":
        return spec["podSelector"]
    if document["kind"] in (*WORKLOADS, "PodDisruptionBudget"):
        return spec["selector"]
    if document["kind"] == "PodMonitor" and "namespaceSelector" not in spec:
        return spec["selector"]
    return None


def _matches(selector, labels):
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []) if e["operator"] == "In")


def _pod(owner, pod, names, given):
    where = f"{owner['kind']}/{owner['metadata']['name']}"
    found = []
    spec = pod["spec"]
    if spec.get("automountServiceAccountToken") is not False and spec.get("serviceAccountName") is None:
        found.append(f"{where}: mounts the token of a service account that it does not use")
    account = spec.get("serviceAccountName", "default")
    if account != "default" and ("ServiceAccount", account) not in names and account not in given:
        found.append(f"{where}: the service account {account} is neither made nor given")
    volumes = {v["name"]: v for v in spec.get("volumes", [])}
    claims = {c["metadata"]["name"] for c in owner["spec"].get("volumeClaimTemplates", [])} if owner["kind"] == "StatefulSet" else set()
    for volume in volumes.values():
        for kind, key, source in (("Secret", "secretName", "secret"), ("ConfigMap", "name", "configMap")):
            if source in volume and (kind, volume[source][key]) not in names and volume[source][key] not in given:
                found.append(f"{where}: volume {volume['name']}: {kind} {volume[source][key]} is neither made nor given")
    used = set()
    for container in spec["containers"] + spec.get("initContainers", []):
        at = f"{where}: container {container['name']}"
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False or security.get("readOnlyRootFilesystem") is not True:
            found.append(f"{at}: may gain privileges or write to its image")
        if security.get("capabilities", {}).get("drop") != ["ALL"]:
            found.append(f"{at}: keeps capabilities")
        root = security.get("runAsUser", spec.get("securityContext", {}).get("runAsUser")) == 0
        if root and container["name"] != "prepare-directories":
            found.append(f"{at}: runs as root")
        if "memory" not in container.get("resources", {}).get("limits", {}) or "cpu" not in container["resources"].get("requests", {}):
            found.append(f"{at}: has no memory limit or no CPU request")
        for mount in container.get("volumeMounts", []):
            used.add(mount["name"])
            if mount["name"] not in volumes and mount["name"] not in claims:
                found.append(f"{at}: mounts {mount['name']}, which is no volume")
    for name in set(volumes) - used:
        found.append(f"{where}: volume {name} is mounted by nobody")
    if spec.get("securityContext", {}).get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append(f"{where}: no seccomp profile")
    return found
