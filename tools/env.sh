# Sets what every build and test run needs; source it (`. tools/env.sh`) before calling cargo by hand. The Makefile does.
#
#   ATM_CACHE         what outlives a clone: RocksDB's archive, downloaded tools, the target directory (default ~/.cache/atm)
#   CARGO_TARGET_DIR  kept outside the clone, so that a fresh clone builds only what changed
_atm_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)
export ATM_CACHE=${ATM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/atm}
export ATM_TOOLS_DIR=${ATM_TOOLS_DIR:-$_atm_root/.tools/bin}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ATM_CACHE/target}
_atm_rocksdb=$ATM_CACHE/rocksdb-$(awk '/^name = "librocksdb-sys"/ { getline; gsub(/[" ]/, "", $3); print $3 }' "$_atm_root/Cargo.lock")
if [ -f "$_atm_rocksdb/librocksdb.a" ]; then
  export ROCKSDB_LIB_DIR=$_atm_rocksdb ROCKSDB_STATIC=1
fi
export PATH=$CARGO_TARGET_DIR/debug:$ATM_TOOLS_DIR:$PATH
unset _atm_root _atm_rocksdb
