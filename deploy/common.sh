# Sourced by the scripts of this folder: where things are, and how they speak.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TOROID=$ROOT/build/toroid
MODELS=${TOROID_MODELS:-$HOME/.cache/toroid/models}

CUDA=$HOME/.cache/toroid/cuda  # what setup.sh --cuda brings

# The folder of CUDA's compiler: CUDA_HOME, the usual place, or what setup.sh --cuda brought.
cuda_home() {
  local folder
  for folder in "${CUDA_HOME:-/usr/local/cuda}" /usr/local/cuda "$CUDA"; do
    if [ -x "$folder/bin/nvcc" ]; then
      printf '%s\n' "$folder"
      return 0
    fi
  done
  return 1
}

say() { printf '== %s\n' "$*" >&2; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Seconds since this shell began, for "done in 12 s".
took() { printf '%d s' "$SECONDS"; }

# start_up FOLDER ARGUMENTS...: `toroid up` on a free port; its address in $address, its pid in $up_pid,
# its state and output in FOLDER.
start_up() {
  up_folder=$1
  shift
  mkdir -p "$up_folder"
  "$TOROID" up --listen 127.0.0.1:0 --state "$up_folder/state" "$@" \
    >"$up_folder/up.out" 2>"$up_folder/up.err" </dev/null &
  up_pid=$!
  for _ in $(seq 300); do
    address=$(sed -n 's/^READY \([^ ]*\).*/\1/p' "$up_folder/up.out")
    [ -z "$address" ] || return 0
    kill -0 "$up_pid" 2>/dev/null || break
    sleep 0.1
  done
  fail "toroid up did not get ready"
}

# Ends what start_up started, and all that it started.
stop_up() {
  [ -n "${up_pid:-}" ] || return 0
  kill -TERM "$up_pid" 2>/dev/null || true
  wait "$up_pid" 2>/dev/null || true
  up_pid=
}

# For a trap on EXIT: what the services said, where the script failed; then ends them.
end_up() {
  local code=$?
  if [ "$code" != 0 ] && [ -n "${up_pid:-}" ]; then
    kill -0 "$up_pid" 2>/dev/null || say "toroid up has ended by itself"
    sed 's/^/toroid up: /' "$up_folder/up.err" >&2
  fi
  stop_up
}
