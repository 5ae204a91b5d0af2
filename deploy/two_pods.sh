#!/usr/bin/env bash
# two_pods.sh [--mode exact|delayed|diloco|streaming]: one model on two pods that exchange seldom and
# late, in about a minute and a half on two cores. Starts a controller and two pods here; trains once
# with gradients of each step in bf16, undisturbed; trains again in the mode asked for (streaming, in
# INT8), kills one pod on the way, which comes back while the other trains and catches up; stops all
# that it started. Exit 1 unless both pods end with the same weights and with a loss at most 1% above
# the synchronous one. STEPS (480) says how long it trains; both runs stay in RUN (build/two_pods).
set -euo pipefail
. "$(dirname "$0")/common.sh"

mode=streaming
if [ "${1:-}" = --mode ] && [ $# = 2 ]; then
  mode=$2
elif [ $# != 0 ]; then
  fail "unknown word: $1: --mode exact|delayed|diloco|streaming"
fi
# Gradients that come a step late want a smaller rate. Of a round of 20 steps the link has two to
# bring what streaming sends.
lr=3e-4 final_lr=1e-4
case $mode in
  exact) exchange="exact {}  codec: BF16" ;;
  delayed) exchange="delayed {}  codec: BF16" lr=1e-4 final_lr=1e-5 ;;
  diloco) exchange="diloco { every: 20 }  codec: INT8  outer_lr: 1  outer_momentum: 0.5" ;;
  streaming) exchange="streaming { every: 20  fragments: 2  tau: 2  alpha: 0.25 }  codec: INT8  outer_lr: 1  outer_momentum: 0.6" ;;
  *) fail "unknown mode: $mode: exact, delayed, diloco, streaming" ;;
esac

"$ROOT/deploy/build.sh"
steps=${STEPS:-480}
run=${RUN:-$ROOT/build/two_pods}
work=$(mktemp -d)
trap 'end_up; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
rm -rf "$run"
mkdir -p "$run"

# job NAME EXCHANGE: the same but for its name and its exchange.
job() {
  cat >"$work/$1.textproto" <<JOB
name: "$1"
seed: 1
output { dir: "runs/$1" }
mesh { pods: 2  data: 1 }
model { shape { preset: "tiny-gqa" } }
train {
  data {
    path: "text/GPL-3"  path: "text/LGPL-2.1"  path: "text/MPL-2.0"  path: "text/Apache-2.0"
    sequence_length: 128  batch_tokens: 1024
  }
  optimizer { adamw { lr: $lr } }
  schedule { kind: COSINE  warmup: 20  final_lr: $final_lr }
  steps: $steps
  checkpoint { every: 40  keep: 2 }
  param_hash_every: 20
  exchange { $2 }
}
max_restarts: 2
JOB
}
job synchronous "exact {}  codec: BF16"
job "$mode-pods" "$exchange  policy: CONTINUE"

# train NAME PID: submits the job and shows it; a rank below PID is killed on the way, unless it is 0.
train() {
  local id
  id=$("$TOROID" job submit "$work/$1.textproto")
  python3 "$ROOT/deploy/two_pods.py" watch "$TOROID" "$id" "$run/$1" "$steps" "$2" || {
    "$TOROID" job get "$id" >&2
    fail "the job did not succeed"
  }
}

say "starting two pods of one rank: toroid up --pods 2 --ranks 1"
start_up "$work" --pods 2 --ranks 1 --root "runs=$run" --root text=/usr/share/common-licenses
export TOROID_CONTROLLER=$address
say "the synchronous run: gradients of each step, bf16"
train synchronous 0
say "the same in mode $mode: exchange { $exchange }; one pod is killed on the way and comes back"
train "$mode-pods" "$up_pid"
stop_up
python3 "$ROOT/deploy/two_pods.py" compare "$run/synchronous" "$run/$mode-pods" "$steps" ||
  fail "that is not what it should be: both runs are in $run"
say "all is stopped; both runs are in $run; done ($(took))"
