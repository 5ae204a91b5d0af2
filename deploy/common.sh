# Sourced by the scripts of this folder: where things are, and how they speak.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TOROID=$ROOT/build/toroid
MODELS=${TOROID_MODELS:-$HOME/.cache/toroid/models}

say() { printf '== %s\n' "$*" >&2; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Seconds since this shell began, for "done in 12 s".
took() { printf '%d s' "$SECONDS"; }

# start_up FOLDER ARGUMENTS...: `toroid up` on a free port; its address in $address, its pid in $up_pid,
# its state and output in FOLDER.
start_up() {
  local folder=$1
  shift
  mkdir -p "$folder"
  "$TOROID" up --listen 127.0.0.1:0 --state "$folder/state" "$@" \
    >"$folder/up.out" 2>"$folder/up.err" </dev/null &
  up_pid=$!
  for _ in $(seq 300); do
    address=$(sed -n 's/^READY \([^ ]*\).*/\1/p' "$folder/up.out")
    [ -z "$address" ] || return 0
    kill -0 "$up_pid" 2>/dev/null || break
    sleep 0.1
  done
  cat "$folder/up.err" >&2
  fail "toroid up did not get ready"
}

# Ends what start_up started, and all that it started.
stop_up() {
  [ -n "${up_pid:-}" ] || return 0
  kill -TERM "$up_pid" 2>/dev/null || true
  wait "$up_pid" 2>/dev/null || true
  up_pid=
}
