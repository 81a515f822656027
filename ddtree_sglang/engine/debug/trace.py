"""Where a round's time goes: one JSON line per round, when `--speculative-ddtree-trace FILE` asks for it.

Off, it measures nothing. On, it reads the clock between stages and, on a GPU, waits for the device each time, so the
times are true and the server is slower; a round that is not written costs no more than with the trace off.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.arg_groups.overrides import resolving_view

from ddtree_sglang.config import DEFAULT_TRACE_EVERY, DEFAULT_TRACE_MIB, DDTreeConfig
from ddtree_sglang.engine.debug.bounded_file import BoundedFile

if TYPE_CHECKING:
    from ddtree_sglang.core.acceptance import AcceptedPath
    from ddtree_sglang.core.built_tree import BuiltTree

logger = logging.getLogger(__name__)

STAGES = ("prepare", "draft", "build", "verify", "accept", "commit", "context")
MIB = 2**20


class RoundTrace:
    """Collects the stage times of one round after the other and appends them to a file.

    A line holds `round`, `batch_size`, `num_nodes` (N, root included), `<stage>_ms` for each stage, `total_ms`,
    `ended_s` (a clock's time at the round's end: what lies between rounds is the rest of it), `free_slots` (of the KV
    pool, with this round's reservation taken), and per request:

    * `request_ids`, and `prefix_lens`, the tokens that were committed before the round, without the root;
    * `node_limits`, the nodes that the request allows itself, root included: its walk stays among the first of them;
    * the tree, N values each: `token_ids`, `parents` (-1 at the root and at padding), `depths`, and `path_probs`, the
      drafter's probability of the path from the root to the node (0 at padding);
    * the walk, one value per depth: `accept_index` (nodes on the path, then -1) and `emitted_ids` (tokens, then 0);
    * `commit_lens`: tokens emitted, bonus token included.

    Policy "adaptive" adds `decision`, `expected_tokens`, `expected_ms`, and `measured`: what the round so many
    `rounds_ago` is thought to have taken, and what was expected of it. That is the time between two rounds' beginnings,
    its own and the next one's (`round_times.RoundTimes` and `DeviceTimes` say whose clock tells it).
    A round's own time is not over when its line is written, and there is none behind a prefill or a pause.

    The first line that a server writes into a file also holds `server`: what it serves, with which settings, since
    when. `round` counts all rounds of the server, those that were not written too.
    """

    def __init__(
        self,
        path: str | None,
        device: str,
        server: Mapping[str, Any] | None = None,
        every: int = DEFAULT_TRACE_EVERY,
        max_bytes: int = DEFAULT_TRACE_MIB * MIB,
    ) -> None:
        self._file = BoundedFile(Path(path).expanduser(), max_bytes) if path else None
        self._server = {**(server or {}), "trace_every": every}
        self._is_named = False
        self._every = every
        self._on_gpu = str(device).startswith("cuda")
        self._times_ms: dict[str, float] = {}
        self._num_rounds = 0

    @classmethod
    def of(cls, config: DDTreeConfig, server_args: Any, device: str, rank: int) -> RoundTrace:
        """The trace that the configuration asks for; rank 0 writes it."""
        return cls(
            config.trace if rank == 0 else None,
            device,
            server_facts(config, server_args),
            every=config.trace_every or DEFAULT_TRACE_EVERY,
            max_bytes=(config.trace_mib or DEFAULT_TRACE_MIB) * MIB,
        )

    @property
    def enabled(self) -> bool:
        """Whether the round at hand is written."""
        return self._file is not None and self._num_rounds % self._every == 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage of the round."""
        if not self.enabled:
            yield
            return
        started = self._now()
        yield
        self._times_ms[name] = self._times_ms.get(name, 0.0) + 1e3 * (self._now() - started)

    def end_round(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Write the round's line if it is one to write; only then are `facts` asked for, and tensors read back.

        A disk that takes no more ends the trace, with a warning, and not the server.
        """
        if self.enabled:
            line = self._line(facts())
            try:
                self._write(line)
            except OSError as error:
                logger.warning("DDTREE: the trace ends here, its file cannot be written: %s", error)
                self._file = None
        self._num_rounds += 1
        self._times_ms.clear()

    def _line(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        line: dict[str, Any] = {"round": self._num_rounds}
        line.update({f"{name}_ms": round(self._times_ms.get(name, 0.0), 4) for name in STAGES})
        line["total_ms"] = round(sum(self._times_ms.values()), 4)
        line["ended_s"] = round(self._now(), 6)
        line.update({key: _plain(value) for key, value in facts.items()})
        return line

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(line) + "\n"
        if not self._is_named or not self._file.has_room(text):
            text = json.dumps({**line, "server": self._server}) + "\n"
            self._is_named = True
        self._file.write(text)

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


def server_facts(config: DDTreeConfig, server_args: Any) -> dict[str, Any]:
    """What a reader of the trace needs to know of its server: whose tokens these are, and which settings were on."""
    names = ("tokenizer_path", "speculative_draft_model_path", "dtype", "attention_backend")
    cfg = resolving_view(server_args)
    return {
        "model": cfg.model_path,
        **{name: getattr(cfg, name, None) for name in names},
        "num_nodes": cfg.speculative_num_draft_tokens,
        "policy": config.policy,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _plain(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.double().round(decimals=6).tolist() if value.is_floating_point() else value.tolist()
