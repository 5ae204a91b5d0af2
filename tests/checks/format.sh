#!/usr/bin/env bash
# format.sh: every C++ file is as clang-format 14 writes it. To mend: git ls-files '*.h' '*.cc' |
# xargs clang-format-14 -i
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v clang-format-14 >/dev/null || { echo "format.sh: clang-format-14 is missing" >&2; exit 1; }
git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format-14 --dry-run -Werror
# Negative control: two blanks too many are noticed.
if printf 'int  x  = 1;\n' | clang-format-14 --dry-run -Werror --assume-filename=x.cc 2>/dev/null; then
  echo "format.sh: a badly formatted line passes" >&2
  exit 1
fi
echo "format: ok, $(git ls-files '*.h' '*.cc' | wc -l) files"
