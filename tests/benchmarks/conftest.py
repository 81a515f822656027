"""The benchmarks' own modules on the path; they are scripts, not a package."""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(REPO / "benchmarks"), str(REPO / "deploy")]
