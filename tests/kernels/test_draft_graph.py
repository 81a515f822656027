"""The tail of the drafter's graph writes the trees that a round outside a graph would have built."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ddtree_sglang.core.tree_mask import flat_tree_mask, tail_cell_index
from ddtree_sglang.engine.graphs.drafter_tail import DraftGraphTail
from ddtree_sglang.engine.stages.candidates import VocabShard, rank_candidates
from ddtree_sglang.engine.stages.trees import MaskBuffer, TreeStage

pytestmark = pytest.mark.sglang

BLOCK, HIDDEN, VOCABULARY, NODES, TOP_K, MAX_BATCH = 5, 16, 40, 9, 8, 4


class Head:
    """A dense LM head with the product that SGLang's own has."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(device)
        self.quant_method = SimpleNamespace(apply=lambda head, hidden, bias: hidden @ head.weight.T)


def shard(device: torch.device) -> VocabShard:
    return VocabShard(Head(device), VOCABULARY, 0, 1.0, None, None)


def block(batch_size: int, seed: int, device: torch.device) -> tuple[SimpleNamespace, SimpleNamespace]:
    """What a captured forward hands to a hook: its output, and its batch of static inputs."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch_size * BLOCK, HIDDEN, generator=generator).to(device)
    roots = torch.randint(0, VOCABULARY, (batch_size, 1), generator=generator)
    ids = torch.cat([roots, torch.full((batch_size, BLOCK - 1), VOCABULARY - 1)], dim=1)
    prefix_lens = torch.randint(0, 9, (batch_size, 1), generator=generator)
    positions = prefix_lens + torch.arange(BLOCK)
    batch = SimpleNamespace(input_ids=ids.flatten().to(device), positions=positions.flatten().to(device))
    return SimpleNamespace(hidden_states=hidden), batch


def eager(out: SimpleNamespace, batch: SimpleNamespace, device: torch.device) -> object:
    hidden = out.hidden_states.view(-1, BLOCK, HIDDEN)[:, 1:]
    roots, prefix_lens = batch.input_ids.view(-1, BLOCK)[:, 0].cpu(), batch.positions.view(-1, BLOCK)[:, 0].cpu()
    ranked = rank_candidates(hidden, shard(device), TOP_K)
    on_host = type(ranked)(ranked.topk_ids.cpu(), ranked.topk_logprobs.cpu())
    return TreeStage(BLOCK).build(on_host, roots, prefix_lens, NODES)


def tail(device: torch.device, flat_mask: torch.Tensor | None = None, keep_candidates: bool = False) -> DraftGraphTail:
    stage = TreeStage(BLOCK)
    if flat_mask is not None:
        stage._buffers[NODES] = MaskBuffer(flat_mask, MAX_BATCH)
    return DraftGraphTail(
        shard(device),
        stage,
        num_nodes=NODES,
        block_size=BLOCK,
        top_k=TOP_K,
        max_batch=MAX_BATCH,
        keep_candidates=keep_candidates,
        device=device,
    )


@pytest.mark.parametrize("batch_size", [1, 3, MAX_BATCH])
def test_trees_of_every_batch_size_are_the_eager_rounds(device: torch.device, batch_size: int) -> None:
    hook = tail(device)
    for seed in (1, 2):
        out, batch = block(batch_size, seed, device)
        hook(None, out, batch, batch_size * BLOCK)
        found, expected = hook.trees(batch_size), eager(out, batch, device)
        for name in ("token_ids", "parents", "depths"):
            assert torch.equal(getattr(found.tree, name).cpu(), getattr(expected.tree, name)), name
        for name in ("positions", "retrieve_index", "retrieve_next_token", "retrieve_next_sibling"):
            assert torch.equal(getattr(found.layout, name).cpu(), getattr(expected.layout, name)), name
        assert torch.equal(found.mask.cpu(), expected.mask)


def test_results_stay_at_the_same_addresses(device: torch.device) -> None:
    hook = tail(device)
    addresses = set()
    for batch_size in (1, 3, 2):
        out, batch = block(batch_size, batch_size, device)
        hook(None, out, batch, batch_size * BLOCK)
        built = hook.trees(batch_size)
        addresses.add((built.tree.token_ids.data_ptr(), built.layout.positions.data_ptr(), built.mask.data_ptr()))
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
    cells = tail_cell_index(prefix_lens, NODES).flatten()
    flat = flat_tree_mask(expected.mask[:2], prefix_lens)
    assert torch.equal(found.mask.cpu()[cells], flat[cells])
    custom = TreeStage.custom_mask(found, prefix_lens, int(prefix_lens.sum()))
    assert len(custom) == len(flat)


def test_candidates_stay_for_trees_of_another_width(device: torch.device) -> None:
    hook = tail(device, keep_candidates=True)
    out, batch = block(3, 7, device)
    hook(None, out, batch, 3 * BLOCK)
    assert torch.equal(hook.trees(3).tree.token_ids.cpu(), eager(out, batch, device).tree.token_ids)
    expected = rank_candidates(out.hidden_states.view(-1, BLOCK, HIDDEN)[:, 1:], shard(device), TOP_K)
    found = hook.candidates(3)
    assert torch.equal(found.topk_ids, expected.topk_ids)
    assert torch.equal(found.topk_logprobs, expected.topk_logprobs)


def test_candidates_that_were_not_kept_are_not_handed_out(device: torch.device) -> None:
    with pytest.raises(AssertionError, match="without keep_candidates"):
        tail(device).candidates(1)
