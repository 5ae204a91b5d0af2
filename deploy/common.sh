# Sourced by the scripts of this folder: where things are, and how they speak.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MODELS=${TOROID_MODELS:-$HOME/.cache/toroid/models}

say() { printf '== %s\n' "$*" >&2; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Seconds since this shell began, for "done in 12 s".
took() { printf '%d s' "$SECONDS"; }
