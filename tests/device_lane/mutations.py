"""Faults to put back, by name: what the lane has to notice. Each is applied in a process of a server before it serves.

A fault is a monkeypatch of product code, as small as the mistake that it stands for. Some give wrong tokens, some only
cost acceptance, some break a rule of a kernel or of a capture; `test_mutations.py` says which scene sees which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.device_lane.attention_mutations import ATTENTION_MUTATIONS
from tests.device_lane.attention_mutations import set_attribute as _set
from tests.device_lane.group_mutations import GROUP_MUTATIONS
from tests.device_lane.head_mutations import HEAD_MUTATIONS
from tests.device_lane.request_mutations import REQUEST_MUTATIONS
from tests.device_lane.state_mutations import STATE_MUTATIONS


def tail_mask_in_deterministic_mode() -> None:
    """Deterministic inference reads a mask's prefix columns, and gets a mask of tree cells alone."""
    from ddtree_sglang.engine import worker

    original = worker.mask_buffers
    _set(worker, "mask_buffers", lambda backends, *, deterministic: original(backends, deterministic=False))


def requests_as_long_as_the_context() -> None:
    """The longest request is what SGLang allows, so that a round near the context limit reads past it."""
    from ddtree_sglang.engine.admission import context_limit

    _set(context_limit, "reserved_tokens", lambda longest: 0)


def drafter_planned_for_the_window() -> None:
    """The host's lengths for the drafter's attention count the window, the device's its block."""
    from ddtree_sglang.engine.stages.draft_block import DraftBlock

    def host_lens(block: Any, batch: Any, window: Any) -> torch.Tensor:
        prefix_lens = window.prefix_lens.cpu() if batch.seq_lens_cpu is None else batch.seq_lens_cpu
        window_len = max(window.inputs.node_slots.shape[1], window.inputs.block_slots.shape[1])
        return (prefix_lens + window_len).to(torch.int32)

    _set(DraftBlock, "_host_lens", host_lens)


def drafter_sees_the_first_tokens() -> None:
    """A windowed drafter's rows begin with the context instead of its last tokens."""
    from ddtree_sglang.engine.stages import draft_window

    original = draft_window.copy_windows

    def copy(seen: Any, req_to_token: Any, rows: Any, starts: torch.Tensor, width: int) -> None:
        original(seen, req_to_token, rows, torch.zeros_like(starts), width)

    _set(draft_window, "copy_windows", copy)


def states_stay_on_the_host() -> None:
    """A text comes back from the host without its recurrent state."""
    from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost

    _set(MambaPoolHost, "_copy_tensor_pf_lf", staticmethod(lambda *_given, **_named: None))


def candidates_of_one_rank() -> None:
    """Each rank of a group ranks its own part of the vocabulary."""
    from ddtree_sglang.engine.stages.candidates import VocabShard

    original = VocabShard.from_lm_head.__func__  # type: ignore[attr-defined]
    alone = classmethod(lambda cls, *given: replace(original(cls, *given), tp_group=None))
    _set(VocabShard, "from_lm_head", alone)


def drafters_rows_stay_on_the_device() -> None:
    """The hierarchical cache copies the target's keys and values alone."""
    from sglang.srt.speculative.base_spec_worker import HiCacheDraftPlan

    from ddtree_sglang.engine.worker import DDTreeWorker

    original = DDTreeWorker.init_hicache_draft_plan

    def plan(worker: Any) -> None:
        original(worker)
        worker._hicache_draft_plan = HiCacheDraftPlan()

    _set(DDTreeWorker, "init_hicache_draft_plan", plan)


def causal_verify_graph() -> None:
    """The target's graphs are those that SGLang captures for a chain."""
    from ddtree_sglang.engine import worker

    _set(worker, "install_tree_graph_runner", lambda runner: None)


def mask_keeps_old_cells() -> None:
    """The builder adds the cells that may attend and clears none."""

    def build(original: Callable[..., None], built: Any, *args: Any) -> None:
        cells = built.mask.cells
        before = cells.clone()
        original(built, *args)
        cells.logical_or_(before)

    _around_builder(build)


def positions_off_by_one() -> None:
    """Nodes below the root stand one position too far."""

    def build(original: Callable[..., None], built: Any, *args: Any) -> None:
        original(built, *args)
        built.layout.positions[:, 1:].add_(1)

    _around_builder(build)


def host_value_in_a_graph() -> None:
    """The end of the draft graph reads prefix lengths on the host, which a capture does not permit."""

    def build(original: Callable[..., None], built: Any, *args: Any) -> None:
        ids, logprobs, roots, prefix_lens, *pairs = args
        original(built, ids, logprobs, roots, torch.full_like(prefix_lens, int(prefix_lens.sum())), *pairs)

    _around_builder(build)


def pairs_after_the_neighbours_tokens() -> None:
    """Candidates are scored after the roots and candidates of the request before."""
    from ddtree_sglang.engine.stages import pair_scores

    original = pair_scores.parent_ids
    _set(pair_scores, "parent_ids", lambda topk_ids, roots: original(topk_ids, roots).roll(1, dims=0))


def lengths_published_before_acceptance() -> None:
    """The next round is told the lengths that this one began with."""
    from ddtree_sglang.engine.worker import DDTreeWorker

    original = DDTreeWorker._decode_round

    def decode_round(worker: Any, batch: Any, on_publish: Callable[[torch.Tensor], None], *others: Any) -> Any:
        begun_with = batch.seq_lens
        return original(worker, batch, lambda _new_seq_lens: on_publish(begun_with), *others)

    _set(DDTreeWorker, "_decode_round", decode_round)


def drafter_writes_to_its_neighbours_window() -> None:
    """Each block's keys and values go to the slots of the request before it."""
    _roll_over_requests("block_slots")


def nodes_written_to_their_neighbours_window() -> None:
    """Each tree's keys and values go to the slots of the request before it."""
    _roll_over_requests("node_slots")


def widths_share_the_widest_mask() -> None:
    """Backend and graphs are swapped for fewer nodes, the buffer that masks are made in is not."""
    from ddtree_sglang.engine import worker

    original = worker.mask_buffers

    def buffers(backends: Any, *, deterministic: bool) -> Any:
        made = original(backends, deterministic=deterministic)
        return {num_nodes: made[max(made)] for num_nodes in made}

    _set(worker, "mask_buffers", buffers)


def accepted_rows_stay_where_they_are() -> None:
    """No key and no value of an accepted node is moved to the front of the window."""
    from ddtree_sglang.engine.worker import DDTreeWorker

    _set(DDTreeWorker, "_commit", lambda worker, batch, commit, window: None)


def nodes_linked_as_a_chain() -> None:
    """Each node has the state of the node before it, whoever its parent is: siblings share what they read."""

    def build(original: Callable[..., None], built: Any, *args: Any) -> None:
        original(built, *args)
        following = torch.arange(1, built.tree.num_nodes + 1, device=built.tree.device)
        following[-1] = -1
        built.layout.retrieve_next_token.copy_(following)
        built.layout.retrieve_next_sibling.fill_(-1)

    _around_builder(build)


def drafter_is_told_nothing() -> None:
    """The target's hidden states of accepted nodes do not reach the drafter's cache."""
    from ddtree_sglang.engine.stages.draft_context import DraftContext

    _set(DraftContext, "extend", lambda *_: None)


def trees_of_the_round_before() -> None:
    """The draft graph is replayed in every other round, and its trees are taken in each."""
    from ddtree_sglang.engine.graphs.drafter_tail import GraphTrees
    from ddtree_sglang.engine.worker import DDTreeWorker

    original = DDTreeWorker._draft
    rounds = {"count": 0}

    def draft(worker: Any, batch: Any, window: Any) -> Any:
        rounds["count"] += 1
        if rounds["count"] % 2 or not isinstance(worker.trees, GraphTrees):
            return original(worker, batch, window)
        return lambda root_ids, _prefix_lens: worker.trees.tail.trees(len(root_ids))

    _set(DDTreeWorker, "_draft", draft)


def root_is_another_token() -> None:
    """The next round's root is not the token that the target chose last."""
    from ddtree_sglang.engine.stages.kv_window import DDTreeDraftInput

    original = DDTreeDraftInput.carry.__func__  # type: ignore[attr-defined]

    def carry(cls: type, bonus_tokens: torch.Tensor, new_seq_lens: torch.Tensor) -> Any:
        return original(cls, bonus_tokens.bitwise_xor(1), new_seq_lens)

    _set(DDTreeDraftInput, "carry", classmethod(carry))


def path_of_the_widest_tree() -> None:
    """With several widths, the trees of the configured one are verified at the width of the round."""
    from ddtree_sglang.engine.graphs.drafter_tail import GraphTrees

    def draft(trees: Any, _drafter_out: Any, roots: Any, *_: Any) -> Any:
        return lambda _root_ids, _prefix_lens: trees.tail.trees(roots.batch_size)

    _set(GraphTrees, "draft", draft)


def rounds_are_looked_at_before_they_are_over() -> None:
    """The adaptive budget learns of a round as soon as it is launched."""
    from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget

    original = AdaptiveBudget.__init__

    def make(budget: Any, *args: Any, **options: Any) -> None:
        original(budget, *args, **{**options, "lag": 0})

    _set(AdaptiveBudget, "__init__", make)


def end_tokens_are_not_known() -> None:
    """A path goes on behind the token that ends its request."""
    _change_ends(lambda ends: replace(ends, end_ids=torch.full_like(ends.end_ids, -1)))


def limit_one_token_too_far() -> None:
    """A request may commit one token more than it asked for."""
    _change_ends(lambda ends: replace(ends, limit_lens=ends.limit_lens + 1))


def budgets_of_one_node_more() -> None:
    """A request's walk may enter one node more than it allows itself."""
    _change_ends(lambda ends: replace(ends, node_limits=ends.node_limits + 1))


def _change_ends(change: Callable[[Any], Any]) -> None:
    """What stops the walks of each new batch is `change` of what should."""
    from ddtree_sglang.engine.stages.round_ends import BatchEnds

    original = BatchEnds.of

    def of(cls: type, *arguments: Any) -> Any:
        made = original(*arguments)
        return replace(made, ends=change(made.ends))

    _set(BatchEnds, "of", classmethod(of))


def prefix_pages_of_one_token() -> None:
    """The graph's own table of FA3's prefix has a page for each token, whatever the size of the pool's."""
    from ddtree_sglang.engine.graphs.fa3_metadata import TreeMetadata

    original = TreeMetadata.make

    def make(metadata: Any, forward_batch: Any) -> None:
        page_size, metadata.backend.page_size = metadata.backend.page_size, 1
        original(metadata, forward_batch)
        metadata.backend.page_size = page_size

    _set(TreeMetadata, "make", make)


def last_token_of_a_turn_counted_as_written() -> None:
    """A session's next turn begins behind the last token of the one before, whose keys no round has written."""
    from ddtree_sglang.engine import sessions

    _set(sessions, "serves_ddtree", lambda: False)


def states_by_index_in_the_tree() -> None:
    """The states that a request gets are those of its first nodes, not of the accepted ones."""
    from ddtree_sglang.engine import worker

    original = worker.hand_out_round_states

    def hand_out(batch: Any, logits_output: Any, rows: torch.Tensor, stride: int) -> None:
        original(batch, logits_output, rows[:, :1] + torch.arange(rows.shape[1], device=rows.device), stride)

    _set(worker, "hand_out_round_states", hand_out)


def experts_where_their_nodes_were() -> None:
    """What routers chose stays at the slots that the verify wrote, whichever nodes were accepted."""
    from ddtree_sglang.engine import worker

    _set(worker, "experts_of_path", lambda target_out, window, rows: target_out.routed_experts_output)


def _roll_over_requests(slots: str) -> None:
    """A round's inputs with each request's `slots` taken from the request before it."""
    from ddtree_sglang.engine.stages.trees import DeviceTrees

    original = DeviceTrees.inputs

    def inputs(*tensors: Any, **sizes: Any) -> Any:
        made = original(*tensors, **sizes)
        rows = getattr(made, slots)
        rows.copy_(rows.roll(1, dims=0))
        return made

    _set(DeviceTrees, "inputs", staticmethod(inputs))


def _around_builder(build: Callable[..., None]) -> None:
    """`build(original, built, ...)` in the place of the kernel's door, in graphs and outside."""
    from ddtree_sglang.kernels import tree_builder_triton

    original = tree_builder_triton.build_into
    _set(tree_builder_triton, "build_into", lambda *arguments: build(original, *arguments))


MUTATIONS: dict[str, Callable[[], None]] = {
    mutation.__name__: mutation
    for mutation in (
        tail_mask_in_deterministic_mode,
        requests_as_long_as_the_context,
        drafter_planned_for_the_window,
        drafter_sees_the_first_tokens,
        drafters_rows_stay_on_the_device,
        states_stay_on_the_host,
        candidates_of_one_rank,
        causal_verify_graph,
        mask_keeps_old_cells,
        lengths_published_before_acceptance,
        drafter_writes_to_its_neighbours_window,
        widths_share_the_widest_mask,
        positions_off_by_one,
        host_value_in_a_graph,
        pairs_after_the_neighbours_tokens,
        nodes_written_to_their_neighbours_window,
        accepted_rows_stay_where_they_are,
        nodes_linked_as_a_chain,
        drafter_is_told_nothing,
        trees_of_the_round_before,
        root_is_another_token,
        path_of_the_widest_tree,
        rounds_are_looked_at_before_they_are_over,
        end_tokens_are_not_known,
        limit_one_token_too_far,
        budgets_of_one_node_more,
        prefix_pages_of_one_token,
        last_token_of_a_turn_counted_as_written,
        states_by_index_in_the_tree,
        experts_where_their_nodes_were,
        *ATTENTION_MUTATIONS,
        *STATE_MUTATIONS,
        *GROUP_MUTATIONS,
        *HEAD_MUTATIONS,
        *REQUEST_MUTATIONS,
    )
}
