#!/bin/sh
# run.sh TARGET FOUND SEEDS: fuzzes for 30 seconds, then on until 100,000 executions are reached.
set -e
target=$1 found=$2 seeds=$3
limits="-max_len=65536 -timeout=5 -malloc_limit_mb=8 -rss_limit_mb=1024 -print_final_stats=1"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$target" $limits -max_total_time=30 "$found" "$seeds" >"$log" 2>&1 || { cat "$log"; exit 1; }
done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
echo "$done executions in 30 s"
if [ "$done" -lt 100000 ]; then
  "$target" $limits -runs=$((100000 - done)) "$found" "$seeds" >"$log" 2>&1 || { cat "$log"; exit 1; }
fi
