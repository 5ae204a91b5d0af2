#!/usr/bin/env bash
# run.sh [--slow] [CTEST ARGUMENTS]: sets up what the tests need, builds all of them, runs those that
# are not labelled slow (--slow: those too). The last lines are ctest's.
set -euo pipefail
. "$(dirname "$0")/../deploy/common.sh"

labels=(-LE slow)
if [ "${1:-}" = --slow ]; then
  labels=()
  shift
fi
"$ROOT/deploy/setup.sh" --tests
"$ROOT/deploy/get_model.sh" >/dev/null
"$ROOT/deploy/build.sh" "$ROOT/build" -DTOROID_TESTS=ON -- all
say "running the tests"
exec ctest --test-dir "$ROOT/build" --output-on-failure --progress "${labels[@]}" "$@" </dev/null
