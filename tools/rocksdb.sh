#!/usr/bin/env bash
# Builds RocksDB's C++ once and keeps the archive outside the clone, so that every profile, `make demo`, `make test` and
# CI link the same one. It is the long pole of a first build: about 15 minutes on two cores. Prints the archive's folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${ATM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/atm}

version=$(awk '/^name = "librocksdb-sys"/ { getline; gsub(/[" ]/, "", $3); print $3 }' "$root/Cargo.lock")
[ -n "$version" ] || { echo "tools/rocksdb.sh: Cargo.lock names no librocksdb-sys; restore it with 'git checkout Cargo.lock'" >&2; exit 1; }
lib=$cache/rocksdb-$version
if [ ! -f "$lib/librocksdb.a" ]; then
  echo "building RocksDB $version once into $lib (about 15 minutes on two cores) ..." >&2
  build=$cache/rocksdb-build
  mkdir -p "$build" "$lib.part"
  # x86-64-v2 gives RocksDB its SSE4.2 checksums; every server processor since 2009 has it.
  flags=
  [ "$(uname -m)" != x86_64 ] || flags="-C target-cpu=x86-64-v2"
  started=$SECONDS
  env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC RUSTFLAGS="$flags" CARGO_PROFILE_RELEASE_DEBUG=0 \
    cargo build --quiet --locked --release --manifest-path "$root/Cargo.toml" -p librocksdb-sys --target-dir "$build" >&2 &
  builder=$!
  while kill -0 "$builder" 2>/dev/null; do
    done_files=$(find "$build" -path '*librocksdb-sys*' -name '*.o' 2>/dev/null | wc -l)
    printf '  RocksDB: %s files compiled, %d s\n' "$done_files" "$((SECONDS - started))" >&2
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
      kill -0 "$builder" 2>/dev/null || break
      sleep 1
    done
  done
  wait "$builder"
  archive=$(find "$build" -path '*librocksdb-sys*/out/librocksdb.a' | head -n 1)
  cp "$archive" "$lib.part/librocksdb.a"
  find "$build" -path '*librocksdb-sys*/out/liblz4.a' -exec cp {} "$lib.part/" \;
  rm -rf "$lib" && mv "$lib.part" "$lib"
  rm -rf "$build"
fi
echo "$lib"
