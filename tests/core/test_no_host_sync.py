"""The round's functions read no value on the host, so that a CUDA graph can capture them.

Two checks. On the CPU, a mode raises at every call whose result the host waits for. On the meta device there
are no values at all, so anything that needs one fails by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ddtree_sglang.core import (
    ancestor_mask,
    build_draft_tree,
    chain_commit_lens,
    commit_plan,
    flat_tree_mask,
    layout_draft_tree,
    tree_cell_index,
    walk_tree,
)
from tests.core.tree_cases import random_candidates

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"} | {
    "nonzero",
    "masked_select",
    "unique",
    "equal",
    "allclose",
    "is_nonzero",
}


class NoHostRead(TorchFunctionMode):
    """Raise on calls that a GPU must finish before the host can go on."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS or self._selects_by_mask(name, args):
            raise RuntimeError(f"{name} reads a value on the host")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _selects_by_mask(name: str, args: tuple[Any, ...]) -> bool:
        """Indexing by a boolean mask, and `where` of one argument, find positions: their size is a value."""
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in index)
        return name == "where" and len(args) == 1


def whole_round(device: str, batch_size: int = 2, num_nodes: int = 12, depth: int = 5) -> None:
    candidates = random_candidates(1, batch_size, depth, 9, 6)
    ids, logprobs, roots = (tensor.to(device) for tensor in (candidates.ids, candidates.logprobs, candidates.root_ids))
    prefix_lens = torch.full((batch_size,), 3).to(device)
    target_ids = torch.zeros(batch_size, num_nodes, dtype=torch.int64).to(device)
    pairs = torch.zeros(batch_size, depth, 6, 6).to(device)
    for law in (None, pairs):
        build_draft_tree(ids, logprobs, roots, num_nodes, law)  # fills the cache of index tables

    def run() -> None:
        build_draft_tree(ids, logprobs, roots, num_nodes, pairs)
        tree = build_draft_tree(ids, logprobs, roots, num_nodes)
        assert tree.is_real.shape == (batch_size, num_nodes)
        layout_draft_tree(tree, prefix_lens)
        ancestors = ancestor_mask(tree.parents, max_depth=depth)
        tree_cell_index(prefix_lens, num_nodes)
        flat_tree_mask(ancestors, prefix_lens, total_prefix_len=3 * batch_size)
        accepted = walk_tree(tree, target_ids, depth + 1)
        commit_plan(accepted)
        chain_commit_lens(tree, accepted)

    if device == "cpu":
        with NoHostRead():
            run()
    else:
        run()


def test_round_on_the_cpu_reads_nothing_on_the_host() -> None:
    whole_round("cpu")


def test_round_on_the_meta_device_needs_no_values() -> None:
    whole_round("meta")


def test_round_of_an_empty_batch_runs_through() -> None:
    """An idle data-parallel rank runs rounds without requests."""
    whole_round("cpu", batch_size=0)


HOST_READS = [
    lambda x: x[0].item(),
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: bool(x[0]),
    lambda x: int(x.sum()),
    lambda x: x.nonzero(),
    lambda x: x[x > 0],
    lambda x: x.masked_select(x > 0),
    lambda x: torch.where(x > 0),
]


@pytest.mark.parametrize("read", HOST_READS)
def test_both_guards_catch_host_reads(read: Callable[[torch.Tensor], object]) -> None:
    values = torch.ones(1)
    with NoHostRead(), pytest.raises(RuntimeError, match="reads a value on the host"):
        read(values)
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones(1, device="meta"))
