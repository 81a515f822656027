#!/usr/bin/env bash
# Set up .venv and run every test that needs no GPU, with a table of parts and seconds at the end.
#   bash tests/run.sh                          everything: style and types, unit tests, kernels, real servers, real actors
#   bash tests/run.sh fast                     within three minutes: style and types, core, engine, the workers' units
#   bash tests/run.sh tests/core -k layout     pytest with these arguments, in one run
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
bash deploy/setup.sh tests/requirements.txt
exec "$repo/.venv/bin/python" -m tests.parts "$@"
