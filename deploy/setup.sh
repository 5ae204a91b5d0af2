#!/usr/bin/env bash
# setup.sh [--tests] [--cuda]: the Debian 12 packages that the build needs (--tests: and the tests), by
# apt-get as root; anyone else is told the line to run, exit 3. --cuda: also CUDA's compiler, runtime
# and cuBLAS, from NVIDIA's PyPI packages into ~/.cache/toroid/cuda, where there is no nvcc. Does
# nothing where all are installed.
set -euo pipefail
. "$(dirname "$0")/common.sh"

lists=("$ROOT/deploy/packages.txt")
cuda=
for word in "$@"; do
  case $word in
    --tests) lists+=("$ROOT/deploy/packages-test.txt") ;;
    --cuda) cuda=yes ;;
    *) fail "unknown word: $word: --tests, --cuda" ;;
  esac
done

# Debian has no CUDA. NVIDIA's wheels lack the names that a linker looks for.
get_cuda() {
  say "downloading CUDA from PyPI into $CUDA (0.5 GB)"
  mkdir -p "$(dirname "$CUDA")"
  local work
  work=$(mktemp -d "$(dirname "$CUDA")/.cuda.XXXXXX")  # beside it, so that the last step is a rename
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$work/site" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 ||
    { rm -rf "$work"; fail "cannot install CUDA from PyPI: is there a network?"; }
  local folder=$work/site/nvidia/cu13
  ln -s lib "$folder/lib64"
  ln -s libcublasLt.so.13 "$folder/lib/libcublasLt.so"
  ln -s libcudart.so.13 "$folder/lib/libcudart.so"
  mv "$folder" "$CUDA"
  rm -rf "$work"
  say "CUDA is there ($(took))"
}

get_packages() {
  if ! command -v dpkg-query >/dev/null; then
    say "this is not Debian: taking the packages of deploy/packages.txt as installed"
    return 0
  fi

  local missing=() package state
  for package in $(cat "${lists[@]}"); do
    state=$(dpkg-query -W -f='${db:Status-Status} ' "$package" 2>/dev/null || true)
    [[ $state == *installed\ * && $state != *not-installed* ]] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0

  if [ "$(id -u)" != 0 ]; then
    printf 'setup.sh: packages are missing: run this once, then try again:\n' >&2
    printf '  sudo apt-get update && sudo apt-get install --no-install-recommends %s\n' "${missing[*]}" >&2
    exit 3
  fi
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  local log
  log=$(mktemp)
  trap 'rm -f "$log"' RETURN
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } \
      </dev/null >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    fail "apt-get failed: see the lines above"
  fi
  say "packages are installed ($(took))"
}

get_packages
if [ -n "$cuda" ] && ! cuda_home >/dev/null; then get_cuda; fi
