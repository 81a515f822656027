"""Where a number comes from: commit, packages, machine, command, date. Goes into every result line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from ddtree_sglang.training.provenance import source_record

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("ddtree-sglang", "sglang", "sglang-kernel", "torch", "transformers", "triton", "flashinfer-python", "numpy")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    query = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    try:
        result = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip() or None


def portable(value: Any) -> Any:
    """A value for a result file: paths inside the repository relative to it, others by their name only."""
    if isinstance(value, list | tuple):
        return [portable(part) for part in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith(os.sep)):
        path = Path(value)
        return str(path.relative_to(REPO)) if path.is_relative_to(REPO) else path.name
    return value


def collect_provenance() -> dict[str, Any]:
    """A JSON-ready record: what `source_record` has of this checkout, the command, and the machine."""
    return {
        **source_record(Path(__file__).resolve(), PACKAGES),
        "command": ["python", "-m", "benchmarks", *portable(sys.argv[1:])],
        "cpu_model": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average_at_start": os.getloadavg()[0],
        "gpu": _gpu(),
    }
