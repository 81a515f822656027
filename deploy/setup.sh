#!/usr/bin/env bash
# Set up .venv from nothing but a Python: `bash deploy/setup.sh [requirements files]`. Sourced, it only gives find_python.
set -euo pipefail

# Print the interpreter to set up with. python3 first; a distribution whose python3 is old may have a newer one beside it.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    echo "set-up: Python 3.11 or newer is needed, found $(python3 --version 2>&1 || true); install a newer python3." >&2
    return 1
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    python=$(find_python)
    exec "$python" "$(dirname "${BASH_SOURCE[0]}")/environment.py" "$@"
fi
