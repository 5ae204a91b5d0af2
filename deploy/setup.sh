#!/usr/bin/env bash
# setup.sh [--tests]: the Debian 12 packages that the build needs (--tests: and the tests), by apt-get
# as root; anyone else is told the line to run, exit 3. Does nothing where all are installed.
set -euo pipefail
. "$(dirname "$0")/common.sh"

lists=("$ROOT/deploy/packages.txt")
[ "${1:-}" = --tests ] && lists+=("$ROOT/deploy/packages-test.txt")
if ! command -v dpkg-query >/dev/null; then
  say "this is not Debian: taking the packages of deploy/packages.txt as installed"
  exit 0
fi

missing=()
for package in $(cat "${lists[@]}"); do
  state=$(dpkg-query -W -f='${db:Status-Status} ' "$package" 2>/dev/null || true)
  [[ $state == *installed\ * && $state != *not-installed* ]] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" != 0 ]; then
  printf 'setup.sh: packages are missing: run this once, then try again:\n' >&2
  printf '  sudo apt-get update && sudo apt-get install --no-install-recommends %s\n' "${missing[*]}" >&2
  exit 3
fi
say "installing ${#missing[@]} Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } \
    </dev/null >"$log" 2>&1; then
  tail -n 15 "$log" >&2
  fail "apt-get failed: see the lines above"
fi
say "packages are installed ($(took))"
