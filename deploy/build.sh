#!/usr/bin/env bash
# build.sh [FOLDER] [CMAKE FLAGS] [-- TARGETS]: configures FOLDER (build), Release, and builds TARGETS
# (toroid). A second run builds nothing. Objects are shared between checkouts by ccache.
set -euo pipefail
. "$(dirname "$0")/common.sh"

folder=$ROOT/build
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  folder=$(realpath -m "$1")
  shift
fi
flags=(-DCMAKE_BUILD_TYPE=Release)
while [ $# -gt 0 ] && [ "$1" != -- ]; do flags+=("$1"); shift; done
shift $(($# > 0))
targets=("$@")
[ $# -gt 0 ] || targets=(toroid)

"$ROOT/deploy/setup.sh"
if CUDA_HOME=$(cuda_home); then export CUDA_HOME; else unset CUDA_HOME; fi
export CCACHE_BASEDIR=$ROOT CCACHE_NOHASHDIR=1
# Files that include gRPC take the compiler up to 1.5 GB.
jobs=$(awk -v cores="$(nproc)" '/^MemAvailable/ { n = int($2 / 1.5e6); if (n > cores) n = cores
                                print n < 1 ? 1 : n }' /proc/meminfo)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cmake -S "$ROOT" -B "$folder" -G Ninja "${flags[@]}" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
say "building ${targets[*]} in ${folder#"$ROOT"/} (-j$jobs)"
if [ -t 2 ]; then
  ninja -C "$folder" -j "$jobs" "${targets[@]}" >&2
else  # a line per twentieth, and whatever is not progress
  ninja -C "$folder" -j "$jobs" "${targets[@]}" 2>&1 | awk '
    match($0, /^\[[0-9]+\/[0-9]+\]/) {
      split(substr($0, 2, RLENGTH - 2), n, "/"); part = int(20 * n[1] / n[2])
      if (part == last && n[1] != n[2]) next
      last = part
    }
    /^ninja: (Entering|no work)/ { next }
    { print; fflush() }' >&2
fi
say "built ($(took))"
