"""What the target's runner needs per tree width on a GPU: an attention backend and verify graphs captured at it.

SGLang's backends and graphs are made for one `speculative_num_draft_tokens`. Its own adaptive speculation keeps one set
per width and swaps them (speculative/eagle_worker_v2.py, build_adaptive_runtime_state); this does the same for the
widths of a `BudgetPolicy`. The widest set is the one that the runner made at start-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sglang.srt.runtime_context import get_spec

from ddtree_sglang.engine.spec import verify_topk


@dataclass(frozen=True, slots=True)
class WidthState:
    """Backend and graphs for verifying `num_nodes` a request; no graphs where SGLang captures none."""

    num_nodes: int
    attn_backend: Any
    graph_runner: Any | None


def width_scope(num_nodes: int) -> Any:
    """Within it SGLang's configuration says `num_nodes`."""
    return get_spec().override(speculative_num_draft_tokens=num_nodes, speculative_eagle_topk=verify_topk(num_nodes))


class WidthStates:
    """The sets of one target runner, by width."""

    def __init__(self, runner: Any, states: Sequence[WidthState]) -> None:
        self._runner = runner
        self._by_width = {state.num_nodes: state for state in states}
        self._widest = max(self._by_width)

    @classmethod
    def capture(cls, runner: Any, widths: Sequence[int]) -> WidthStates:
        """Make what is missing for `widths`; the last is the runner's own. Takes memory and seconds per width."""
        own = WidthState(widths[-1], runner.attn_backend, runner.decode_cuda_graph_runner)
        return cls(runner, [*(_capture(runner, width) for width in widths[:-1]), own])

    def backend(self, num_nodes: int) -> Any:
        """The attention backend of a width."""
        return self._by_width[num_nodes].attn_backend

    def max_batch(self, configured: Sequence[int]) -> int:
        """Most requests that a graph is captured for; `configured` are the sizes asked for, used where there is none.

        A runner clamps them to the request pool (model_executor/runner/base_cuda_graph_runner.py,
        get_batch_sizes_to_capture), and the backend's mask buffer is of the clamped size: 48 by default, not 256. Trees
        for 256 would not fit it, and each round would fill a mask of its own and copy it.
        """
        graphs = self._by_width[self._widest].graph_runner
        return max(configured) if graphs is None else int(graphs.max_bs)

    @contextmanager
    def active(self, num_nodes: int) -> Iterator[None]:
        """Verify at this width within it."""
        if num_nodes == self._widest:
            yield
            return
        with width_scope(num_nodes):
            self._use(self._by_width[num_nodes])
            try:
                yield
            finally:
                self._use(self._by_width[self._widest])

    def _use(self, state: WidthState) -> None:
        self._runner.attn_backend = state.attn_backend
        self._runner.decode_cuda_graph_runner = state.graph_runner


def _capture(runner: Any, num_nodes: int) -> WidthState:
    with width_scope(num_nodes):
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
    return WidthState(num_nodes, attn_backend, graph_runner)
