#!/usr/bin/env bash
# Prove the GPU path on a machine with one NVIDIA GPU: bash benchmarks/gpu_proof.sh --help lists sections and flags.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
[[ -n "${PYTHON:-}" || ! -x "$repo/.venv/bin/python" ]] || python="$repo/.venv/bin/python"
# -P: a folder called benchmarks where the user stands is not ours.
PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -P -m benchmarks gpu_proof "$@"
