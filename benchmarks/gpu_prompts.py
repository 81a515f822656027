"""Token ids of held-out prompts in a model's own chat template, for a pair that was carried to a GPU.

python -m benchmarks gpu_prompts MODEL COUNT FILE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.decode import encode
from benchmarks.harness.prompts import HELD_OUT, sample_prompts


def main(argv: Sequence[str]) -> int:
    """Write them as a JSON list of lists."""
    if len(argv) != 3 or not argv[1].isdigit():
        print("usage: python -m benchmarks gpu_prompts MODEL COUNT FILE", file=sys.stderr)
        return 2
    model, count, file = argv
    encoded = encode(sample_prompts([HELD_OUT], int(count), 0), model)
    Path(file).write_text(json.dumps(encoded[HELD_OUT]) + "\n", encoding="utf-8")
    return 0
