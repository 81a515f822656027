"""The two kinds of trees: what they build, and where their masks go."""

from __future__ import annotations

import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import BuiltTree, DraftTree, build_draft_tree, complete_tree, root_trees
from ddtree_sglang.core.tree_mask import FlatMask

pytestmark = pytest.mark.sglang

NUM_NODES = 4


RANKED_IDS = torch.tensor([[[2, 0, 1], [1, 2, 0]], [[1, 0, 2], [0, 1, 2]]])
RANKED_LOGPROBS = torch.tensor([[[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], [[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]]).log()
ROOTS, PREFIX_LENS = torch.tensor([7, 8]), torch.tensor([3, 5])


class FixedRanking:
    """Two requests' candidates, whatever the drafter's states are."""

    depth, max_path_len = 2, 3

    def rank(self, _hidden: object, _roots: object) -> Any:
        from ddtree_sglang.engine.stages.candidates import DraftCandidates

        return DraftCandidates(RANKED_IDS, RANKED_LOGPROBS)


def expected_trees() -> BuiltTree:
    tree = build_draft_tree(RANKED_IDS, RANKED_LOGPROBS, ROOTS, NUM_NODES)
    return complete_tree(tree, PREFIX_LENS)


def drafter_out() -> SimpleNamespace:
    return SimpleNamespace(logits_output=SimpleNamespace(hidden_states=None), can_run_graph=False)


def backend(**changes: Any) -> SimpleNamespace:
    """A backend with a mask of the flat layout, whose kind is not known: FA3's module needs a GPU's libraries."""
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    held = {"buffer": torch.zeros(100, dtype=torch.uint8), "mode": TreeMaskMode.FULL_MASK, "max_bs": 3, "is_read": True}
    return SimpleNamespace(verify_mask=SimpleNamespace(**held | changes))


def test_on_the_host_a_round_is_cores_tree() -> None:
    from ddtree_sglang.engine.stages.trees import HostTrees, WantedTrees

    built = HostTrees(FixedRanking()).draft(drafter_out(), None, WantedTrees(NUM_NODES))(ROOTS, PREFIX_LENS)
    expected = expected_trees()
    assert torch.equal(built.tree.token_ids, expected.tree.token_ids)
    assert torch.equal(built.layout.positions, expected.layout.positions)
    assert torch.equal(built.mask.cells, expected.mask.cells)


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_a_tree_that_is_cut_on_the_host_is_the_best_tree_of_that_many(kept: int) -> None:
    from ddtree_sglang.engine.stages.trees import HostTrees, WantedTrees

    asked = []

    def cut(tree: DraftTree) -> int:
        asked.append(tree.num_nodes)
        return kept

    built = HostTrees(FixedRanking()).draft(drafter_out(), None, WantedTrees(NUM_NODES, cut=cut))(ROOTS, PREFIX_LENS)
    expected = complete_tree(build_draft_tree(RANKED_IDS, RANKED_LOGPROBS, ROOTS, kept), PREFIX_LENS)
    assert asked == [NUM_NODES]
    for part in ("tree", "layout"):
        for field in dataclasses.fields(getattr(built, part)):
            assert torch.equal(getattr(getattr(built, part), field.name), getattr(getattr(expected, part), field.name))
    assert torch.equal(built.mask.cells, expected.mask.cells)


@pytest.mark.parametrize(
    ("platform", "kind"), [("cuda.CudaSRTPlatform", "DeviceTrees"), ("cpu.CpuSRTPlatform", "HostTrees")]
)
def test_the_platform_chooses_the_trees(platform: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import platforms

    from ddtree_sglang.engine.stages.trees import make_trees

    module, name = platform.split(".")
    chosen = getattr(importlib.import_module(f"sglang.srt.platforms.{module}"), name)()
    monkeypatch.setattr(platforms, "_current_platform", chosen)
    assert type(make_trees(FixedRanking())).__name__ == kind


def test_the_embedded_platform_of_a_cpu_is_no_device() -> None:
    from ddtree_sglang.cpu_platform.platform import DDTreeCpuPlatform

    assert not DDTreeCpuPlatform.capabilities.supports_triton


def test_buffer_of_a_backend_is_taken_as_bool_and_only_up_to_its_batch() -> None:
    from ddtree_sglang.engine.stages.trees import DeviceTrees, mask_buffers

    target = backend()
    assert DeviceTrees(FixedRanking(), {}).flat_mask_for(1, NUM_NODES) is None
    trees = DeviceTrees(FixedRanking(), mask_buffers({NUM_NODES: target}, deterministic=False))
    taken = trees.flat_mask_for(3, NUM_NODES)
    assert taken is not None
    assert taken.dtype == torch.bool
    assert taken.data_ptr() == target.verify_mask.buffer.data_ptr()
    assert trees.flat_mask_for(4, NUM_NODES) is None
    assert trees.flat_mask_for(1, NUM_NODES + 1) is None


@pytest.mark.parametrize("change", ["absent", "unread", "without prefix"])
def test_buffers_of_another_form_are_left_alone(change: str) -> None:
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    from ddtree_sglang.engine.stages.trees import mask_buffers

    target = {
        "absent": SimpleNamespace(verify_mask=None),
        "unread": backend(is_read=False),
        "without prefix": backend(mode=TreeMaskMode.QLEN_ONLY),
    }[change]
    assert mask_buffers({NUM_NODES: target}, deterministic=False) == {}


def device_mask(built: BuiltTree, total_prefix_len: int | None) -> torch.Tensor | None:
    from ddtree_sglang.engine.stages.trees import DeviceTrees

    mask = DeviceTrees(FixedRanking(), {}).verify_mask(built, PREFIX_LENS, total_prefix_len)
    assert mask.ancestor_mask is None  # the CPU's attention alone reads it
    return mask.custom_mask


def test_flat_buffer_is_handed_on_as_far_as_it_is_used() -> None:
    buffer = torch.zeros(100, dtype=torch.bool)
    built = BuiltTree.empty(2, NUM_NODES, torch.device("cpu"), buffer)
    mask = device_mask(built, 8)
    assert mask is not None
    assert mask.shape == (NUM_NODES * (8 + 2 * NUM_NODES),)
    assert mask.data_ptr() == buffer.data_ptr()
    # A host that knows only an upper bound gives more, one that knows nothing gives all.
    assert device_mask(built, 10).numel() == NUM_NODES * 18
    assert device_mask(built, None).numel() == 100


CONTEXT_LEN = 9


def engine_triton_backend(max_batch: int) -> Any:
    """SGLang's Triton backend with the buffers of a verify graph, and none that need a model."""
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
    from sglang.srt.layers.attention.verify_mask import VerifyMask
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    target = object.__new__(TritonAttnBackend)
    cells = torch.ones(max_batch * NUM_NODES * (CONTEXT_LEN + NUM_NODES), dtype=torch.uint8)
    target._verify_mask = VerifyMask(cells, TreeMaskMode.FULL_MASK, max_batch)
    target.device, target.sliding_window_size = torch.device("cpu"), None
    target.qo_indptr, target.kv_indptr, target.mask_indptr = (torch.zeros(9, dtype=torch.int64) for _ in range(3))
    target.cuda_graph_kv_indices = target.window_kv_indptr = None
    target.kv_index_translator = SimpleNamespace(pack_read_stream=lambda *_, **__: None)
    return target


def replayed_mask(target: Any, built: BuiltTree, custom_mask: torch.Tensor) -> torch.Tensor:
    """The flat layout as a replay's kernel finds it in the buffer, with what lies behind it."""
    spec_info = SimpleNamespace(custom_mask=custom_mask, num_tokens_per_req=NUM_NODES)
    batch_size = len(built.tree.token_ids)
    mask = target._update_target_verify_buffers(
        None, batch_size, PREFIX_LENS[:batch_size], spec_info, torch.arange(batch_size)
    )[2]
    return mask.view(torch.bool)


@pytest.mark.parametrize("max_batch", [2, 3])
@pytest.mark.parametrize("total_prefix_len", [8, 40])
def test_under_deterministic_inference_a_replay_finds_the_whole_mask(max_batch: int, total_prefix_len: int) -> None:
    """Triton's kernel reads the prefix columns there; a bound past the buffer's size must not break the copy."""
    from ddtree_sglang.engine.stages.trees import DeviceTrees, mask_buffers

    target, built = engine_triton_backend(max_batch), expected_trees()
    trees = DeviceTrees(FixedRanking(), mask_buffers({NUM_NODES: target}, deterministic=True))
    assert trees.flat_mask_for(2, NUM_NODES) is None
    mask = trees.verify_mask(built, PREFIX_LENS, total_prefix_len).custom_mask
    assert mask is not None
    target._verify_mask.buffer.zero_()
    expected = built.mask.flat(PREFIX_LENS)
    assert torch.equal(replayed_mask(target, built, mask)[: len(expected)], expected)


def tail_written(target: Any, built: BuiltTree) -> tuple[BuiltTree, torch.Tensor]:
    """Trees whose mask is the backend's buffer, its tree cells written, and what the buffer then holds."""
    from ddtree_sglang.core import tree_cell_index

    buffer = target._verify_mask.buffer.view(torch.bool)
    buffer[tree_cell_index(PREFIX_LENS, NUM_NODES).flatten()] = built.mask.cells.flatten()
    return BuiltTree(built.tree, built.layout, FlatMask(buffer, NUM_NODES)), buffer.clone()


@pytest.mark.parametrize("of_a_pair", [False, True])
def test_triton_is_handed_no_more_of_its_own_buffer_than_its_address(of_a_pair: bool) -> None:
    """A replay copies what it is handed onto itself, and reads the buffer as it is."""
    from sglang.srt.layers.attention.hybrid_attn_backend import HybridAttnBackend

    from ddtree_sglang.engine.stages.trees import DeviceTrees, mask_buffers

    target = engine_triton_backend(3)
    backend = target
    if of_a_pair:
        backend = object.__new__(HybridAttnBackend)
        backend.spec_attn_is_decode, backend.prefill_backend, backend.decode_backend = False, target, None
    trees = DeviceTrees(FixedRanking(), mask_buffers({NUM_NODES: backend}, deterministic=False))
    built, cells = tail_written(target, expected_trees())
    mask = trees.verify_mask(built, PREFIX_LENS, 8).custom_mask
    assert mask is not None
    assert len(mask) == 1
    assert mask.data_ptr() == target._verify_mask.buffer.data_ptr()
    assert torch.equal(replayed_mask(target, built, mask), cells)


def test_a_backend_that_indexes_the_mask_is_handed_all_of_it() -> None:
    """FA3 takes each tree cell of `spec_info.custom_mask` by its index, in a graph round and outside."""
    from ddtree_sglang.engine.stages.trees import DeviceTrees, mask_buffers

    fa3 = backend(buffer=torch.zeros(3 * NUM_NODES * (CONTEXT_LEN + NUM_NODES), dtype=torch.bool))
    trees = DeviceTrees(FixedRanking(), mask_buffers({NUM_NODES: fa3}, deterministic=False))
    buffer = trees.flat_mask_for(2, NUM_NODES)
    assert buffer is not None
    mask = trees.verify_mask(BuiltTree.empty(2, NUM_NODES, torch.device("cpu"), buffer), PREFIX_LENS, 8).custom_mask
    assert mask is not None
    assert len(mask) == NUM_NODES * (8 + 2 * NUM_NODES)


def test_more_requests_than_the_buffer_has_room_for_get_a_whole_mask() -> None:
    from ddtree_sglang.engine.stages.trees import DeviceTrees, mask_buffers

    target, built = engine_triton_backend(1), expected_trees()
    trees = DeviceTrees(FixedRanking(), mask_buffers({NUM_NODES: target}, deterministic=False))
    mask = trees.verify_mask(built, PREFIX_LENS, 8).custom_mask
    assert mask is not None
    assert torch.equal(mask, built.mask.flat(PREFIX_LENS))


def test_filled_mask_has_true_prefix_columns() -> None:
    built, offset = expected_trees(), 0
    flat = device_mask(built, 8)
    for row, prefix in enumerate(PREFIX_LENS.tolist()):
        cells = flat[offset : offset + NUM_NODES * (prefix + NUM_NODES)].view(NUM_NODES, prefix + NUM_NODES)
        assert bool(cells[:, :prefix].all())
        assert torch.equal(cells[:, prefix:], built.mask.cells[row])
        offset += cells.numel()


def test_a_root_alone_is_verified_without_a_mask() -> None:
    """A chain: on a GPU a mask would be filled anew in every round, and not be read."""
    from ddtree_sglang.engine.stages.trees import HostTrees

    chain = root_trees(ROOTS, PREFIX_LENS)
    assert device_mask(chain, 8) is None
    on_host = HostTrees(FixedRanking()).verify_mask(chain, PREFIX_LENS, 8)
    assert on_host.custom_mask is None
    # The CPU's backend reads this one: each root sees itself, as in a causal window.
    assert on_host.ancestor_mask.tolist() == [[[True]], [[True]]]


def test_flat_mask_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flat mask must be 1-D torch\.bool, got \(9,\) torch\.uint8"):
        BuiltTree.empty(1, 3, torch.device("cpu"), torch.zeros(9, dtype=torch.uint8))


def test_a_tree_of_the_root_alone_is_the_one_node_tree() -> None:
    expected = complete_tree(build_draft_tree(RANKED_IDS, RANKED_LOGPROBS, ROOTS, 1), PREFIX_LENS)
    found = root_trees(ROOTS, PREFIX_LENS)
    found.tree.check_invariants()
    for part in ("tree", "layout"):
        for name, value in vars(getattr(expected, part)).items():
            assert torch.equal(getattr(getattr(found, part), name), value), name
    assert torch.equal(found.mask.cells, expected.mask.cells)
