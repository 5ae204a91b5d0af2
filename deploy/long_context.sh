#!/usr/bin/env bash
# long_context.sh: what a ring is for. random:tiny-1m (2 layers, about 4M parameters) reads prompts of
# 16k to 64k tokens through gRPC on pods of 1, 2 and 4 ranks; a table of time and bytes per rank, and
# the claims checked: block scratch does not grow with the length, scratch and KV per rank shrink with the
# ring, the numbers stay those of one rank. Then one of four ranks is stopped, and toroid names it.
set -euo pipefail
. "$(dirname "$0")/common.sh"

"$ROOT/deploy/build.sh"
work=$(mktemp -d)
launch_pid=
trap 'end_up; [ -z "$launch_pid" ] || kill -TERM "$launch_pid" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
[ -t 2 ] && progress=bar || progress=none

# Prompts of bytes 0..255 drawn by a linear congruential generator; in `replaced` one cache page of 16
# tokens in the middle holds other ones.
python3 - "$work" <<'PYTHON'
import sys
state, ids = 1, []
for _ in range(65536):
    state = (1103515245 * state + 12345) % 2**31
    ids.append(state >> 16 & 255)
replaced = ids[:16384]
replaced[8192:8208] = [255 - i for i in replaced[8192:8208]]
for name, row in [("16384", ids[:16384]), ("32768", ids[:32768]), ("65536", ids), ("replaced", replaced)]:
    with open(f"{sys.argv[1]}/{name}.ids", "w") as file:
        file.write(",".join(map(str, row)))
PYTHON

# ask RANKS PROMPT: on a pod that `toroid up` started, into ring-RANKS-PROMPT.json.
ask() {
  say "ring=$1, prompt of $2 tokens"
  "$TOROID" generate random:tiny-1m --controller "$address" --mesh "ring=$1" \
    --prompt-ids "@$work/$2.ids" --max-tokens 4 --ignore-eos --prompt-logprobs 64 \
    --progress "$progress" -o json >"$work/ring-$1-$2.json"
}
for ranks in 1 2 4; do
  start_up "$work/up$ranks" --pods 1 --ranks "$ranks"
  ask "$ranks" 65536
  [ "$ranks" != 4 ] || for prompt in 16384 32768 replaced; do ask 4 "$prompt"; done
  stop_up
done
python3 "$ROOT/deploy/long_context.py" "$work"

say "one of four ranks is stopped by SIGSTOP, under --stall-timeout 5s"
"$TOROID" launch -n 4 generate random:tiny-1m --mesh ring=4 --prompt-ids "@$work/32768.ids" \
  --max-tokens 4 --stall-timeout 5s --progress lines -o json >/dev/null 2>"$work/stall.err" </dev/null &
launch_pid=$!
until grep -q prefill "$work/stall.err"; do
  kill -0 "$launch_pid" 2>/dev/null || { cat "$work/stall.err" >&2; fail "the ranks ended by themselves"; }
  sleep 0.1
done
mpirun_pid=$(pgrep -P "$launch_pid")
for pid in $(pgrep -P "$mpirun_pid"); do
  tr '\0' '\n' <"/proc/$pid/environ" | grep -qx OMPI_COMM_WORLD_RANK=2 && stopped=$pid
done
kill -STOP "$stopped"
begin=$SECONDS
# The other ranks first finish what they can do without it; the 5 s begin when all stand still.
timeout 120 tail --pid="$launch_pid" -f /dev/null || fail "still running 120 s after rank 2 was stopped"
code=0
wait "$launch_pid" || code=$?
launch_pid=
grep '^toroid: ' "$work/stall.err" >&2 || true
[ "$code" != 0 ] || fail "a world with a stopped rank ended with exit code 0"
grep -q '^toroid: no progress for .*: rank 2 ' "$work/stall.err" || fail "rank 2 was stopped and is not named"
# mpirun ends a stopped rank by SIGTERM, then SIGKILL: a moment later it is gone.
timeout 10 tail --pid="$stopped" -f /dev/null || fail "the stopped rank is still there after 10 s"
say "rank 2 was named $((SECONDS - begin)) s after it was stopped; done ($(took))"
