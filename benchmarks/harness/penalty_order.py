"""Servers that import this module apply SGLang's penalties in one order: what is added first, then what scales.

Without overlap SGLang's plain decoding applies them in the order of a Python set of classes, which is that of their
addresses (sampling/penaltylib/orchestrator.py): a repetition penalty beside a presence penalty means one thing in one
process and another in the next, and no environment variable decides which. Under overlap, and for every speculative
algorithm, the order is the one that is fixed here (sampling_batch_info.py, `update_penalties`).

`python -m benchmarks.harness.penalty_order FLAGS` is SGLang's `sglang.launch_server` with that order. The processes
that it spawns import this module, too, as Python's `spawn` does with whatever was started.
"""

from __future__ import annotations

import runpy
from typing import Any

from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator

from deploy.local.server_process import LAUNCH_SERVER

_original = BatchedPenalizerOrchestrator.__init__


def _make_in_order(self: Any, *arguments: Any, **options: Any) -> None:
    _original(self, *arguments, **options)
    self.penalizers = dict(
        sorted(self.penalizers.items(), key=lambda item: (item[0].is_multiplicative, item[0].__name__))
    )


BatchedPenalizerOrchestrator.__init__ = _make_in_order  # type: ignore[method-assign]

if __name__ == "__main__":
    runpy.run_module(LAUNCH_SERVER, run_name="__main__")
