#!/usr/bin/env bash
# What the images' build stage runs: the programs, stripped, and an SBOM of each, into DIR. Also for packaging without a container.
#   images/compile.sh DIR
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
programs="atm-control-plane atm-sidecar atm-operator atmctl"
tools/rocksdb.sh >/dev/null
. tools/env.sh
cargo build --locked --release -p atm-control-plane -p atm-sidecar -p atmctl
cargo build --locked --release --manifest-path operator/Cargo.toml
for program in $programs; do
  install -m 0555 "$CARGO_TARGET_DIR/release/$program" "$out/$program"
  python3 tools/sbom.py "$program" >"$out/$program.cdx.json"
done
# The time of the files is part of an image's layers.
[ -z "${SOURCE_DATE_EPOCH:-}" ] || find "$out" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
