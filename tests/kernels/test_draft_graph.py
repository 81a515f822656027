"""The tail of the drafter's graph writes the trees that a round outside a graph would have built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import BuiltTree, build_draft_tree, complete_tree
from ddtree_sglang.core.candidates import DraftCandidates, LogitTransform
from ddtree_sglang.core.tree_mask import flat_tree_mask, tree_cell_index
from ddtree_sglang.engine.graphs.drafter_tail import DraftGraphTail, GraphTrees
from ddtree_sglang.engine.stages.candidates import BlockRoots, CandidateRanking, VocabShard
from ddtree_sglang.engine.stages.pair_scores import parent_ids
from ddtree_sglang.engine.stages.trees import DeviceTrees, WantedTrees

pytestmark = pytest.mark.sglang

BLOCK, HIDDEN, VOCABULARY, NODES, TOP_K, MAX_BATCH = 5, 16, 40, 9, 8, 4


class Head:
    """A dense LM head with the product that SGLang's own has."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(device)
        self.quant_method = SimpleNamespace(apply=lambda head, hidden, bias: hidden @ head.weight.T)


def ranking(device: torch.device, scorer: Any = None, first_state: int = 1) -> CandidateRanking:
    shard = VocabShard(Head(device), VOCABULARY, 0, LogitTransform(), None)
    return CandidateRanking(shard, TOP_K, BLOCK, scorer, first_state)


def block(batch_size: int, seed: int, device: torch.device) -> tuple[SimpleNamespace, SimpleNamespace]:
    """What a captured forward hands to a hook: its output, and its batch of static inputs."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch_size * BLOCK, HIDDEN, generator=generator).to(device)
    roots = torch.randint(0, VOCABULARY, (batch_size, 1), generator=generator)
    ids = torch.cat([roots, torch.full((batch_size, BLOCK - 1), VOCABULARY - 1)], dim=1)
    prefix_lens = torch.randint(0, 9, (batch_size, 1), generator=generator)
    positions = prefix_lens + torch.arange(BLOCK)
    rows = torch.arange(batch_size, device=device)
    batch = SimpleNamespace(
        input_ids=ids.flatten().to(device), positions=positions.flatten().to(device), req_pool_indices=rows
    )
    return SimpleNamespace(hidden_states=hidden), batch


def block_roots(batch: SimpleNamespace) -> BlockRoots:
    return BlockRoots(batch.input_ids.view(-1, BLOCK)[:, 0], batch.req_pool_indices)


def eager(
    out: SimpleNamespace,
    batch: SimpleNamespace,
    device: torch.device,
    num_nodes: int = NODES,
    scorer: Any = None,
    first_state: int = 1,
) -> BuiltTree:
    """What a round outside a graph builds, by core on the host."""
    roots, prefix_lens = batch.input_ids.view(-1, BLOCK)[:, 0].cpu(), batch.positions.view(-1, BLOCK)[:, 0].cpu()
    ranked = ranking(device, scorer, first_state).rank(out.hidden_states, block_roots(batch))
    pairs = None if ranked.pair_logprobs is None else ranked.pair_logprobs.cpu()
    tree = build_draft_tree(ranked.topk_ids.cpu(), ranked.topk_logprobs.cpu(), roots, num_nodes, pairs)
    return complete_tree(tree, prefix_lens)


def tail(
    device: torch.device, flat_mask: torch.Tensor | None = None, scorer: Any = None, first_state: int = 1
) -> DraftGraphTail:
    return DraftGraphTail(
        ranking(device, scorer, first_state),
        num_nodes=NODES,
        max_batch=MAX_BATCH,
        flat_mask=flat_mask,
        device=device,
    )


class PairsOfTokens:
    """A head whose score of a candidate is an entry of a table, by the token before and the request's row."""

    top_k = TOP_K

    def __init__(self, device: torch.device) -> None:
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(9)).to(device) * 4

    def scores(self, states: torch.Tensor, roots: BlockRoots, ranked: DraftCandidates) -> torch.Tensor:
        pairs = self.table[parent_ids(ranked.topk_ids, roots).unsqueeze(3), ranked.topk_ids.unsqueeze(2)]
        return pairs * (1 + roots.rows)[:, None, None, None]


@pytest.mark.parametrize("of_pairs", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, MAX_BATCH])
def test_trees_of_every_batch_size_are_the_eager_rounds(device: torch.device, batch_size: int, of_pairs: bool) -> None:
    scorer = PairsOfTokens(device) if of_pairs else None
    hook = tail(device, scorer=scorer)
    for seed in (1, 2):
        out, batch = block(batch_size, seed, device)
        hook(None, out, batch, batch_size * BLOCK)
        found, expected = hook.trees(batch_size), eager(out, batch, device, scorer=scorer)
        assert of_pairs != torch.equal(found.tree.token_ids.cpu(), eager(out, batch, device).tree.token_ids)
        for name in ("token_ids", "parents", "depths"):
            assert torch.equal(getattr(found.tree, name).cpu(), getattr(expected.tree, name)), name
        for name in ("positions", "retrieve_index", "retrieve_next_token", "retrieve_next_sibling"):
            assert torch.equal(getattr(found.layout, name).cpu(), getattr(expected.layout, name)), name
        assert torch.equal(found.mask.cells.cpu(), expected.mask.cells)


def test_a_replay_of_a_drafter_whose_root_proposes_too_has_a_depth_for_each_row(device: torch.device) -> None:
    hook = tail(device, first_state=0)
    out, batch = block(3, 1, device)
    # Sharp states: what each row proposes is far ahead, so that the tree reaches the last.
    out.hidden_states.mul_(8)
    hook(None, out, batch, 3 * BLOCK)
    found, expected = hook.trees(3), eager(out, batch, device, first_state=0)
    for name in ("token_ids", "parents", "depths"):
        assert torch.equal(getattr(found.tree, name).cpu(), getattr(expected.tree, name)), name
    assert hook.candidates(3).topk_ids.shape == (3, BLOCK, TOP_K)
    assert int(found.tree.depths.max()) == BLOCK


def test_results_stay_at_the_same_addresses(device: torch.device) -> None:
    hook = tail(device)
    addresses = set()
    for batch_size in (1, 3, 2):
        out, batch = block(batch_size, batch_size, device)
        hook(None, out, batch, batch_size * BLOCK)
        built = hook.trees(batch_size)
        addresses.add((built.tree.token_ids.data_ptr(), built.layout.positions.data_ptr(), built.mask.cells.data_ptr()))
    assert len(addresses) == 1


def test_a_padded_replay_gives_the_real_requests_their_trees_and_mask_cells(device: torch.device) -> None:
    buffer = torch.zeros(MAX_BATCH * NODES * (40 + NODES), dtype=torch.bool, device=device)
    hook = tail(device, buffer)
    out, batch = block(MAX_BATCH, 5, device)
    batch.positions.view(MAX_BATCH, BLOCK)[2:] = torch.arange(BLOCK, device=device)  # two padding rows of no prefix
    hook(None, out, batch, MAX_BATCH * BLOCK)
    found, expected = hook.trees(2), eager(out, batch, device)
    assert torch.equal(found.tree.token_ids.cpu(), expected.tree.token_ids[:2])
    prefix_lens = batch.positions.view(MAX_BATCH, BLOCK)[:2, 0].cpu()
    cells = tree_cell_index(prefix_lens, NODES).flatten()
    flat = flat_tree_mask(expected.mask.cells[:2], prefix_lens)
    assert torch.equal(found.mask.cells.cpu()[cells], flat[cells])
    mask = DeviceTrees(ranking(device), {}).verify_mask(found, prefix_lens, int(prefix_lens.sum()))
    assert mask.custom_mask is not None
    assert len(mask.custom_mask) == len(flat)


@pytest.mark.parametrize("of_pairs", [False, True])
@pytest.mark.parametrize("num_nodes", [NODES, 4])
def test_a_round_after_a_replay_has_the_trees_that_an_eager_round_builds(
    device: torch.device, num_nodes: int, of_pairs: bool
) -> None:
    """Of the configured N the replay built them; of fewer nodes they are built of its candidates."""
    scorer = PairsOfTokens(device) if of_pairs else None
    hook = tail(device, scorer=scorer)
    out, batch = block(3, 7, device)
    hook(None, out, batch, 3 * BLOCK)
    trees = GraphTrees(ranking(device, scorer), {}, hook)
    build = trees.draft(SimpleNamespace(can_run_graph=True), block_roots(batch), WantedTrees(num_nodes))
    roots, prefix_lens = batch.input_ids.view(3, BLOCK)[:, 0], batch.positions.view(3, BLOCK)[:, 0]
    expected = eager(out, batch, device, num_nodes, scorer)
    found = build(roots.contiguous(), prefix_lens.contiguous())
    assert torch.equal(found.tree.token_ids.cpu(), expected.tree.token_ids)
    assert torch.equal(found.mask.cells.cpu(), expected.mask.cells)
    assert (found.tree.token_ids.data_ptr() == hook.trees(3).tree.token_ids.data_ptr()) == (num_nodes == NODES)


def test_a_block_outside_a_graph_is_ranked_and_built_anew(device: torch.device) -> None:
    out, batch = block(2, 3, device)
    trees = GraphTrees(ranking(device), {}, tail(device))
    build = trees.draft(SimpleNamespace(can_run_graph=False, logits_output=out), block_roots(batch), WantedTrees(NODES))
    roots, prefix_lens = batch.input_ids.view(2, BLOCK)[:, 0], batch.positions.view(2, BLOCK)[:, 0]
    found = build(roots.contiguous(), prefix_lens.contiguous())
    assert torch.equal(found.tree.token_ids.cpu(), eager(out, batch, device).tree.token_ids)
