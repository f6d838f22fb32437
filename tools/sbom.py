"""
The software bill of materials of one program, as CycloneDX 1.5 JSON on standard output: every crate that is compiled into it, with
version, licence, checksum and where it came from. From `cargo metadata` and Cargo.lock alone; the same input gives the same bytes.

    python3 tools/sbom.py atm-sidecar > atm-sidecar.cdx.json
"""

import datetime
import json
import os
import pathlib
import subprocess
import sys
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = "x86_64-unknown-linux-gnu"


def manifest_of(program):
    """The program's workspace: the operator has one of its own."""
    return ROOT / "operator/Cargo.toml" if program == "atm-operator" else ROOT / "Cargo.toml"


def metadata(manifest):
    command = ["cargo", "metadata", "--manifest-path", manifest, "--locked", "--format-version", "1", "--filter-platform", TARGET]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def compiled(program):
    """(name, version) of what is compiled for `program`: metadata alone also has what other members' features would turn on."""
    command = ["cargo", "tree", "--manifest-path", manifest_of(program), "--locked", "--package", program, "--edges", "normal,build", "--target", TARGET, "--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {(words[0], words[1].removeprefix("v")) for words in map(str.split, lines) if len(words) > 1}


def reachable(graph, root, wanted):
    """Ids of the packages among `wanted` that lead into `root`, with what each depends on."""
    found, waiting = {}, [root]
    while waiting:
        package = waiting.pop()
        if package in found:
            continue
        # Test dependencies alone are of kind "dev".
        needed = {d["pkg"] for d in graph[package]["deps"] if any(k["kind"] != "dev" for k in d["dep_kinds"])}
        found[package] = sorted(needed & wanted)
        waiting += found[package]
    return found


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums, kind="library"):
    described = {"type": kind, "bom-ref": purl(package), "name": package["name"], "version": package["version"], "purl": purl(package)}
    checksum = checksums.get((package["name"], package["version"]))
    if checksum:
        described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package.get("license"):
        # Some old crates write A/B for "A or B".
        described["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if package.get("repository"):
        described["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return described


def main():
    (program,) = sys.argv[1:]
    manifest = manifest_of(program)
    described = metadata(manifest)
    packages = {package["id"]: package for package in described["packages"]}
    graph = {node["id"]: node for node in described["resolve"]["nodes"]}
    roots = [p["id"] for p in described["packages"] if p["name"] == program and p["id"] in described["workspace_members"]]
    if not roots:
        sys.exit(f"tools/sbom.py: {program} is no program of this workspace")
    lock = tomllib.loads(manifest.with_name("Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    names = compiled(program)
    found = reachable(graph, roots[0], {p["id"] for p in described["packages"] if (p["name"], p["version"]) in names})
    time = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.timezone.utc)
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": component(packages[roots[0]], checksums, "application")},
        "components": [component(packages[i], checksums) for i in sorted(found, key=lambda i: purl(packages[i])) if i != roots[0]],
        "dependencies": [
            {"ref": purl(packages[i]), "dependsOn": [purl(packages[d]) for d in found[i]]} for i in sorted(found, key=lambda i: purl(packages[i]))
        ],
    }
    body["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))}"
    json.dump(body, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main()
