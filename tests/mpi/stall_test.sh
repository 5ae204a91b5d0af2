#!/bin/bash
# A stopped rank of four is named within its timeout and three seconds, and the world ends with exit
# code 1; a slow rank is not an alarm.   stall_test.sh STALL_RANK MPIRUN...
set -u
program=$1; shift
fail() { echo "FAILED: $1"; echo "$output"; exit 1; }

# What the world says, each line after its time in milliseconds; its exit code last.
timed() {
  local line
  { timeout 60 "$@" 2>&1; echo "exit code $?"; } |
    while IFS= read -r line; do echo "$(($(date +%s%N) / 1000000)) $line"; done
}
when() { grep -m1 -E "^[0-9]+ $1" <<<"$output" | cut -d' ' -f1; }

for stopped in 2 0; do
  output=$(timed "$@" -n 4 "$program" --timeout-ms=2000 --stop=$stopped)
  grep -q " exit code 1$" <<<"$output" || fail "the exit code is not 1"
  grep -qE "^[0-9]+ toroid: no progress for 2s: rank $stopped on host .* stopped answering, last at attention layer 30 round 0 \(sequence 61\): " <<<"$output" ||
    fail "rank $stopped was not named"
  [ "$(grep -c ' toroid: no progress' <<<"$output")" -eq 1 ] || fail "not exactly one rank spoke"
  for rank in 0 1 2 3; do
    grep -qE "^[0-9]+ toroid: rank $rank on host " <<<"$output" || fail "rank $rank has no line"
  done
  # mpirun's start is not in it: it waits seconds for the name of a host that no resolver knows.
  begin=$(when "rank $stopped stops") named=$(when "toroid: no progress") end=$(when "exit code")
  [ $((named - begin)) -lt 5000 ] || fail "rank $stopped was named after $((named - begin)) ms"
  [ $((end - named)) -lt 10000 ] || fail "the world ended $((end - named)) ms later"
  echo "rank $stopped was named after $((named - begin)) ms, the world ended $((end - named)) ms later"
done

output=$(timeout 60 "$@" -n 4 "$program" --timeout-ms=1000 --slow=2 2>&1); code=$?
[ $code -eq 0 ] || fail "a slow rank ended the world: exit code $code"
grep -q "finished with sum 6" <<<"$output" || fail "the slow world did not finish"
grep -q "no progress" <<<"$output" && fail "false alarm"
echo "a slow rank is no alarm"
