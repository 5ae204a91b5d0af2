#!/usr/bin/env bash
# finetune.sh: SmolLM2 learns the GPL by heart, on four ranks, in about three minutes. Gets the
# model, starts a controller and a pod here, asks the model to go on with a sentence, submits a
# training job, watches it, shows its log, exports what it learnt as a Hugging Face directory, asks
# that the same again, and stops all that it started. STEPS (18) says how long it trains; the run
# stays in RUN (build/finetune).
set -euo pipefail
. "$(dirname "$0")/common.sh"

"$ROOT/deploy/build.sh"
model=$("$ROOT/deploy/get_model.sh")
steps=${STEPS:-18}
run=${RUN:-$ROOT/build/finetune}
work=$(mktemp -d)
trap 'end_up; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
rm -rf "$run"
mkdir -p "$run"

sentence="You may convey verbatim copies of the Program's source code as you"
ask=(--prompt "$sentence" --max-tokens 24 --no-bos -q)
cat >"$work/job.textproto" <<JOB
name: "finetune"
seed: 1
output { dir: "runs/smollm2" }
mesh { data: 2  ring: 2 }                # two sequences at a time, each over two ranks
model { path: "$model" }
train {
  data { path: "text/GPL-3"  sequence_length: 512  batch_tokens: 1024 }
  optimizer { adamw { lr: 1e-4 } }
  schedule { kind: COSINE  warmup: 2  final_lr: 1e-5 }
  steps: $steps
  checkpoint { every: 9  keep: 2 }
}
max_restarts: 2
JOB

say "starting a pod of four ranks: toroid up --pods 1 --ranks 4"
start_up "$work" --pods 1 --ranks 4 --root "models=$MODELS" --root "runs=$run" \
  --root text=/usr/share/common-licenses
export TOROID_CONTROLLER=$address

say "before: the model goes on with: $sentence"
"$TOROID" generate "$model" --mesh ring=2 --keep-alive 1s "${ask[@]}" | tee "$work/before.txt"

say "submitting $work/job.textproto"
job=$("$TOROID" job submit "$work/job.textproto")
"$TOROID" job logs "$job" --follow --no-prefix >&2 &
logs=$!
"$TOROID" job watch "$job" >&2
wait "$logs"
"$TOROID" job get "$job" | tail -n 1

say "exporting the newest checkpoint: toroid convert"
"$TOROID" convert "$run/smollm2" "$run/smollm2/export" --dtype bf16 >&2

say "after: the exported model goes on with the same"
"$TOROID" generate "$run/smollm2/export" --mesh ring=2 --keep-alive 1s "${ask[@]}" | tee "$work/after.txt"
! cmp -s "$work/before.txt" "$work/after.txt" || fail "training changed nothing"
stop_up
python3 - "$run/smollm2/metrics.jsonl" "$steps" <<'PYTHON'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
steps = [line["step"] for line in lines]
if steps != list(range(1, int(sys.argv[2]) + 1)):
    sys.exit(f"finetune.sh: the steps are {steps}")
print(f"== loss {lines[0]['loss']:.3f} -> {lines[-1]['loss']:.3f} in {len(lines)} steps", file=sys.stderr)
if len(lines) >= 12 and lines[-1]["loss"] >= lines[0]["loss"]:  # the text has about nine steps
    sys.exit("finetune.sh: nothing was learnt")
PYTHON
say "all is stopped; the run is in $run/smollm2, its model in export/; done ($(took))"
