#!/usr/bin/env bash
# From nothing to an answer: set up .venv, prepare the model, serve it with DDTREE, stream one answer, keep serving.
# `bash deploy/run.sh --help` lists the flags.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/setup.sh
source "$here/setup.sh"
python=$(find_python)
# -P: a folder called deploy where the user stands is not ours.
PYTHONPATH="$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -P -m deploy.serve_demo "$@"
