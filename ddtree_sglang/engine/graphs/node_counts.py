"""What the target's runner needs per number of nodes on a GPU: an attention backend and verify graphs captured at it.

SGLang's backends and graphs are made for one `speculative_num_draft_tokens`. Its own adaptive speculation keeps one set
per number and swaps them (speculative/eagle_worker_v2.py, build_adaptive_runtime_state); this module does so for the
numbers of a `BudgetPolicy`. The set of the configured number, the largest, is the one that the runner made at start-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sglang.srt.runtime_context import get_spec

from ddtree_sglang.engine.spec import verify_topk


@dataclass(frozen=True, slots=True)
class VerifyState:
    """Backend and graphs for verifying one number of nodes; no graphs where SGLang captures none."""

    attn_backend: Any
    graph_runner: Any | None


def node_count_scope(num_nodes: int) -> Any:
    """Within it SGLang's configuration says `num_nodes`."""
    return get_spec().override(speculative_num_draft_tokens=num_nodes, speculative_eagle_topk=verify_topk(num_nodes))


class NodeCountStates:
    """The sets of one target runner: its own and, by number of nodes, those for fewer, of which there may be none."""

    def __init__(self, runner: Any, fewer: Mapping[int, VerifyState]) -> None:
        self._runner = runner
        self._fewer = fewer

    @classmethod
    def capture(cls, runner: Any, node_counts: Sequence[int]) -> NodeCountStates:
        """Make what is missing; the last number is the runner's own. Takes memory and seconds for each other one."""
        return cls(runner, {num_nodes: _capture(runner, num_nodes) for num_nodes in node_counts[:-1]})

    def backend(self, num_nodes: int) -> Any:
        """The attention backend that verifies `num_nodes`."""
        state = self._fewer.get(num_nodes)
        return self._runner.attn_backend if state is None else state.attn_backend

    def max_batch(self, configured: Sequence[int]) -> int:
        """Most requests that a graph is captured for; `configured` are the sizes asked for, used where there is none.

        A runner clamps them to the request pool (model_executor/runner/base_cuda_graph_runner.py,
        get_batch_sizes_to_capture), and the backend's mask buffer is of the clamped size: 48 by default, not 256. Trees
        for 256 would not fit it, and each round would fill a mask of its own and copy it.
        """
        graphs = self._runner.decode_cuda_graph_runner
        return max(configured) if graphs is None else int(graphs.max_bs)

    @contextmanager
    def active(self, num_nodes: int) -> Iterator[None]:
        """Within it the runner verifies `num_nodes`; for a number without a set of its own, nothing changes."""
        state = self._fewer.get(num_nodes)
        if state is None:
            yield
            return
        own = VerifyState(self._runner.attn_backend, self._runner.decode_cuda_graph_runner)
        with node_count_scope(num_nodes):
            self._use(state)
            try:
                yield
            finally:
                self._use(own)

    def _use(self, state: VerifyState) -> None:
        self._runner.attn_backend = state.attn_backend
        self._runner.decode_cuda_graph_runner = state.graph_runner


def _capture(runner: Any, num_nodes: int) -> VerifyState:
    with node_count_scope(num_nodes):
        before = runner.init_new_workspace
        try:
            attn_backend = runner._get_attention_backend(init_new_workspace=True)
        finally:
            runner.init_new_workspace = before
        graph_runner = None
        if runner.decode_cuda_graph_runner is not None:
            spec = get_spec()
            graph_runner = runner._decode_cuda_graph_runner_cls()(
                runner,
                attn_backend=attn_backend,
                speculative_num_steps=int(spec.speculative_num_steps),
                speculative_num_draft_tokens=num_nodes,
            )
    return VerifyState(attn_backend, graph_runner)
