"""
A Kubernetes API server for tests, faithful where our programs and Helm rely on it: discovery, create, read, list, watch, update,
merge, JSON and apply patches, status subresources, resource versions with conflicts, generations, finalizers, label selectors,
strict validation (built-in kinds by Kubernetes' schemas, custom ones by their CRD), mutating webhooks over TLS, TokenReview.

What it is not: there is no scheduler, no kubelet and no controller behind it; roles are not enforced (every request is
recorded, so that a test can compare them with a role); apply merges without field managers.

    python3 apiserver.py PORT_FILE [--service NAMESPACE/NAME=HOST:PORT ...] [--token TOKEN=JSON ...]
"""

import argparse
import base64
import copy
import datetime
import http.server
import json
import os
import re
import ssl
import http.client
import socket
import threading
import traceback
import urllib.parse
import uuid

import jsonschema

import manifests

# plural: (group, version, kind, namespaced)
BUILT_IN = {
    ("", "v1"): [
        ("namespaces", "Namespace", False), ("pods", "Pod", True), ("services", "Service", True), ("secrets", "Secret", True),
        ("configmaps", "ConfigMap", True), ("serviceaccounts", "ServiceAccount", True), ("events", "Event", True),
        ("persistentvolumeclaims", "PersistentVolumeClaim", True),
    ],
    ("apps", "v1"): [("deployments", "Deployment", True), ("statefulsets", "StatefulSet", True), ("daemonsets", "DaemonSet", True)],
    ("policy", "v1"): [("poddisruptionbudgets", "PodDisruptionBudget", True)],
    ("autoscaling", "v2"): [("horizontalpodautoscalers", "HorizontalPodAutoscaler", True)],
    ("networking.k8s.io", "v1"): [("networkpolicies", "NetworkPolicy", True), ("ingresses", "Ingress", True)],
    ("rbac.authorization.k8s.io", "v1"): [
        ("roles", "Role", True), ("rolebindings", "RoleBinding", True), ("clusterroles", "ClusterRole", False),
        ("clusterrolebindings", "ClusterRoleBinding", False),
    ],
    ("apiextensions.k8s.io", "v1"): [("customresourcedefinitions", "CustomResourceDefinition", False)],
    ("admissionregistration.k8s.io", "v1"): [("mutatingwebhookconfigurations", "MutatingWebhookConfiguration", False)],
    ("authentication.k8s.io", "v1"): [("tokenreviews", "TokenReview", False)],
    ("events.k8s.io", "v1"): [("events", "Event", True)],
    ("coordination.k8s.io", "v1"): [("leases", "Lease", True)],
}


class Problem(Exception):
    """An answer that is no success."""

    def __init__(self, code, reason, message):
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code}


class Kind:
    def __init__(self, group, version, plural, kind, namespaced, schema=None, status=False):
        self.group, self.version, self.plural, self.kind, self.namespaced = group, version, plural, kind, namespaced
        self.schema, self.status = schema, status or kind in ("Pod", "Deployment", "StatefulSet", "DaemonSet")
        self.api_version = f"{group}/{version}" if group else version


def merge(target, patch):
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = merge(target.get(key), value)
    return target


def byte_slice(value):
    """What Go's encoding/json reads as []byte: base64, or an array of numbers (kube-rs writes it so)."""
    return bytes(value) if isinstance(value, list) else base64.b64decode(value)


def json_patch(document, operations):
    """RFC 6902: add, replace, remove, test, which is what our programs send."""
    for operation in operations:
        parts = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
        parent = document
        for part in parts[:-1]:
            parent = parent[int(part)] if isinstance(parent, list) else parent[part]
        last, op = parts[-1], operation["op"]
        if isinstance(parent, list):
            if op == "add":
                parent.insert(len(parent) if last == "-" else int(last), operation["value"])
            elif op == "replace":
                parent[int(last)] = operation["value"]
            elif op == "remove":
                del parent[int(last)]
            elif op == "test" and parent[int(last)] != operation["value"]:
                raise Problem(422, "Invalid", f"test of {operation['path']} failed")
        elif op in ("add", "replace"):
            parent[last] = operation["value"]
        elif op == "remove":
            del parent[last]
        elif op == "test" and parent.get(last) != operation["value"]:
            raise Problem(422, "Invalid", f"test of {operation['path']} failed")
    return document


def selected(selector, labels):
    """The text form of a label selector."""
    for term in filter(None, re.split(r",(?![^(]*\))", selector or "")):
        if match := re.fullmatch(r"\s*([^\s!=]+)\s+(in|notin)\s+\(([^)]*)\)\s*", term):
            inside = labels.get(match[1]) in [v.strip() for v in match[3].split(",")]
            if inside != (match[2] == "in"):
                return False
        elif "!=" in term:
            key, value = term.split("!=")
            if labels.get(key.strip()) == value.strip():
                return False
        elif "=" in term:
            key, value = term.replace("==", "=").split("=")
            if labels.get(key.strip()) != value.strip():
                return False
        elif term.startswith("!"):
            if term[1:] in labels:
                return False
        elif term.strip() not in labels:
            return False
    return True


def matches(selector, labels):
    """The object form of a label selector."""
    for key, value in (selector or {}).get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for e in (selector or {}).get("matchExpressions", []):
        held = labels.get(e["key"])
        if {"In": held not in e.get("values", []), "NotIn": held in e.get("values", []), "Exists": held is None, "DoesNotExist": held is not None}[e["operator"]]:
            return False
    return True


class Cluster:
    def __init__(self, services, tokens):
        self.lock = threading.Condition()
        self.revision = 1
        self.objects = {}  # (group, plural, namespace, name): object
        self.history = []  # (revision, type, group, plural, object)
        self.kinds = {}
        self.requests = set()  # (user, verb, group, resource)
        self.services, self.tokens = services, tokens
        for (group, version), kinds in BUILT_IN.items():
            for plural, kind, namespaced in kinds:
                self.kinds[(group, version, plural)] = Kind(group, version, plural, kind, namespaced)
        for namespace in ("default", "kube-system"):
            self.create(self.kinds[("", "v1", "namespaces")], "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    def key(self, kind, namespace, name):
        # Events are one resource in two groups, as in Kubernetes.
        group = "" if kind.plural == "events" else kind.group
        return (group, kind.plural, namespace if kind.namespaced else "", name)

    def record(self, kind, event, document):
        self.history.append((self.revision, event, kind, copy.deepcopy(document)))
        self.lock.notify_all()

    def validate(self, kind, document):
        if document.get("kind", kind.kind) != kind.kind or document.get("apiVersion", kind.api_version) != kind.api_version:
            raise Problem(400, "BadRequest", f"the object is no {kind.api_version} {kind.kind}")
        if kind.schema is not None:
            errors = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in jsonschema.Draft202012Validator(kind.schema).iter_errors(document)]
        elif kind.kind in ("Event", "TokenReview", "Lease"):
            errors = []
        else:
            errors = manifests.mistakes({k: v for k, v in document.items() if k != "status"} | {"metadata": {k: v for k, v in document["metadata"].items() if k != "managedFields"}})
        if errors:
            raise Problem(422, "Invalid", f"{kind.kind} {document['metadata'].get('name')} is invalid: {'; '.join(errors)[:2000]}")

    def create(self, kind, namespace, document):
        document = copy.deepcopy(document)
        document.setdefault("apiVersion", kind.api_version)
        document.setdefault("kind", kind.kind)
        metadata = document.setdefault("metadata", {})
        if "name" not in metadata and "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if kind.namespaced:
            metadata["namespace"] = namespace
            if ("", "namespaces", "", namespace) not in self.objects:
                raise Problem(404, "NotFound", f"namespaces \"{namespace}\" not found")
        if kind.kind == "Pod":
            document = self.admit(kind, namespace, document)
        with self.lock:
            return self.store(kind, namespace, document)

    def store(self, kind, namespace, document):
        metadata = document["metadata"]
        if kind.status and "status" in document and kind.schema is not None:
            del document["status"]
        if kind.kind == "Secret" and "stringData" in document:
            given = {k: base64.b64encode(v.encode()).decode() for k, v in document.pop("stringData").items()}
            document["data"] = document.get("data", {}) | given
        self.validate(kind, document)
        key = self.key(kind, namespace, metadata["name"])
        if key in self.objects:
            raise Problem(409, "AlreadyExists", f"{kind.plural} \"{metadata['name']}\" already exists")
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=now, generation=1)
        self.revision += 1
        metadata["resourceVersion"] = str(self.revision)
        self.objects[key] = document
        self.record(kind, "ADDED", document)
        if kind.kind == "CustomResourceDefinition":
            self.define(document)
        return document

    def define(self, crd):
        spec = crd["spec"]
        for version in spec["versions"]:
            schema = structural(version["schema"]["openAPIV3Schema"])
            status = "status" in version.get("subresources", {})
            self.kinds[(spec["group"], version["name"], spec["names"]["plural"])] = Kind(
                spec["group"], version["name"], spec["names"]["plural"], spec["names"]["kind"], spec["scope"] == "Namespaced", schema, status)
        crd["status"] = {"conditions": [{"type": t, "status": "True"} for t in ("NamesAccepted", "Established")]}

    def replace(self, kind, namespace, name, document, subresource):
        key = self.key(kind, namespace, name)
        old = self.objects.get(key)
        if old is None:
            raise Problem(404, "NotFound", f"{kind.plural} \"{name}\" not found")
        given = document["metadata"].get("resourceVersion")
        if given not in (None, "", old["metadata"]["resourceVersion"]):
            raise Problem(409, "Conflict", f"{kind.plural} \"{name}\": the object has been modified; apply your changes to the latest version and try again")
        new = copy.deepcopy(document)
        if subresource == "status":
            new = copy.deepcopy(old) | ({"status": document["status"]} if "status" in document else {})
        elif kind.status and "status" in old:
            new["status"] = copy.deepcopy(old["status"])
        elif kind.status and kind.schema is not None:
            new.pop("status", None)
        if kind.kind == "Secret" and "stringData" in new:
            new["data"] = new.get("data", {}) | {k: base64.b64encode(v.encode()).decode() for k, v in new.pop("stringData").items()}
        for field in ("uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp", "namespace"):
            if field in old["metadata"]:
                new["metadata"][field] = old["metadata"][field]
        self.validate(kind, new)
        if new == old:
            return old
        changed = {k: v for k, v in new.items() if k not in ("metadata", "status")} != {k: v for k, v in old.items() if k not in ("metadata", "status")}
        if changed:
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        self.revision += 1
        new["metadata"]["resourceVersion"] = str(self.revision)
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            return self.remove(kind, key)
        self.objects[key] = new
        self.record(kind, "MODIFIED", new)
        if kind.kind == "CustomResourceDefinition":
            self.define(new)
        return new

    def delete(self, kind, namespace, name):
        key = self.key(kind, namespace, name)
        document = self.objects.get(key)
        if document is None:
            raise Problem(404, "NotFound", f"{kind.plural} \"{name}\" not found")
        if document["metadata"].get("finalizers"):
            if not document["metadata"].get("deletionTimestamp"):
                self.revision += 1
                document["metadata"]["deletionTimestamp"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
                document["metadata"]["resourceVersion"] = str(self.revision)
                self.record(kind, "MODIFIED", document)
            return document
        self.revision += 1
        return self.remove(kind, key)

    def remove(self, kind, key):
        document = self.objects.pop(key)
        document["metadata"]["resourceVersion"] = str(self.revision)
        self.record(kind, "DELETED", document)
        return document

    def admit(self, kind, namespace, document):
        labels = self.objects[("", "namespaces", "", namespace)]["metadata"].get("labels", {})
        for (_, plural, _, _), configuration in sorted(self.objects.items()):
            if plural != "mutatingwebhookconfigurations":
                continue
            for webhook in configuration.get("webhooks", []):
                rules = any("pods" in r["resources"] and "CREATE" in r["operations"] for r in webhook["rules"])
                if not rules or not matches(webhook.get("namespaceSelector"), labels) or not matches(webhook.get("objectSelector"), document["metadata"].get("labels", {})):
                    continue
                document = self.call(webhook, kind, namespace, document)
        return document

    def call(self, webhook, kind, namespace, document):
        request = {"uid": str(uuid.uuid4()), "kind": {"group": "", "version": "v1", "kind": "Pod"}, "resource": {"group": "", "version": "v1", "resource": "pods"},
                   "requestKind": {"group": "", "version": "v1", "kind": "Pod"}, "requestResource": {"group": "", "version": "v1", "resource": "pods"},
                   "name": document["metadata"].get("name", ""), "namespace": namespace, "operation": "CREATE", "userInfo": {"username": "test"}, "object": document, "dryRun": False}
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        try:
            answer = self.send(webhook["clientConfig"], review, webhook.get("timeoutSeconds", 10))
            response = answer["response"]
            if response["uid"] != request["uid"]:
                raise ValueError("the answer is to another request")
        except Exception as error:  # whatever goes wrong here, failurePolicy decides
            if webhook.get("failurePolicy", "Fail") == "Ignore":
                return document
            raise Problem(500, "InternalError", f"failed calling webhook \"{webhook['name']}\": {error}") from None
        if not response["allowed"]:
            raise Problem(response.get("status", {}).get("code", 403), "Forbidden", f"admission webhook \"{webhook['name']}\" denied the request: {response.get('status', {}).get('message')}")
        if response.get("patch"):
            document = json_patch(document, json.loads(byte_slice(response["patch"])))
        return document

    def send(self, config, review, timeout):
        service = config["service"]
        address = self.services[f"{service['namespace']}/{service['name']}"]
        host, _, port = address.rpartition(":")
        name = f"{service['name']}.{service['namespace']}.svc"
        context = ssl.create_default_context(cadata=base64.b64decode(config["caBundle"]).decode())
        raw = socket.create_connection((host, int(port)), timeout=timeout)
        connection = http.client.HTTPConnection(name, timeout=timeout)
        connection.sock = context.wrap_socket(raw, server_hostname=name)
        connection.request("POST", service.get("path", "/"), json.dumps(review), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {body[:200]!r}")
        return json.loads(body)


def structural(schema):
    """A CRD's schema as JSON Schema: unknown fields are errors (strict field validation), metadata is checked elsewhere."""
    if isinstance(schema, list):
        return [structural(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: structural(v) if k not in ("enum", "default", "required", "example") else v for k, v in schema.items()}
    if out.pop("nullable", False) and "type" in out:
        out["type"] = [out["type"], "null"]
    if out.pop("x-kubernetes-preserve-unknown-fields", False):
        return out
    if out.pop("x-kubernetes-int-or-string", False):
        out["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        out["properties"] = {k: structural(v) for k, v in schema["properties"].items()}
        if "additionalProperties" not in schema:
            out["additionalProperties"] = False
        if "metadata" in out["properties"] and "spec" in out["properties"]:
            out["properties"] |= {"metadata": {"type": "object"}, "apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    return out


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster = None

    def log_message(self, *_):
        pass

    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self):
        try:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b""
            self.route(urllib.parse.urlsplit(self.path), body)
        except Problem as problem:
            self.answer(problem.code, problem.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:  # a mistake of this server, to be seen by the test
            traceback.print_exc()
            self.answer(500, Problem(500, "InternalError", repr(error)).body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def route(self, url, body):
        parts = [urllib.parse.unquote(p) for p in url.path.strip("/").split("/")]
        query = dict(urllib.parse.parse_qsl(url.query))
        if parts == ["version"]:
            return self.answer(200, {"major": "1", "minor": "37", "gitVersion": "v1.37.0"})
        if parts == ["requests"]:  # for tests: who asked for what
            return self.answer(200, sorted(self.cluster.requests))
        if parts[:2] == ["openapi", "v3"]:
            return self.openapi(parts[2:])
        if parts[0] == "api":
            if len(parts) == 1:
                return self.answer(200, {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
            group, version, rest = "", parts[1], parts[2:]
        elif parts[0] == "apis":
            if len(parts) == 1:
                return self.answer(200, self.groups())
            if len(parts) == 2:
                group = [g for g in self.groups()["groups"] if g["name"] == parts[1]]
                return self.answer(200, group[0]) if group else self.missing()
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return self.missing()
        if not rest:
            return self.discover(group, version)
        namespace = ""
        if rest[0] == "namespaces" and len(rest) >= 3:
            namespace, rest = rest[1], rest[2:]
        kind = self.cluster.kinds.get((group, version, rest[0]))
        if kind is None or len(rest) > 3:
            return self.missing()
        name = rest[1] if len(rest) > 1 else None
        subresource = rest[2] if len(rest) > 2 else None
        self.serve(kind, namespace, name, subresource, query, body)

    def missing(self):
        raise Problem(404, "NotFound", f"the server could not find the requested resource {self.path}")

    def groups(self):
        versions = {}
        for group, version, _ in self.cluster.kinds:
            if group:
                versions.setdefault(group, set()).add(version)
        groups = []
        for group, found in sorted(versions.items()):
            listed = [{"groupVersion": f"{group}/{v}", "version": v} for v in sorted(found)]
            groups.append({"name": group, "versions": listed, "preferredVersion": listed[0]})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def discover(self, group, version):
        resources = []
        for kind in self.cluster.kinds.values():
            if (kind.group, kind.version) == (group, version):
                verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
                resources.append({"name": kind.plural, "singularName": kind.kind.lower(), "namespaced": kind.namespaced, "kind": kind.kind, "verbs": verbs})
        if not resources:
            self.missing()
        self.answer(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/{version}" if group else version, "resources": resources})

    def openapi(self, path):
        """As much of OpenAPI v3 as tells clients that the server validates fields by itself (`fieldValidation`)."""
        versions = {("api/" if not g else f"apis/{g}/") + v: (g, v) for g, v, _ in self.cluster.kinds}
        if not path:
            return self.answer(200, {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{p}"} for p in versions}})
        if "/".join(path) not in versions:
            self.missing()
        paths = {}
        for kind in self.cluster.kinds.values():
            if (kind.group, kind.version) == versions["/".join(path)]:
                named = {"group": kind.group, "version": kind.version, "kind": kind.kind}
                patch = {"parameters": [{"name": "fieldValidation", "in": "query"}], "responses": {}, "x-kubernetes-group-version-kind": named}
                paths[f"/{'/'.join(path)}/namespaces/{{namespace}}/{kind.plural}/{{name}}"] = {"patch": patch}
        self.answer(200, {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.37.0"}, "paths": paths})

    def serve(self, kind, namespace, name, subresource, query, body):
        cluster = self.cluster
        watch = query.get("watch") in ("1", "true")
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(self.command) or ("watch" if watch else "get" if name else "list")
        user = (self.headers.get("Authorization") or "Bearer anonymous").removeprefix("Bearer ")
        resource = kind.plural + (f"/{subresource}" if subresource else "")
        with cluster.lock:
            cluster.requests.add((user, verb, kind.group, resource))
        if watch:
            return self.watch(kind, namespace, query)
        document = json.loads(body) if body and self.command in ("POST", "PUT") else None
        if kind.kind == "TokenReview" and self.command == "POST":
            return self.answer(201, self.review(document))
        with cluster.lock:
            if self.command == "GET" and name:
                found = cluster.objects.get(cluster.key(kind, namespace, name))
                if found is None:
                    raise Problem(404, "NotFound", f"{kind.plural} \"{name}\" not found")
                return self.answer(200, found)
            if self.command == "GET":
                return self.answer(200, self.listed(kind, namespace, query))
            if self.command == "DELETE" and name:
                return self.answer(200, cluster.delete(kind, namespace, name))
            if self.command == "PUT" and name:
                return self.answer(200, cluster.replace(kind, namespace, name, document, subresource))
            if self.command == "PATCH" and name:
                return self.patch(kind, namespace, name, subresource, body)
        if self.command == "POST":
            # A webhook is called without the lock: it may read from here. Pods are not made twice in one test.
            if kind.kind == "Pod":
                return self.answer(201, cluster.create(kind, namespace, document))
            with cluster.lock:
                return self.answer(201, cluster.create(kind, namespace, document))
        raise Problem(405, "MethodNotAllowed", f"{self.command} {self.path}")

    def listed(self, kind, namespace, query):
        field = dict(term.split("=", 1) for term in (query.get("fieldSelector") or "").replace("==", "=").split(",") if "=" in term)
        items = [
            o for (group, plural, ns, name), o in sorted(self.cluster.objects.items())
            if (group, plural) == self.cluster.key(kind, "", "")[:2] and namespace in ("", ns)
            and selected(query.get("labelSelector"), o["metadata"].get("labels", {}))
            and field.get("metadata.name", name) == name
        ]
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": {"resourceVersion": str(self.cluster.revision)}, "items": items}

    def patch(self, kind, namespace, name, subresource, body):
        cluster = self.cluster
        old = cluster.objects.get(cluster.key(kind, namespace, name))
        form = self.headers.get("Content-Type", "").split(";")[0]
        if old is None and form != "application/apply-patch+yaml":
            raise Problem(404, "NotFound", f"{kind.plural} \"{name}\" not found")
        if form == "application/json-patch+json":
            new = json_patch(copy.deepcopy(old), json.loads(body))
        else:
            patch = manifests.load(body.decode())[0]
            if old is None:
                return self.answer(201, cluster.create(kind, namespace, patch))
            new = merge(copy.deepcopy(old), patch)
        self.answer(200, cluster.replace(kind, namespace, name, new, subresource))

    def review(self, document):
        known = self.cluster.tokens.get(document["spec"]["token"])
        wanted = document["spec"].get("audiences") or ["api"]
        status = {"authenticated": False, "error": "the token is unknown"}
        if known and (audiences := [a for a in wanted if a in known["audiences"]]):
            status = {"authenticated": True, "audiences": audiences, "user": {"username": known["username"], "extra": known.get("extra", {})}}
        return document | {"status": status}

    def watch(self, kind, namespace, query):
        cluster = self.cluster
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        since = int(query.get("resourceVersion") or 0)
        at = 0
        bound = min(float(query.get("timeoutSeconds", 290)), 290)
        end = datetime.datetime.now().timestamp() + bound
        while True:
            with cluster.lock:
                if at >= len(cluster.history):
                    cluster.lock.wait(min(1.0, max(0.0, end - datetime.datetime.now().timestamp())))
                news, at = cluster.history[at:], len(cluster.history)
            for revision, event, of, document in news:
                if revision <= since or cluster.key(of, "", "")[:2] != cluster.key(kind, "", "")[:2]:
                    continue
                if namespace not in ("", document["metadata"].get("namespace", "")) or not selected(query.get("labelSelector"), document["metadata"].get("labels", {})):
                    continue
                line = json.dumps({"type": event, "object": document}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
            if datetime.datetime.now().timestamp() >= end:
                self.wfile.write(b"0\r\n\r\n")
                return


def serve(port_file=None, services=(), tokens=(), port=0):
    """Starts it in the background; returns its address."""
    cluster = Cluster(dict(s.split("=", 1) for s in services), {t: json.loads(v) for t, v in (x.split("=", 1) for x in tokens)})
    handler = type("Bound", (Handler,), {"cluster": cluster})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_address[1]}"
    if port_file:
        with open(port_file + ".part", "w", encoding="ascii") as file:
            file.write(address)
        os.replace(port_file + ".part", port_file)
    return address, cluster


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("port_file")
    arguments.add_argument("--service", action="append", default=[])
    arguments.add_argument("--token", action="append", default=[])
    given = arguments.parse_args()
    serve(given.port_file, given.service, given.token)
    threading.Event().wait()
