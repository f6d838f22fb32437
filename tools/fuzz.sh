#!/usr/bin/env bash
# Runs every fuzz target for some seconds (default 10) with the stable compiler. A finding is left in artifacts/ beside its target.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
seconds=${1:-10}
# What cargo-fuzz passes on a nightly compiler: coverage for libFuzzer, and our own assertions.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1"
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=${ATM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/atm}/fuzz-target
failed=""
for crate in core/fuzz proto/fuzz; do
  cd "$root/$crate"
  # Not --locked: these workspaces follow the dependencies of the crates that they test.
  cargo build --quiet --release --target "$host" --bins
  for target in fuzz_targets/*.rs; do
    name=$(basename "$target" .rs)
    mkdir -p "corpus/$name" "artifacts/$name"
    # Words of the language, and documents that people wrote, lead deeper than random bytes.
    options=()
    [ ! -f "dictionaries/$name.dict" ] || options+=("-dict=dictionaries/$name.dict")
    [ "$name" != policy ] || options+=("$root/examples/policies")
    echo "fuzzing $name for $seconds s"
    "$CARGO_TARGET_DIR/$host/release/$name" -max_total_time="$seconds" -print_final_stats=0 -verbosity=0 \
      -artifact_prefix="artifacts/$name/" "corpus/$name" "${options[@]}" || failed="$failed $crate/$name"
  done
done
[ -z "$failed" ] || { echo "findings in:$failed (see artifacts/ there)" >&2; exit 1; }
echo "no findings"
