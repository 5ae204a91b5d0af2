#!/usr/bin/env bash
# quickstart.sh: from a bare Debian 12 to a model that answers. Builds toroid, gets SmolLM2, starts a
# cluster of two pods on this machine, asks through gRPC for a sentence hidden in 4,000 tokens of
# GPL-3, asks again by mpirun alone, compares, and stops all that it started. Run it as often as you like.
set -euo pipefail
. "$(dirname "$0")/common.sh"

"$ROOT/deploy/build.sh"
model=$("$ROOT/deploy/get_model.sh")
work=$(mktemp -d)
trap 'end_up; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

gpl=/usr/share/common-licenses/GPL-3
answer='The secret password of the red house is "marmalade-47".'
{
  sed -n 1,180p "$gpl"
  echo "Note: the secret password of the red house is 'marmalade-47'."
  sed -n 181,360p "$gpl"
  printf '\nWhat is the secret password of the red house? Answer in one sentence.'
} >"$work/prompt.txt"
ask=(generate "$model" --chat --prompt "@$work/prompt.txt" --max-tokens 40)
[ -t 2 ] && progress=bar || progress=lines

say "starting two pods of two ranks each: toroid up --pods 2 --ranks 2"
start_up "$work" --pods 2 --ranks 2 --root "models=$MODELS"
export TOROID_CONTROLLER=$address
"$TOROID" pod list >&2

say "a gRPC client asks one pod, a ring of two ranks (controller at $address)"
"$TOROID" "${ask[@]}" --mesh ring=2 --progress "$progress" | tee "$work/answer.txt"
[ "$(cat "$work/answer.txt")" = "$answer" ] || fail "the answer is not: $answer"

say "the same again, as JSON: the pod kept the model, so nothing is loaded"
"$TOROID" "${ask[@]}" --mesh ring=2 --progress none -q -o json >"$work/grpc.json"
stop_up
unset TOROID_CONTROLLER

say "the same without any service: toroid launch -n 4 generate ... --mesh ring=2,tensor=2"
"$TOROID" launch -n 4 "${ask[@]}" --mesh ring=2,tensor=2 --progress "$progress" -o json \
  >"$work/launch.json"

python3 - "$work/grpc.json" "$work/launch.json" "$answer" <<'PYTHON'
import json, sys
served, direct = (json.load(open(path)) for path in sys.argv[1:3])
def expect(condition, text):
    if not condition:
        sys.exit(f"quickstart.sh: {text}")
expect(served["timing"]["load_s"] == 0, f"the kept model was loaded again: {served['timing']}")
expect(served["text"] == sys.argv[3], f"another answer: {served['text']!r}")
expect(served["prompt_tokens"] == direct["prompt_tokens"], "the prompts differ")
expect(served["ids"] == direct["ids"], f"other tokens: {served['ids']} and {direct['ids']}")
print(f"== both gave the same {len(direct['ids'])} tokens for a prompt of {direct['prompt_tokens']}", file=sys.stderr)
PYTHON
say "all is stopped; done ($(took)). Next: README.md has a tour"
