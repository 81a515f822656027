"""The drafter that ships with the package, checked before it is handed out."""

from __future__ import annotations

from pathlib import Path

from ddtree_sglang.demo.manifest import manifest_problems
from ddtree_sglang.exceptions import DrafterFilesError

DRAFTER_FOLDER = Path(__file__).parent / "drafter"
CPU_BUDGET = 8
"""Tree budget of the demo without a GPU: the fastest of 2, 4, 8 and 16 with this drafter, one request at a time on two
CPU cores (benchmarks/results/decode-20261126T061052Z.md)."""


def shipped_drafter(folder: Path = DRAFTER_FOLDER) -> Path:
    """Folder of the shipped DFlash drafter for SmolLM2-135M-Instruct, digests checked.

    Raises:
        DrafterFilesError: a file is missing or damaged (an incomplete checkout or install).
    """
    problems = manifest_problems(folder)
    if problems:
        raise DrafterFilesError(
            f"the shipped drafter in {folder} must match its manifest, found: {'; '.join(problems)}. "
            "Reinstall the package, or pass another drafter with --speculative-draft-model-path."
        )
    return folder
