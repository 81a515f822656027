"""The drafter that ships for the embedded target: where it lies, and whether its files are whole."""

from __future__ import annotations

import os
from pathlib import Path

from ddtree_sglang.demo.manifest import manifest_problems
from ddtree_sglang.exceptions import DemoNotInstalledError, DrafterFilesError

DRAFTER_FOLDER = Path(__file__).parent / "drafter"
DRAFTER_VARIABLE = "DDTREE_DEMO_DRAFTER"
CPU_BUDGET = 8
"""Tree budget of the demo without a GPU: of 4, 8 and 16 the fastest with this drafter on three of four kinds of
prompts, as fast as 16 on open questions; one request at a time, two CPU cores
(benchmarks/results/decode-20261129-looks-float32.md)."""


def shipped_drafter(folder: Path | None = None) -> Path:
    """Folder of the shipped DFlash drafter for SmolLM2-135M-Instruct, with the digests of its files checked.

    The folder is `folder`, else `$DDTREE_DEMO_DRAFTER`, else the package's own. A wheel has no weights in the package's
    own folder; a checkout and an editable install have them.

    Raises:
        DemoNotInstalledError: the package's own folder has no weights, as after an install from a wheel.
        DrafterFilesError: a file is missing or damaged.
    """
    named = os.environ.get(DRAFTER_VARIABLE)
    chosen = folder or (Path(named).expanduser() if named else DRAFTER_FOLDER)
    if chosen == DRAFTER_FOLDER and not (chosen / "model.safetensors").exists():
        raise DemoNotInstalledError(
            "the demo needs the weights of its drafter, which a wheel leaves out; found no model.safetensors in "
            f"{chosen}: install a checkout with pip install -e, or set {DRAFTER_VARIABLE} to its folder "
            "ddtree_sglang/demo/drafter."
        )
    problems = manifest_problems(chosen)
    if problems:
        raise DrafterFilesError(
            f"the shipped drafter in {chosen} must match its manifest, found: {'; '.join(problems)}. "
            f"Reinstall the package, set {DRAFTER_VARIABLE} to an intact copy of ddtree_sglang/demo/drafter, or pass "
            "another drafter with --speculative-draft-model-path."
        )
    return chosen
