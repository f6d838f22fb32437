"""
What can be said of the images without a container engine: that the stages of the Dockerfile fit together, that its images start what
the chart starts, as nobody, and that the SBOMs hold what cargo compiles.

    python3 tests/kubernetes/check_images.py ROOT PROGRAM_DIRECTORY
"""

import json
import pathlib
import re
import subprocess
import sys

# What gcr.io/distroless/cc has beside the programs: glibc, libgcc and libstdc++.
BASE_LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2", "linux-vdso.so.1"}


def stages(text):
    """Stage name: its instructions, with continued lines joined."""
    lines = re.sub(r"\\\n\s*(#[^\n]*\n\s*)*", " ", text).splitlines()
    found, current = {}, None
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            current = rest.split(" AS ")[1].strip()
            found[current] = [("FROM", rest.split(" AS ")[0].strip())]
        elif current:
            found[current].append((word, rest))
    return found


def check(condition, message, wrong):
    if not condition:
        wrong.append(message)


def main():
    root, programs = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    wrong = []
    text = (root / "images/Dockerfile").read_text()
    compiled = re.search(r'^programs="([^"]+)"$', (root / "images/compile.sh").read_text(), re.M)[1].split()
    toolchain = re.search(r'channel = "([0-9.]+)"', (root / "rust-toolchain.toml").read_text())[1]
    check(f"rust:{toolchain.removesuffix('.0')}-" in text or f"rust:{toolchain}-" in text, f"the Dockerfile's compiler is not {toolchain}", wrong)
    found = stages(text)
    images = {name: steps for name, steps in found.items() if name != "build"}
    check(len(images) == len(compiled), f"{sorted(images)} are not the images of {compiled}", wrong)
    for name, steps in images.items():
        words = [word for word, _ in steps]
        given = dict(steps)
        check(given.get("USER") == "65532:65532", f"{name}: runs as {given.get('USER')}", wrong)
        check("RUN" not in words, f"{name}: runs a command in the final image", wrong)
        (entry,) = json.loads(given["ENTRYPOINT"])
        program = entry.rsplit("/", 1)[1]
        check(program in compiled, f"{name}: starts {program}, which is not compiled", wrong)
        copied = [rest.split()[-1] for word, rest in steps if word == "COPY"]
        check(entry in copied, f"{name}: starts {entry}, which is not copied", wrong)
        check(f"/usr/share/sbom/{program}.cdx.json" in copied, f"{name}: holds no SBOM", wrong)
        for word, rest in steps:
            if word == "COPY":
                check("--from=build" in rest and "--chmod=0" in rest and "--chown=0:0" in rest, f"{name}: COPY {rest}: owner and mode are not said", wrong)
    ignored = (root / "images/Dockerfile.dockerignore").read_text().splitlines()
    members = re.search(r"members = \[([^\]]+)\]", (root / "Cargo.toml").read_text())[1]
    for member in {m.split('/')[0] for m in re.findall(r'"([^"]+)"', members)} | {"operator"}:
        check(f"!{member}" in ignored, f"the workspace's member {member} is not in the build's context", wrong)
    repositories = set(re.findall(r"image: \{ repository: ([a-z-]+), digest", (root / "helm/atm/values.yaml").read_text()))
    for repository in repositories:
        check(repository in images, f"the chart starts {repository}, of which there is no image", wrong)
    for program in compiled:
        wrong += sbom(root, program)
        listed = subprocess.run(["ldd", programs / program], capture_output=True, text=True, check=True).stdout
        needed = {line.split()[0].rsplit("/", 1)[-1] for line in listed.splitlines()}
        check(needed <= BASE_LIBRARIES, f"{program} needs {sorted(needed - BASE_LIBRARIES)}, which the base image lacks", wrong)
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(images)} images fit together")


def sbom(root, program):
    """The bill twice, equal, and with the parts that the program is known to have."""
    command = [sys.executable, root / "tools/sbom.py", program]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    bill = json.loads(first)
    names = {c["name"] for c in bill["components"]}
    wrong = [] if first == second else [f"{program}: two SBOMs of one state differ"]
    for part in ("serde", "aws-lc-rs"):
        if part not in names:
            wrong.append(f"{program}: the SBOM lacks {part}")
    if ("librocksdb-sys" in names) != (program == "atm-sidecar"):
        wrong.append(f"{program}: the SBOM is wrong about RocksDB")
    for component in bill["components"]:
        ours = component["name"].startswith("atm-")
        if not ours and not ("hashes" in component and "licenses" in component):
            wrong.append(f"{program}: {component['name']} has no checksum or no licence in the SBOM")
    references = {c["bom-ref"] for c in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    if any(d not in references for entry in bill["dependencies"] for d in entry["dependsOn"]):
        wrong.append(f"{program}: the SBOM depends on what it does not list")
    return wrong


if __name__ == "__main__":
    main()
