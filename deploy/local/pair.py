"""What a server here serves: a target with its drafter, prepared where none is given, and whether a GPU will run it.

Standard library only; what needs the product runs in the Python that the caller names.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.progress import step

REPO = Path(__file__).resolve().parents[2]


class PairError(Exception):
    """The embedded target or its drafter could not be prepared; the message names the command and its exit status."""


@dataclass(frozen=True)
class Pair:
    """Folders of a target and of the drafter trained for it, as absolute paths."""

    model: str
    draft: str


def has_gpu() -> bool:
    """True when the CUDA driver is there and shows a device (CUDA_VISIBLE_DEVICES counts)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def prepare_pair(python: Path, model: str | None, draft: str | None) -> Pair:
    """The given folders; for what is None, the embedded target and the drafter that ships for it.

    `python` is an interpreter with the product installed. Raises PairError when a preparation fails.
    """
    if not model:
        with step("preparing SmolLM2-135M-Instruct"):
            model = _last_line_of([python, "-m", "ddtree_sglang.demo.prepare"])
    if not draft:
        code = "from ddtree_sglang.demo.drafter import shipped_drafter; print(shipped_drafter())"
        draft = _last_line_of([python, "-c", code])
    return Pair(str(Path(model).resolve()), str(Path(draft).resolve()))


def _last_line_of(command: Sequence[str | Path]) -> str:
    """The last line that the command writes to stdout; its stderr is shown."""
    result = subprocess.run([str(part) for part in command], cwd=REPO, stdout=subprocess.PIPE, text=True, check=False)
    lines = result.stdout.strip().splitlines()
    if result.returncode != 0 or not lines:
        raise PairError(f"`{' '.join(map(str, command[1:]))}` failed with status {result.returncode}.")
    return lines[-1]
