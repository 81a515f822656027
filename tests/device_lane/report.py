"""One line per batch that the scheduler runs: whose it is, launches outside graphs, host reads, bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.device_lane.device import counts
from tests.device_lane.settings import LaneSettings


@cache
def _file(rank: int) -> Path | None:
    return LaneSettings.from_environment().report_of_rank(rank)


def report_batch(original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the batch and write its line."""
    from sglang.srt.runtime_context import get_parallel

    between = counts.take()
    kind, size, rids = batch.forward_mode.name, len(batch.reqs), [request.rid for request in batch.reqs]
    result = original(scheduler, batch, *args, **kwargs)
    path = _file(int(get_parallel().tp_rank))
    if path is not None:
        taken = counts.take()
        line = {"mode": kind, "batch_size": size, "rids": rids, **vars(taken), "launches": sum(taken.launches.values())}
        # Of DDTREE's rounds, N; stock results have no such field.
        line["nodes"] = getattr(result, "num_nodes", None)
        line["by_name"] = dict(taken.launches)
        # What the scheduler did since the last batch: its results looked at, this batch's slots reserved.
        line["between"] = vars(between)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return result
