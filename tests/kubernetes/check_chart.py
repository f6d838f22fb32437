"""
Renders the chart with Helm's own library over a matrix of values, checks every object strictly, and lays the files that
each container would see under OUT/<variant>/<workload>/<container>/, so that the real programs can check them.

    .tools/python/bin/python tests/kubernetes/check_chart.py helm/atm OUT [VARIANT]

With VARIANT only that one is rendered, and no values that must be refused are tried.
"""

import base64
import itertools
import json
import pathlib
import sys

import helm_python as helm
import yaml

import manifests

ISSUER = "https://id.example.com"
FEED_KEY = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w"  # RFC 8032's first test key's public half fits the form; any would
CALLOUT_KEY = "ADLVVGABQKYQVN6VJP7NHSLEA45A5YLS6PNKMIZFV4BBU2HXA5IRVRTU"  # the same key as an nkey of an account
DIGEST = "sha256:" + "a" * 64


def matrix():
    """(name, values, Secrets that are given): the variants that people run, and pairs of what can be turned on."""
    yield "smallest", {"issuer": ISSUER}, []
    yield "production", {
        "issuer": "https://id.example.com/tenants/a",
        "secrets": {"existingSecret": "atm-secrets"},
        "feedKeys": [FEED_KEY],
        "image": {"registry": "registry.example.com/atm", "tag": "1.2.3", "pullSecrets": [{"name": "registry"}]},
        "controlPlane": {
            "store": {"type": "postgresql", "postgresql": {"url": "postgres://atm@pg:5432/atm", "existingSecret": "pg", "key": "pw", "caSecret": "pg-ca"}},
            "autoscaling": {"enabled": True},
            "image": {"digest": DIGEST},
            "oauth": {"tlsSecret": "oauth-tls", "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "id-tls"}},
            "config": {"tokens": {"lifetimeSeconds": 120}, "log": {"level": "warn"}},
            "priorityClassName": "high",
        },
        "nats": {"bundled": {"replicas": 3}},
        "node": {"enabled": True, "config": {"cache": {"verifiedTokensMiB": 64}}},
        "gateway": {"autoscaling": {"enabled": True}, "config": {"freshness": {"staleAfterMs": 30000}}},
        "monitoring": {"enabled": True, "labels": {"release": "prometheus"}, "dashboards": {"enabled": True, "namespace": "grafana"}},
        "networkPolicy": {"checkFrom": [{"namespaceSelector": {"matchLabels": {"gateway": "true"}}}], "oauthFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    }, ["atm-secrets", "pg", "pg-ca", "oauth-tls"]
    yield "existing-nats", {
        "issuer": ISSUER,
        "controlPlane": {
            "admin": {"tls": {"mode": "certManager", "certManager": {"name": "internal"}}},
            "oauth": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public", "namespace": "gateways"}]}},
        },
        "nats": {
            "url": "tls://nats-a:4222,tls://nats-b:4222",
            "bundled": {"enabled": False},
            "credentials": {"controlPlane": {"existingSecret": "nats-cp"}, "validator": {"existingSecret": "nats-v"}},
        },
        "node": {"enabled": True, "stateDirectory": "", "tolerations": [], "nodeSelector": {"pool": "apps"}},
        "gateway": {"enabled": False},
    }, ["nats-cp", "nats-v", "prod-atm-admin-tls"]
    yield "validators-only", {
        "controlPlane": {"enabled": False},
        "feedKeys": [FEED_KEY],
        "nats": {"url": "nats://leaf:4222", "bundled": {"enabled": False}},
        "gateway": {"http": {"enabled": False}, "service": {"headless": False, "annotations": {"a": "b"}}, "replicas": 1},
        "commonLabels": {"team": "identity"},
        "commonAnnotations": {"owner": "identity@example.com"},
    }, []
    yield "own-certificate", {
        "issuer": ISSUER,
        "fullnameOverride": "tokens",
        "controlPlane": {"admin": {"tls": {"mode": "secret", "secretName": "admin-tls"}}, "env": [{"name": "ATM_LOG__LEVEL", "value": "debug"}]},
        "networkPolicy": {"enabled": False},
        "podSecurity": {"runAsUser": 1000, "runAsGroup": 1000},
    }, ["admin-tls"]
    yield "operator", {
        "issuer": ISSUER,
        "operator": {"enabled": True, "injection": {"namespaces": ["shop", "billing"], "config": {"cache": {"verifiedTokensMiB": 8}}}},
        "gateway": {"enabled": False},
        "monitoring": {"enabled": True, "injectedNamespaces": ["shop"]},
    }, ["prod-atm-validator"]
    yield "operator-without-injection", {
        "issuer": ISSUER,
        "controlPlane": {"admin": {"tls": {"mode": "secret", "secretName": "tls"}}},
        "operator": {"enabled": True, "replicas": 1, "injection": {"enabled": False}},
        "nats": {"url": "nats://n:4222", "bundled": {"enabled": False}},
    }, ["tls"]
    yield "token-logins", {
        "issuer": ISSUER,
        "nats": {"authCallout": {"enabled": True, "serviceAccounts": ["batch/orders"], "lifetimeSeconds": 300}},
        "node": {"enabled": True},
        "operator": {"enabled": True, "injection": {"namespaces": ["shop"]}},
    }, []
    yield "token-logins-beside-the-password", {
        "issuer": ISSUER,
        "nats": {"bundled": {"replicas": 3}, "authCallout": {"enabled": True, "keepPassword": True}},
        "operator": {"enabled": True, "injection": {"namespaces": ["shop"]}},
    }, []
    yield "token-logins-at-existing-nats", {
        "issuer": ISSUER,
        "controlPlane": {"admin": {"tls": {"mode": "secret", "secretName": "tls"}}},
        "nats": {
            "url": "tls://nats:4222",
            "bundled": {"enabled": False},
            "credentials": {"controlPlane": {"existingSecret": "nats-cp"}},
            "authCallout": {"enabled": True, "account": "TOKENS", "existingSecret": "callout", "publicKey": CALLOUT_KEY},
        },
    }, ["nats-cp", "callout", "tls"]
    for name, values in regions().items():
        yield f"region-{name}", values, ["atm-secrets", "atm-postgresql", "atm-postgresql-ca", "id-tls", "nats-control-plane", "nats-validator"]
    choices = {
        "store": [{"controlPlane": {"store": {"type": "embedded"}}}, {"controlPlane": {"store": {"type": "postgresql", "postgresql": {"url": "postgres://atm@pg/atm"}}}}],
        "nats": [{}, {"nats": {"bundled": {"replicas": 3}}}, {"nats": {"url": "nats://n:4222", "bundled": {"enabled": False}}}],
        "node": [{}, {"node": {"enabled": True}}],
        "gateway": [{}, {"gateway": {"enabled": False}}],
        "monitoring": [{}, {"monitoring": {"enabled": True}}],
        "policies": [{}, {"networkPolicy": {"enabled": False}}],
    }
    for number, combination in enumerate(pairwise(list(choices.values()))):
        # Not generated: a key pair of RSA for each variant is what would take the time.
        values = {"issuer": ISSUER, "controlPlane": {"admin": {"tls": {"mode": "secret", "secretName": "tls"}}}}
        for part in combination:
            values = merged(values, part)
        yield f"pair-{number}", values, ["pg", "tls"]


def regions():
    """The values of examples/regions, by region."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "examples" / "regions"
    return {file.stem: yaml.load(file.read_text(), manifests.StrictLoader) for file in sorted(folder.glob("*.yaml"))}


def disagreements():
    """What all regions of one installation must have in common."""
    values = regions()
    found = [] if len(values) >= 3 else [f"examples/regions has {sorted(values)}"]
    for key in ("feedKeys", "realmGroup"):
        if len({json.dumps(one[key]) for one in values.values()}) != 1:
            found.append(f"examples/regions: {key} differs between regions")
    hubs = [name for name, one in values.items() if one.get("controlPlane", {}).get("enabled", True)]
    return found if len(hubs) == 1 else [*found, f"examples/regions: control planes in {hubs}"]


def pairwise(choices):
    """Combinations in which every pair of two choices occurs, found greedily."""
    open_pairs = {
        ((i, a), (j, b))
        for (i, x), (j, y) in itertools.combinations(enumerate(choices), 2)
        for a in range(len(x))
        for b in range(len(y))
    }
    while open_pairs:
        best = max(
            itertools.product(*(range(len(x)) for x in choices)),
            key=lambda row: len(open_pairs & set(itertools.combinations(enumerate(row), 2))),
        )
        open_pairs -= set(itertools.combinations(enumerate(best), 2))
        yield [choice[index] for choice, index in zip(choices, best)]


def merged(a, b):
    """b over a, objects key by key."""
    return a | {key: merged(a[key], value) if isinstance(value, dict) and isinstance(a.get(key), dict) else value for key, value in b.items()}


# Values that must be refused, and what the refusal must name.
REFUSED = [
    ({}, "issuer"),
    ({"issuer": "https://id.example.com/"}, "issuer"),
    ({"issuer": ISSUER, "isuer": "x"}, "isuer"),
    ({"issuer": ISSUER, "nats": {"url": "nats://n:4222"}}, "nats.url"),
    ({"issuer": ISSUER, "nats": {"bundled": {"enabled": False}}}, "nats.url"),
    ({"issuer": ISSUER, "nats": {"bundled": {"replicas": 2}}}, "replicas"),
    ({"issuer": ISSUER, "nats": {"bundled": {"enabled": False}, "url": "nats://user:secret@n:4222"}}, "url"),
    ({"issuer": ISSUER, "controlPlane": {"store": {"type": "postgresql"}}}, "postgresql.url"),
    ({"issuer": ISSUER, "controlPlane": {"store": {"type": "postgresql", "postgresql": {"url": "postgres://u:p@h/d"}}}}, "url"),
    ({"issuer": ISSUER, "controlPlane": {"store": {"type": "mysql"}}}, "type"),
    ({"issuer": ISSUER, "controlPlane": {"autoscaling": {"enabled": True}}}, "autoscaling"),
    ({"issuer": ISSUER, "controlPlane": {"admin": {"tls": {"mode": "secret"}}}}, "secretName"),
    ({"issuer": ISSUER, "controlPlane": {"admin": {"tls": {"mode": "certManager"}}}}, "certManager.name"),
    ({"issuer": ISSUER, "controlPlane": {"oauth": {"httpRoute": {"enabled": True}}}}, "parentRefs"),
    ({"issuer": ISSUER, "controlPlane": {"resources": {"limit": {}}}}, "limit"),
    ({"issuer": ISSUER, "secrets": {"existingSecret": "mine"}}, "feedKeys"),
    ({"controlPlane": {"enabled": False}}, "feedKeys"),
    ({"controlPlane": {"enabled": False}, "feedKeys": [FEED_KEY], "operator": {"enabled": True}}, "operator.enabled"),
    ({"issuer": ISSUER, "nats": {"authCallout": {"enabled": True, "tokenSeconds": 60}}}, "tokenSeconds"),
    ({"issuer": ISSUER, "nats": {"authCallout": {"enabled": True, "serviceAccounts": ["shop"]}}}, "serviceAccounts"),
    ({"issuer": ISSUER, "nats": {"authCallout": {"enabled": True, "existingSecret": "mine"}}}, "authCallout.publicKey"),
    ({"issuer": ISSUER, "nats": {"authCallout": {"enabled": True}}, "gateway": {"enabled": False}}, "serviceAccounts"),
    ({"issuer": ISSUER, "nats": {"authCallout": {"enabled": True}, "credentials": {"validator": {"existingSecret": "v"}}}}, "credentials.validator"),
    ({"controlPlane": {"enabled": False}, "feedKeys": [FEED_KEY], "nats": {"authCallout": {"enabled": True}}}, "authCallout.enabled"),
    ({"issuer": ISSUER, "operator": {"injection": {"failurePolicy": "Maybe"}}}, "failurePolicy"),
    ({"issuer": ISSUER, "feedKeys": ["short"]}, "feedKeys"),
    ({"issuer": ISSUER, "image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"issuer": ISSUER, "gateway": {"grpcPort": 80}}, "grpcPort"),
    ({"issuer": ISSUER, "realmGroup": "a.b"}, "realmGroup"),
]


def lay_out(objects, out):
    """Writes what each container would find in its volumes, and its command line."""
    contents = {}
    for document in objects:
        name = (document["kind"], document["metadata"]["name"])
        if document["kind"] == "ConfigMap":
            contents[name] = document["data"]
        if document["kind"] == "Secret":
            decoded = {key: base64.b64decode(value).decode() for key, value in document.get("data", {}).items()}
            contents[name] = decoded | document.get("stringData", {})
        if "injection.yaml" in document.get("data", {}):
            lay_out_injected(yaml.safe_load(document["data"]["injection.yaml"]), out)
    for owner, pod in manifests.pods(objects):
        volumes = {v["name"]: v for v in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            home = out / owner["metadata"]["name"] / container["name"]
            home.mkdir(parents=True)
            for mount in container.get("volumeMounts", []):
                volume = volumes.get(mount["name"], {})
                for source in volume.get("projected", {}).get("sources", []):
                    write(home, mount, {}, {source["serviceAccountToken"]["path"]: "made by the kubelet"})
                source = volume.get("secret") or volume.get("configMap")
                if source is None:
                    continue
                data = contents.get(("Secret" if "secret" in volume else "ConfigMap", source.get("secretName") or source["name"]))
                write(home, mount, source, data)
            command = {key: container.get(key, []) for key in ("image", "command", "args", "env")}
            (home / "container.json").write_text(json.dumps(command))


def lay_out_injected(injection, out):
    """What an injected sidecar finds: its configuration, which the pod shows it as a file."""
    home = out / "injected" / "validator"
    file = home / "etc/atm/validator/sidecar.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(injection["config"]))
    (home / "container.json").write_text(json.dumps({"args": injection["container"]["args"]}))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "injected"}, "spec": {
        "containers": [{"name": "app", "image": "app"}], "initContainers": [injection["container"]], "volumes": injection["volumes"]}}
    (out / "injected.json").write_text(json.dumps(manifests.mistakes(pod)))


def write(home, mount, source, data):
    if data is None:
        return  # given by the operator: the test brings it
    items = {item["key"]: item["path"] for item in source.get("items", [])} or {key: key for key in data}
    base = home / mount["mountPath"].lstrip("/")
    for key, path in items.items():
        file = base if "subPath" in mount else base / path
        if "subPath" in mount and key != mount["subPath"]:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(data[key])


def main():
    chart_path, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    only = sys.argv[3] if len(sys.argv) > 3 else None
    chart = helm.Chart.load(chart_path)
    wrong = disagreements()
    count = 0
    for name, values, given in matrix():
        if only and name != only:
            continue
        report = helm.lint(chart_path, values, strict=True)
        wrong += [f"{name}: lint: {error}" for error in report["errors"]]
        try:
            rendered = chart.render(values, name="prod", namespace="atm")
        except helm.HelmError as error:
            wrong.append(f"{name}: {error}")
            continue
        objects = []
        for template, text in rendered.items():
            if template.endswith(".txt"):
                (out / name).mkdir(parents=True, exist_ok=True)
                (out / name / "NOTES.txt").write_text(text)
                continue
            try:
                objects += manifests.load(text)
            except yaml.YAMLError as error:
                wrong.append(f"{name}: {template}: {error}")
        for document in objects:
            wrong += [f"{name}: {mistake}" for mistake in manifests.mistakes(document)]
        wrong += [f"{name}: {mistake}" for mistake in manifests.inconsistencies(objects, given)]
        lay_out(objects, out / name)
        injected = out / name / "injected.json"
        if injected.exists():
            wrong += [f"{name}: {mistake}" for mistake in json.loads(injected.read_text())]
        rules = [o["spec"] for o in objects if o["kind"] == "PrometheusRule"]
        for rule in rules:
            text = yaml.safe_dump(rule)
            (out / name / "rules.yaml").write_text(text)
            if not values.get("controlPlane", {}).get("enabled", True) and "absent(" in text:
                wrong.append(f"{name}: an alert fires for want of a control plane, which is elsewhere")
        count += len(objects)
    for values, part in [] if only else REFUSED:
        try:
            chart.render(values, name="prod", namespace="atm")
            wrong.append(f"{json.dumps(values)} was taken; it must be refused for {part}")
        except helm.HelmError as error:
            if part not in str(error):
                wrong.append(f"{json.dumps(values)}: the refusal does not name {part}: {error}")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{count} objects are right, {len(REFUSED)} wrong values were refused")


if __name__ == "__main__":
    main()
