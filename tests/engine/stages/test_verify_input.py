"""A tree in SGLang's terms: counts, links, and the two forms of its mask; and what a graph is captured with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import BuiltTree, build_draft_tree, complete_tree, root_trees

pytestmark = pytest.mark.sglang

PREFIX = [2, 5]


def make() -> Any:
    # root -+- a --- c
    #       +- b
    ids = torch.tensor([[[1, 2], [3, 4]]]).repeat(2, 1, 1)
    logprobs = torch.log(torch.tensor([[[0.6, 0.3], [0.9, 0.1]]])).repeat(2, 1, 1)
    built = complete_tree(build_draft_tree(ids, logprobs, torch.tensor([7, 8]), 4), torch.tensor(PREFIX))
    return built, verify_input_of(built)


def verify_input_of(built: BuiltTree) -> Any:
    from ddtree_sglang.engine.stages.trees import HostTrees
    from ddtree_sglang.engine.stages.verify_input import make_verify_input

    mask = HostTrees(None).verify_mask(built, torch.tensor(PREFIX), None)
    return make_verify_input(built, 3, mask, torch.arange(built.tree.token_ids.numel()), None)


def test_counts_are_the_nodes_and_the_longest_path() -> None:
    _, made = make()
    assert made.draft_token_num == made.num_tokens_per_req == 4
    assert made.max_tree_depth == 3
    assert made.tree_topk == -1
    # FA3 takes its tree path by this number alone.
    assert made.topk > 1


def test_tokens_positions_and_links_are_flat_and_rooted_at_the_bonus() -> None:
    _, made = make()
    assert made.draft_token.tolist() == [7, 1, 3, 2, 8, 1, 3, 2]
    assert made.positions.tolist() == [2, 3, 4, 3, 5, 6, 7, 6]
    assert made.retrieve_next_token[0].tolist() == [1, 2, -1, -1]
    assert made.retrieve_next_sibling[0].tolist() == [-1, 3, -1, -1]
    assert made.retrieve_index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_host_attention_gets_the_ancestor_mask_itself() -> None:
    built, made = make()
    assert torch.equal(made.ancestor_mask, built.mask.cells)
    assert torch.equal(made.custom_mask.view(2, 4, 4), built.mask.cells)


def test_a_root_alone_takes_the_causal_path_of_every_backend() -> None:
    made = verify_input_of(root_trees(torch.tensor([7, 8]), torch.tensor(PREFIX)))
    assert (made.draft_token_num, made.topk, made.custom_mask) == (1, 1, None)
    # The host's backend reads this one: each root sees itself, as in a causal window.
    assert made.ancestor_mask.tolist() == [[[True]], [[True]]]
    assert made.positions.tolist() == PREFIX


class Translator:
    """Notes the lengths that KV indices are asked for."""

    lengths: list[int]

    def pack_read_stream(self, _plan: Any, *, seq_lens: torch.Tensor, **_: Any) -> None:
        self.lengths = seq_lens.tolist()


def flashinfer_plan(made: Any) -> tuple[list[int], Any]:
    """What FlashInfer's backend asks of a verify input whose prefixes are PREFIX: lengths to read, and the mask."""
    translator = Translator()
    indices, kv_indptr, qo_indptr, mask = made.generate_attn_arg_prefill(
        req_pool_indices=torch.arange(2),
        paged_kernel_lens=torch.tensor(PREFIX),
        paged_kernel_lens_sum=sum(PREFIX),
        translator=translator,
        plan=None,
        kind=None,
    )
    nodes = made.draft_token_num
    assert len(indices) >= sum(PREFIX) + 2 * nodes
    assert kv_indptr.tolist() == [0, PREFIX[0] + nodes, sum(PREFIX) + 2 * nodes]
    assert qo_indptr.tolist() == [0, nodes, 2 * nodes]
    return translator.lengths, mask


@pytest.mark.parametrize("capturing", [True, False])
def test_flashinfer_plans_one_node_without_a_mask(monkeypatch: pytest.MonkeyPatch, capturing: bool) -> None:
    from ddtree_sglang.engine.graphs import target as graph_runner

    spec = SimpleNamespace(speculative_num_steps=7, speculative_num_draft_tokens=1)
    monkeypatch.setattr(graph_runner, "get_spec", lambda: spec)
    captured = graph_runner.shape_only_verify_input(torch.ones(3, dtype=torch.bool))
    made = captured if capturing else verify_input_of(root_trees(torch.tensor([7, 8]), torch.tensor(PREFIX)))
    lengths, mask = flashinfer_plan(made)
    assert lengths == [3, 6]
    assert mask is None


def test_flashinfer_plans_a_tree_with_its_mask() -> None:
    _, made = make()
    made.custom_mask = torch.ones(4 * (sum(PREFIX) + 8), dtype=torch.bool)
    lengths, mask = flashinfer_plan(made)
    assert lengths == [6, 9]
    assert mask is made.custom_mask


def test_targets_graphs_and_warm_ups_are_trees_and_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.engine.graphs import target as graph_runner

    spec = SimpleNamespace(speculative_num_steps=7, speculative_num_draft_tokens=17)
    monkeypatch.setattr(graph_runner, "get_spec", lambda: spec)
    mask = torch.ones(3, dtype=torch.bool)
    ours = SimpleNamespace(name="DDTREE")

    def stock(*args: Any) -> str:
        return "stock"

    made = graph_runner.dummy_verify_input(stock, ours, mask, 17, False)
    assert (made.draft_token_num, made.max_tree_depth, made.custom_mask) == (17, 8, mask)
    assert graph_runner.dummy_verify_input(stock, ours, mask, 8, True) == "stock"
    assert graph_runner.dummy_verify_input(stock, SimpleNamespace(name="DFLASH"), mask, 8, False) == "stock"


def test_target_runner_captures_with_our_class_and_the_backends_mask_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

    from ddtree_sglang.engine.graphs import target as graph_runner

    spec = SimpleNamespace(speculative_num_steps=7, speculative_num_draft_tokens=17)
    monkeypatch.setattr(graph_runner, "get_spec", lambda: spec)
    runner = SimpleNamespace()
    graph_runner.install_tree_graph_runner(runner)
    runner_class = runner._decode_cuda_graph_runner_cls()
    assert issubclass(runner_class, DecodeCudaGraphRunner)
    captured = runner_class.__new__(runner_class)
    captured.buffers = SimpleNamespace(custom_mask="buffer")
    assert captured.get_spec_info(17).custom_mask == "buffer"
