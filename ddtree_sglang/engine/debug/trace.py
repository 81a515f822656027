"""Where a round's time goes: one JSON line per round, when `--speculative-ddtree-trace FILE` asks for it.

Off, it measures nothing. On, it reads the clock between stages and, on a GPU, waits for the device each time, so the
times are true and the server is slower.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ddtree_sglang.core.acceptance import AcceptedPath
    from ddtree_sglang.core.built_tree import BuiltTree

STAGES = ("prepare", "draft", "build", "verify", "accept", "commit", "context")


class RoundTrace:
    """Collects the stage times of one round after the other and appends them to a file.

    A line holds `round`, `batch_size`, `num_nodes` (N, root included), `<stage>_ms` for each stage, `total_ms`,
    `ended_s` (a clock's time at the round's end: what lies between rounds is the rest of it), `free_slots` (of the KV
    pool, with this round's reservation taken), and per request:

    * `request_ids`, and `prefix_lens`, the tokens that were committed before the round, without the root;
    * the tree, N values each: `token_ids`, `parents` (-1 at the root and at padding), `depths`, and `path_probs`, the
      drafter's probability of the path from the root to the node (0 at padding);
    * the walk, one value per depth: `accept_index` (nodes on the path, then -1) and `emitted_ids` (tokens, then 0);
    * `commit_lens`: tokens emitted, bonus token included.
    """

    def __init__(self, path: str | None, device: str) -> None:
        self._file = Path(path).expanduser().open("a", encoding="utf-8", buffering=1) if path else None
        self._on_gpu = str(device).startswith("cuda")
        self._times_ms: dict[str, float] = {}
        self._num_rounds = 0

    @property
    def enabled(self) -> bool:
        """Whether a file was asked for."""
        return self._file is not None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage of the round."""
        if self._file is None:
            yield
            return
        started = self._now()
        yield
        self._times_ms[name] = self._times_ms.get(name, 0.0) + 1e3 * (self._now() - started)

    def end_round(self, **facts: Any) -> None:
        """Write the round's line; tensors among the facts are read back here."""
        if self._file is None:
            return
        line: dict[str, Any] = {"round": self._num_rounds}
        line.update({f"{name}_ms": round(self._times_ms.get(name, 0.0), 4) for name in STAGES})
        line["total_ms"] = round(sum(self._times_ms.values()), 4)
        line["ended_s"] = round(self._now(), 6)
        line.update({key: _plain(value) for key, value in facts.items()})
        self._file.write(json.dumps(line) + "\n")
        self._num_rounds += 1
        self._times_ms.clear()

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def facts_of_trees(built: BuiltTree, accepted: AcceptedPath) -> dict[str, Any]:
    """What a line says of a round's trees and the paths through them, by name; tensors are not read back yet."""
    tree = built.tree
    return {
        "num_nodes": tree.num_nodes,
        "commit_lens": accepted.commit_lens,
        "accept_index": accepted.accept_index,
        "emitted_ids": accepted.token_ids,
        "token_ids": tree.token_ids,
        "parents": tree.parents,
        "depths": tree.depths,
        "path_probs": tree.logprobs.exp(),
    }


def _plain(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.double().round(decimals=6).tolist() if value.is_floating_point() else value.tolist()
