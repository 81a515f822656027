#!/usr/bin/env bash
# Set up .venv from nothing but a Python: `bash deploy/setup.sh [requirements files]`. Sourced, it only gives find_python.
set -euo pipefail

# Print the interpreter to set up with: python3 if the pinned packages have wheels for it, one beside it that they have wheels
# for, or a python3 that is newer; for that one uv downloads another, which not every network allows.
find_python() {
    local candidate newest
    for newest in 3.13 9.9; do
        for candidate in python3 python3.13 python3.12 python3.11; do
            if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c '
import sys
newest = tuple(map(int, sys.argv[1].split(".")))
sys.exit(not (3, 11) <= sys.version_info[:2] <= newest)' "$newest" >/dev/null 2>&1; then
                echo "$candidate"
                return 0
            fi
        done
    done
    echo "set-up: Python 3.11 or newer is needed, found $(python3 --version 2>&1 || true); install a newer python3." >&2
    return 1
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    python=$(find_python)
    repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    # -P: a folder called deploy where the user stands is not ours.
    PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -P -m deploy.environment "$@"
fi
