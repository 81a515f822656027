#!/usr/bin/env bash
# Set up .venv and run every test that needs no GPU: style and types, then the unit part, kernels, real servers.
# Arguments go to pytest, in one run instead of the two: bash tests/run.sh tests/core -k layout
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
bash deploy/setup.sh tests/requirements.txt
bin="$repo/.venv/bin"
# The checkers and shellcheck are started by name in some tests.
export PATH="$bin:$PATH"

pytest=("$bin/python" -m pytest)

if (($#)); then
    exec "${pytest[@]}" "$@"
fi

failed=()
part() {
    local title=$1 started=$SECONDS status=0
    shift
    echo "== $title"
    "$@" || status=$?
    echo "== $title: $((SECONDS - started)) s, exit status $status"
    # 5: no test in this part, which is a failure too: an empty part proves nothing.
    ((status == 0)) || failed+=("$title")
}

part "ruff check" "$bin/ruff" check .
part "ruff format" "$bin/ruff" format --check .
part "mypy" "$bin/mypy"
part "mypy deploy" "$bin/mypy" deploy
# A file stays in one process: some share servers or folders among their tests.
unit=("${pytest[@]}" -n 2 --dist loadfile --ignore=tests/e2e --ignore=tests/e2e_ray --ignore=tests/kernels --durations=10)
part "unit tests" "${unit[@]}" -m "not slow and not e2e and not gpu"
part "unit tests that take more than ten seconds each" "${unit[@]}" -m "slow and not e2e and not gpu"
# Triton chooses its interpreter when it is imported, so these run in a process of their own.
part "kernels, interpreted" env TRITON_INTERPRET=1 "${pytest[@]}" tests/kernels
part "real servers" "${pytest[@]}" -m "e2e and not gpu" --durations=10 tests/e2e
# A part of its own: what runs before it has freed its memory. Slow: minutes each; bash tests/run.sh tests/e2e_ray
part "real actors" "${pytest[@]}" -m "e2e and not gpu and not slow" --durations=10 tests/e2e_ray

if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
