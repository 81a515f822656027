"""Where a round's mask goes: the host's, a backend's own buffer of which only tail cells are read, or a filled one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import BuiltTree, build_draft_tree, complete_tree, root_trees
from ddtree_sglang.core.tree_mask import flat_tree_mask

pytestmark = pytest.mark.sglang

NUM_NODES = 4


def candidates(batch_size: int) -> Any:
    from ddtree_sglang.engine.stages.candidates import DraftCandidates

    generator = torch.Generator().manual_seed(batch_size)
    logprobs = torch.log_softmax(torch.randn(batch_size, 2, 3, generator=generator), dim=-1)
    ordered, ids = logprobs.sort(dim=-1, descending=True)
    return DraftCandidates(ids, ordered)


def backend(**changes: Any) -> SimpleNamespace:
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    held = {"buffer": torch.zeros(100, dtype=torch.uint8), "mode": TreeMaskMode.FULL_MASK, "max_bs": 3, "is_read": True}
    return SimpleNamespace(verify_mask=SimpleNamespace(**held | changes))


def test_on_the_host_a_round_is_cores_tree() -> None:
    from ddtree_sglang.engine.stages.trees import TreeStage

    ranked, roots, prefix_lens = candidates(2), torch.tensor([7, 8]), torch.tensor([3, 5])
    built = TreeStage(3).build(ranked, roots, prefix_lens, NUM_NODES)
    tree = build_draft_tree(ranked.topk_ids, ranked.topk_logprobs, roots, NUM_NODES)
    expected = complete_tree(tree, prefix_lens)
    assert torch.equal(built.tree.token_ids, tree.token_ids)
    assert torch.equal(built.layout.positions, expected.layout.positions)
    assert torch.equal(built.mask, expected.mask)


def test_buffer_of_a_backend_is_taken_as_bool_and_only_up_to_its_batch() -> None:
    from ddtree_sglang.engine.stages.trees import TreeStage

    target = backend()
    stage = TreeStage(3)
    assert stage.flat_mask_for(1, NUM_NODES) is None
    stage.use_buffer_of(target, NUM_NODES)
    taken = stage.flat_mask_for(3, NUM_NODES)
    assert taken is not None
    assert taken.dtype == torch.bool
    assert taken.data_ptr() == target.verify_mask.buffer.data_ptr()
    assert stage.flat_mask_for(4, NUM_NODES) is None
    assert stage.flat_mask_for(1, NUM_NODES + 1) is None


@pytest.mark.parametrize("change", ["absent", "unread", "without prefix"])
def test_buffers_of_another_form_are_left_alone(change: str) -> None:
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    from ddtree_sglang.engine.stages.trees import tail_mask_buffer

    target = {
        "absent": SimpleNamespace(verify_mask=None),
        "unread": backend(is_read=False),
        "without prefix": backend(mode=TreeMaskMode.QLEN_ONLY),
    }[change]
    assert tail_mask_buffer(target) is None


def test_flat_buffer_is_handed_on_as_far_as_it_is_used() -> None:
    from ddtree_sglang.engine.stages.trees import TreeStage

    buffer = torch.zeros(100, dtype=torch.bool)
    built = BuiltTree.empty(2, NUM_NODES, torch.device("cpu"), buffer)
    mask = TreeStage.custom_mask(built, torch.tensor([3, 5]), 8)
    assert mask.shape == (NUM_NODES * (8 + 2 * NUM_NODES),)
    assert mask.data_ptr() == buffer.data_ptr()
    # A host that knows only an upper bound gives more, one that knows nothing gives all.
    assert len(TreeStage.custom_mask(built, torch.tensor([3, 5]), 10)) == NUM_NODES * 18
    assert len(TreeStage.custom_mask(built, torch.tensor([3, 5]), None)) == 100


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_root_alone_is_verified_without_a_mask(device: str) -> None:
    """A chain: on a GPU (meta stands for it) a mask would be filled anew in every round, for nobody."""
    from ddtree_sglang.engine.stages.trees import TreeStage

    roots, prefix_lens = torch.tensor([7, 8], device=device), torch.tensor([3, 5], device=device)
    assert TreeStage.custom_mask(root_trees(roots, prefix_lens), prefix_lens, 8) is None


def test_filled_mask_has_true_prefix_columns() -> None:
    ranked, roots, prefix_lens = candidates(2), torch.tensor([7, 8]), torch.tensor([3, 5])
    built = complete_tree(build_draft_tree(ranked.topk_ids, ranked.topk_logprobs, roots, NUM_NODES), prefix_lens)
    flat, offset = flat_tree_mask(built.mask, prefix_lens, 8), 0
    for row, prefix in enumerate(prefix_lens.tolist()):
        cells = flat[offset : offset + NUM_NODES * (prefix + NUM_NODES)].view(NUM_NODES, prefix + NUM_NODES)
        assert bool(cells[:, :prefix].all())
        assert torch.equal(cells[:, prefix:], built.mask[row])
        offset += cells.numel()


def test_flat_mask_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flat mask must be 1-D torch\.bool, got \(9,\) torch\.uint8"):
        BuiltTree.empty(1, 3, torch.device("cpu"), torch.zeros(9, dtype=torch.uint8))


def test_a_tree_of_the_root_alone_is_the_one_node_tree() -> None:
    ranked, roots, prefix_lens = candidates(2), torch.tensor([7, 8]), torch.tensor([3, 5])
    expected = complete_tree(build_draft_tree(ranked.topk_ids, ranked.topk_logprobs, roots, 1), prefix_lens)
    found = root_trees(roots, prefix_lens)
    found.tree.check_invariants()
    for part in ("tree", "layout"):
        for name, value in vars(getattr(expected, part)).items():
            assert torch.equal(getattr(getattr(found, part), name), value), name
    assert torch.equal(found.mask, expected.mask)
