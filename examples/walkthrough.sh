#!/usr/bin/env bash
# The main job, step by step, as examples/README.md tells it: a token is issued, used through Envoy, revoked, and refused.
# Needs the built programs and the pinned tools on their places (`make demo` sees to both).
set -euo pipefail

given=${ATM_DEV_DIR:-}
dir=${given:-$(mktemp -d "${TMPDIR:-/tmp}/atm-demo.XXXXXX")}
export ATM_DEV_DIR=$dir
kept=${ATM_DEMO_KEEP:-} # ATM_DEMO_KEEP=1: leave the stack running

step() { printf '\n== %s\n' "$*"; }
fail() { printf '\ndemo: %s\n  the logs are in %s/logs\n' "$*" "$dir" >&2; exit 1; }
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$dir/dev.json" "$1"; }
finish() {
  local status=$?
  if [ -n "$kept" ] && [ $status = 0 ]; then
    printf '\nthe stack stays up; look around, then: atmctl dev down --dir %s\n' "$dir"
  else
    [ ! -f "$dir/dev.json" ] || atmctl dev down --dir "$dir" >/dev/null || true
    # After a failure the logs stay.
    [ $status != 0 ] || [ -n "$given" ] || rm -rf "$dir"
  fi
  exit $status
}
trap finish EXIT

step "1. a local stack of the real parts: NATS, control plane, sidecar, Envoy, an echo service"
atmctl dev up --dir "$dir" 2>&1 >/dev/null

step "2. a client gets a token (client_credentials, RFC 6749 §4.4)"
# The credentials go to curl by its configuration on standard input: arguments can be seen by every user of the machine.
curl --silent --show-error --fail-with-body --config - "$(field issuer)/oauth2/token" >"$dir/answer.json" <<CURL
user = "$(field client_id):$(field client_secret)"
data = "grant_type=client_credentials"
data-urlencode = "audience=$(field audience)"
data-urlencode = "scope=$(field scope)"
CURL
(umask 077 && python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["access_token"])' "$dir/answer.json" >"$dir/token")
rm -f "$dir/answer.json"
atmctl token inspect "$dir/token" 2>/dev/null

call() { # call URL: status, and the sidecar's reason if there is one; the body goes to $dir/body
  printf 'header = "authorization: Bearer %s"\n' "$(cat "$dir/token")" |
    curl --silent --show-error --config - --output "$dir/body" --dump-header "$dir/headers" --write-out '%{http_code}' "$1"
}
reason() { tr -d '\r' <"$dir/headers" | awk -F ': ' 'tolower($1) == "x-atm-reason" { print $2 }'; }

step "3. Envoy asks the sidecar, and lets the request through"
status=$(call "$(field envoy_url)/orders")
echo "GET /orders -> $status"
[ "$status" = 200 ] || fail "expected 200, got $status $(reason)"
echo "what the service saw of the caller:"
python3 -c 'import json, sys
for name, values in sorted(json.load(open(sys.argv[1]))["headers"].items()):
    if name.startswith("x-atm-"): print(f"  {name}: {chr(32).join(values)}")' "$dir/body"

step "4. an operator revokes the token, while it is used without a pause"
atmctl revoke --token "$dir/token" --reason "shown in the demo" --wait --until-refused "$(field envoy_url)/orders" | tee "$dir/revoked"

step "5. the same request again"
status=$(call "$(field envoy_url)/orders")
echo "GET /orders -> $status, reason $(reason)"
[ "$status" = 401 ] || fail "expected 401, got $status"
[ "$(reason)" = revoked_token ] || fail "expected the reason revoked_token, got $(reason)"
cat "$dir/body"; echo
grep -q 'in force on 1 of 1' "$dir/revoked" || fail "the receipt does not show the revision in force"

step "6. the fleet"
atmctl fleet

step "done: $(sed -n 's/^refused: [0-9]* [a-z_]* //p' "$dir/revoked")"
