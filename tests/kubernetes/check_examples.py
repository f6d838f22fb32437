"""
Checks the Kubernetes objects of examples/ strictly, and writes what they would make Envoy run, for Envoy to validate:

    .tools/python/bin/python tests/kubernetes/check_examples.py examples OUT
"""

import json
import pathlib
import sys

import jsonschema
import yaml

import manifests

FOLDERS = ("envoy-gateway", "istio", "contour", "kubernetes")
# Files for other programs' charts, with what they must hold.
VALUES = {
    "istio/mesh-config.yaml": {
        "type": "object", "additionalProperties": False, "required": ["meshConfig"],
        "properties": {"meshConfig": {"type": "object", "additionalProperties": False, "properties": {"extensionProviders": {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["name", "envoyExtAuthzGrpc"], "properties": {
                "name": {"type": "string"},
                "envoyExtAuthzGrpc": {
                    "type": "object", "additionalProperties": False, "required": ["service", "port", "failOpen", "statusOnError"], "properties": {
                        "service": {"type": "string"}, "port": {"type": "integer"}, "timeout": {"type": "string"},
                        "failOpen": {"const": False}, "statusOnError": {"type": "string", "pattern": "^[45][0-9][0-9]$"}}}}}}}}},
    },
}


def envoy_of(envoy_filter):
    """A whole Envoy configuration with the patches of an EnvoyFilter in it."""
    patches = {p["applyTo"]: p["patch"]["value"] for p in envoy_filter["spec"]["configPatches"]}
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inbound",
        "http_filters": [patches["HTTP_FILTER"], router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 204}}]}]},
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"name": "inbound", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}, "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [patches["CLUSTER"]]}}


def main():
    examples, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    wrong, count = [], 0
    for folder in FOLDERS:
        for file in sorted((examples / folder).glob("*.yaml")):
            name = f"{folder}/{file.name}"
            documents = manifests.load(file.read_text())
            if name in VALUES:
                wrong += [f"{name}: {e.message}" for e in jsonschema.Draft202012Validator(VALUES[name]).iter_errors(documents[0])]
                count += 1
                continue
            for document in documents:
                wrong += [f"{name}: {mistake}" for mistake in manifests.mistakes(document)]
                count += 1
                if document["kind"] == "EnvoyFilter":
                    (out / f"{folder}-{file.stem}.json").write_text(json.dumps(envoy_of(document)))
    workflow = yaml.safe_load((examples / "gitops/.github/workflows/ci.yaml").read_text())
    for job in workflow["jobs"].values():
        wrong += ["gitops: a job has a step that neither uses nor runs" for step in job["steps"] if not ({"uses", "run"} & set(step))]
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    (out / "gitops-commands.json").write_text(json.dumps(commands))
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{count} documents are right")


if __name__ == "__main__":
    main()
