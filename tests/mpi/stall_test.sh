#!/bin/bash
# A stopped rank of four is named within its timeout and three seconds, and the world ends with exit
# code 1; a slow rank is not an alarm.   stall_test.sh STALL_RANK MPIRUN...
set -u
program=$1; shift
fail() { echo "FAILED: $1"; echo "$output"; exit 1; }

for stopped in 2 0; do
  start=$(date +%s%N)
  output=$(timeout 60 "$@" -n 4 "$program" --timeout-ms=2000 --stop=$stopped 2>&1); code=$?
  elapsed=$(( ($(date +%s%N) - start) / 1000000 ))
  [ $code -eq 1 ] || fail "exit code $code, not 1"
  grep -q "^toroid: no progress for 2s: rank $stopped on host .* stopped answering, last at attention layer 30 round 0 (sequence 61): " <<<"$output" ||
    fail "rank $stopped was not named"
  [ "$(grep -c '^toroid: no progress' <<<"$output")" -eq 1 ] || fail "not exactly one rank spoke"
  for rank in 0 1 2 3; do
    grep -q "^toroid: rank $rank on host " <<<"$output" || fail "rank $rank has no line"
  done
  # Start of the world and its end are in it, hence the margin of a loaded machine.
  [ $elapsed -lt 12000 ] || fail "it took $elapsed ms"
  echo "rank $stopped was named after $elapsed ms, start included"
done

output=$(timeout 60 "$@" -n 4 "$program" --timeout-ms=1000 --slow=2 2>&1); code=$?
[ $code -eq 0 ] || fail "a slow rank ended the world: exit code $code"
grep -q "finished with sum 6" <<<"$output" || fail "the slow world did not finish"
grep -q "no progress" <<<"$output" && fail "false alarm"
echo "a slow rank is no alarm"
