"""After the rehearsal nothing is compiled: whatever the batch, the lengths, the addresses, with graphs and without.

No kernel runs here: launches leave the key that Triton would look for in its cache.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import DraftTree, root_trees
from ddtree_sglang.core.candidates import DraftCandidates, LogitTransform
from ddtree_sglang.core.node_penalties import PenaltyState
from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.engine.graphs.drafter_tail import DraftGraphTail, GraphTrees
from ddtree_sglang.engine.graphs.rehearsal import rehearse_penalties, rehearse_rounds, rehearse_windows
from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
from ddtree_sglang.engine.stages.candidates import BlockRoots, CandidateRanking, VocabShard
from ddtree_sglang.engine.stages.trees import DeviceTrees, MaskBuffer, WantedTrees
from tests.kernels.compiled_codes import KERNELS, PENALTY_KERNELS, WINDOW_KERNELS, record_codes

pytestmark = pytest.mark.sglang

BLOCK, HIDDEN, VOCABULARY, NODES, ROW_LEN = 16, 8, 30_000, 65, 400
TABLE = torch.zeros(64, ROW_LEN, dtype=torch.int32)
NODE_COUNTS = BudgetPolicy.by_load(NODES, 100).node_counts


class EqualPairs:
    """A head that finds all candidates equal, of as many as published ones score."""

    top_k = 16

    def scores(self, states: torch.Tensor, roots: BlockRoots, ranked: DraftCandidates) -> torch.Tensor:
        return torch.zeros(*ranked.topk_ids.shape, self.top_k)


@pytest.fixture(params=[None, EqualPairs()], ids=["plain", "pairs"])
def ranking(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> CandidateRanking:
    monkeypatch.setattr("ddtree_sglang.engine.stages.candidates.is_device_path", lambda: True)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(0))
    head = SimpleNamespace(weight=weight)
    head.quant_method = SimpleNamespace(apply=lambda head, hidden, bias: hidden @ head.weight.T)
    top_k = NODES - 1 if request.param is None else request.param.top_k
    return CandidateRanking(VocabShard(head, VOCABULARY, 0, LogitTransform(), None), top_k, BLOCK, request.param)


def shifted(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """Equal values at an address `by` elements past one that 16 divides."""
    held = torch.empty(tensor.numel() + by, dtype=tensor.dtype)
    held[by:] = tensor.flatten()
    return held[by:].view(tensor.shape)


def mask_buffer() -> MaskBuffer:
    return MaskBuffer(torch.empty(NODES * (ROW_LEN + NODES) * 48, dtype=torch.bool), 48, True, True)


def run_round(trees: DeviceTrees, num_nodes: int, batch_size: int, offset: int, drafter_out: Any) -> None:
    """The launches of one round; its inputs stand `offset` elements past aligned addresses."""
    rows, prefix_lens = torch.arange(batch_size), torch.arange(batch_size) * 7 % 90
    rows, prefix_lens, roots = (shifted(part, offset) for part in (rows, prefix_lens, rows))
    trees.inputs(TABLE, rows, prefix_lens, roots, mask_token_id=1, num_nodes=num_nodes, block_size=BLOCK)
    build = root_trees if num_nodes == 1 else trees.draft(drafter_out, BlockRoots(roots, rows), WantedTrees(num_nodes))
    built = build(roots, prefix_lens)
    target_ids = shifted(torch.zeros(batch_size, num_nodes, dtype=torch.int64), offset)
    ends = RoundEnds.none(batch_size, target_ids.device)
    two = RoundEnds(ends.end_ids.repeat(1, 2), shifted(ends.limit_lens, offset), ends.node_limits)
    for one in (ends, two, RoundEnds(ends.end_ids[:, :0], ends.limit_lens, ends.node_limits)):
        trees.walk(built, target_ids, prefix_lens, one)


def drafter_out(batch_size: int, can_run_graph: bool) -> SimpleNamespace:
    hidden = torch.zeros(batch_size * BLOCK, HIDDEN)
    return SimpleNamespace(logits_output=SimpleNamespace(hidden_states=hidden), can_run_graph=can_run_graph)


@pytest.mark.parametrize("with_buffers", [False, True])
@pytest.mark.parametrize("num_nodes", NODE_COUNTS)
def test_rounds_outside_graphs_compile_nothing(
    ranking: CandidateRanking, monkeypatch: pytest.MonkeyPatch, num_nodes: int, with_buffers: bool
) -> None:
    codes = record_codes(monkeypatch)
    rehearse_rounds(ranking, NODE_COUNTS, TABLE)
    rehearsed = set(codes)
    trees = DeviceTrees(ranking, {count: mask_buffer() for count in NODE_COUNTS} if with_buffers else {})
    for batch_size in (1, 2, 16, 49):
        for offset in (0, 1):
            run_round(trees, num_nodes, batch_size, offset, drafter_out(batch_size, can_run_graph=False))
    assert codes == rehearsed


@pytest.mark.parametrize("with_buffers", [False, True])
def test_capturing_and_rounds_after_a_replay_compile_nothing(
    ranking: CandidateRanking, monkeypatch: pytest.MonkeyPatch, with_buffers: bool
) -> None:
    codes = record_codes(monkeypatch)
    rehearse_rounds(ranking, NODE_COUNTS, TABLE)
    rehearsed = set(codes)
    buffers = {count: mask_buffer() for count in NODE_COUNTS} if with_buffers else {}
    tail = DraftGraphTail(
        ranking,
        num_nodes=NODES,
        max_batch=48,
        flat_mask=DeviceTrees(ranking, buffers).flat_mask_for(48, NODES),
        device=torch.device("cpu"),
    )
    trees = GraphTrees(ranking, buffers, tail)
    for batch_size in (1, 2, 48):
        columns = torch.zeros(batch_size * BLOCK, dtype=torch.int64)
        rows = torch.zeros(batch_size, dtype=torch.int64)
        batch = SimpleNamespace(input_ids=columns, positions=columns, req_pool_indices=rows)
        tail(None, SimpleNamespace(hidden_states=torch.zeros(len(columns), HIDDEN)), batch, len(columns))
        for num_nodes in NODE_COUNTS:
            run_round(trees, num_nodes, batch_size, 1, drafter_out(batch_size, can_run_graph=True))
    assert codes == rehearsed


def test_a_number_of_nodes_that_was_not_rehearsed_would_be_noticed(
    ranking: CandidateRanking, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = record_codes(monkeypatch)
    rehearse_rounds(ranking, (17,), TABLE)
    rehearsed = set(codes)
    assert {name for name, _ in rehearsed} == {name for _, name in KERNELS}
    run_round(DeviceTrees(ranking, {}), NODES, 2, 0, drafter_out(2, can_run_graph=False))
    assert len(codes - rehearsed) == 3


def test_rounds_with_penalties_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.kernels.node_penalties_triton import count_tokens_triton, penalize_nodes_triton

    codes = record_codes(monkeypatch)
    rehearse_penalties(BLOCK, VOCABULARY, torch.device("cpu"))
    rehearsed = set(codes)
    assert {name for name, _ in rehearsed} == {name for _, name in PENALTY_KERNELS}
    for num_rows, batch_size, num_nodes, offset in ((8, 1, 1, 0), (16, 3, NODES, 1)):
        state = PenaltyState.empty(64, num_rows, VOCABULARY, "cpu")
        slots = shifted(torch.arange(batch_size), offset)
        nodes = shifted(torch.zeros(batch_size, num_nodes, dtype=torch.int64), offset)
        tree = DraftTree(nodes, nodes, nodes, nodes.float())
        penalize_nodes_triton(shifted(torch.zeros(batch_size * num_nodes, VOCABULARY), offset), state, slots, tree)
        emitted = shifted(torch.zeros(batch_size, BLOCK, dtype=torch.int64), offset)
        count_tokens_triton(state, slots, slots, emitted, slots)
    assert codes == rehearsed


def test_rounds_with_windows_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.core.window_mask import WindowMask
    from ddtree_sglang.kernels.window_mask_triton import window_mask_into

    codes = record_codes(monkeypatch)
    rehearse_windows(NODE_COUNTS, 1023, torch.device("cpu"))
    rehearsed = set(codes)
    assert {name for name, _ in rehearsed} == {name for _, name in WINDOW_KERNELS}
    for num_nodes in NODE_COUNTS[1:]:
        for batch_size, window, offset in ((1, 1023, 0), (3, 1023, 1), (16, 8, 1)):
            mask = WindowMask.empty(batch_size, num_nodes, window, torch.device("cpu"))
            flat = shifted(torch.zeros(8, dtype=torch.uint8), offset)
            window_mask_into(mask, flat, shifted(torch.arange(batch_size), offset), num_nodes, window)
    assert codes == rehearsed
