"""Data-parallel attention: what a round owes to the ranks that attend for other requests.

Each group of ranks attends for requests of its own, drafts and builds their trees alone, and meets the others in the
target's feed-forward layers, which take the nodes of all groups in one collective. So all groups verify the same number
of nodes per request, run the verify the same way, and take part in it without a request of their own. SGLang's
scheduler counts the requests of each group before each round (managers/scheduler_components/dp_attn.py), and lets no
group decode while another one prefills.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.dp_attention import get_dp_tp_group, is_dp_attention_enabled
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.speculative.eagle_utils import eagle_prepare_for_verify

from ddtree_sglang.engine.spec import verify_topk
from ddtree_sglang.engine.stages.kv_window import DDTreeDraftInput
from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput, IdleVerifyInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from ddtree_sglang.core.built_tree import BuiltTree
    from ddtree_sglang.engine.stages.kv_window import RoundWindow


def attends_in_groups() -> bool:
    """Whether the ranks of this server attend for different requests."""
    return bool(is_dp_attention_enabled())


def ranks_of_batch() -> Any:
    """SGLang's coordinator of the ranks that work on one batch: they share its LM head's shards and its trees."""
    return get_dp_tp_group()


def prepare_verify(
    verify_input: DDTreeVerifyInput, batch: ScheduleBatch, target_worker: Any, built: BuiltTree, window: RoundWindow
) -> Any:
    """SGLang's forward batch of a verify; its metadata is made by now if a graph will run it.

    As SGLang's chain does, no graph is replayed while a group is idle: a group without a request would take part with
    as many rows as it has, none, and the replays with those of their graph (dflash_worker_v2.py).
    """
    in_groups, saved = attends_in_groups(), (batch.seq_lens_cpu, batch.seq_lens_sum)
    if in_groups and min(batch.global_num_tokens) == 0:
        batch.can_run_decode_cuda_graph = False
    if window.host_lens is not None:
        batch.seq_lens_cpu, batch.seq_lens_sum = window.host_lens, window.total_prefix_len
    runner = target_worker.model_runner
    forward_batch, in_graph = eagle_prepare_for_verify(verify_input, runner.req_to_token_pool, batch, target_worker)
    batch.seq_lens_cpu, batch.seq_lens_sum = saved
    if in_groups and not in_graph:
        most, num_ranks = max(batch.global_num_tokens), int(ranks_of_batch().world_size)
        num_more = num_requests_padded_to(most, built.tree.num_nodes, num_ranks) - len(batch.reqs)
        if verify_input.custom_mask is not None:
            prefix_len = int(runner.attn_backend.get_cuda_graph_seq_len_fill_value())
            verify_input.custom_mask = padded_mask(verify_input.custom_mask, built, window, num_more, prefix_len)
        links = verify_input.retrieve_next_token, verify_input.retrieve_next_sibling
        verify_input.retrieve_next_token, verify_input.retrieve_next_sibling = padded_links(*links, num_more)
    return forward_batch


def num_requests_padded_to(most: int, num_nodes: int, num_ranks: int) -> int:
    """Requests that SGLang pads the largest group's batch to outside graphs, where it has `most` of N nodes each.

    It rounds nodes up to a multiple of the ranks of a group, and divides again (model_executor/forward_batch_info.py,
    prepare_mlp_sync_batch), so that many ranks and few nodes make room for a request more.
    """
    return -(-most * num_nodes // num_ranks) * num_ranks // num_nodes


def padded_mask(
    mask: torch.Tensor, built: BuiltTree, window: RoundWindow, num_more: int, prefix_len: int
) -> torch.Tensor:
    """1-D bool: the mask in the flat layout, with cells of the requests that SGLang pads a batch with outside graphs.

    It pads to the requests of the largest group (model_executor/forward_batch_info.py, prepare_mlp_sync_batch), and an
    attention backend reads the padding's cells, which EAGLE's masks do not have.

    Args:
        mask: as the backend takes it without padding; of one cell where that stands for a buffer.
        num_more: requests of padding.
        prefix_len: their prefix.
    """
    if num_more == 0:
        return mask
    if mask.numel() == 1:
        mask = built.mask.flat(window.prefix_lens, window.total_prefix_len)
    num_nodes = built.tree.num_nodes
    cells = num_more * num_nodes * (prefix_len + num_nodes)
    return torch.cat((mask, torch.ones(cells, dtype=torch.bool, device=mask.device)))


def padded_links(
    first_children: torch.Tensor, next_siblings: torch.Tensor, num_more: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[B, N]` int64 each to `[B + num_more, N]`: the padding's nodes are chains.

    Kernels of recurrent layers find a node's parent by these links, and have a row of them for every request that
    SGLang pads the batch to (layers/attention/hybrid_linear_attn_backend.py, _forward_metadata).
    """
    if num_more == 0:
        return first_children, next_siblings
    num_nodes = first_children.shape[1]
    chain = torch.arange(1, num_nodes + 1, device=first_children.device, dtype=first_children.dtype)
    chain[-1] = -1
    return (
        torch.cat((first_children, chain.expand(num_more, -1))),
        torch.cat((next_siblings, next_siblings.new_full((num_more, num_nodes), -1))),
    )


def idle_round(worker: Any, batch: ScheduleBatch, on_publish: Callable[[torch.Tensor], None]) -> GenerationBatchResult:
    """The round of a group without a request: it takes part in the other groups' verify."""
    if attends_in_groups():
        num_nodes = worker.budget.of_all_groups(batch)
        shape = verify_topk(num_nodes), worker.max_path_len - 1, num_nodes
        nothing = IdleVerifyInput.create_idle_input(*shape, worker.device)
        with _no_attention(worker.model_runner):
            _join_verify(nothing, batch, worker.target_worker)
    ids = torch.empty(0, dtype=torch.int64, device=worker.device)
    on_publish(ids)
    return GenerationBatchResult(
        logits_output=None,
        next_token_ids=ids,
        accept_lens=torch.empty(0, dtype=torch.int32, device=worker.device),
        can_run_cuda_graph=False,
        next_draft_input=DDTreeDraftInput.carry(ids, ids),
        speculative_num_draft_tokens=worker.num_nodes,
        speculative_output_stride=worker.max_path_len,
        new_seq_lens=ids,
    )


def _join_verify(nothing: IdleVerifyInput, batch: ScheduleBatch, target_worker: Any) -> None:
    """The target's forward of no node."""
    batch.spec_info, batch.can_run_decode_cuda_graph = nothing, False
    pool = target_worker.model_runner.req_to_token_pool
    forward_batch, _ = eagle_prepare_for_verify(nothing, pool, batch, target_worker)
    target_worker.forward_batch_generation(batch=None, forward_batch=forward_batch, is_verify=True)


class _NoAttention:
    """An attention backend in a forward that has no node of its own.

    SGLang may pad such a batch, and attends for none of the padding (base_attn_backend.py, forward). But it has its
    backends make metadata, as of a draft: with a tree's input, FA3 and Triton look there for what only drafts have.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def init_forward_metadata(self, _forward_batch: Any) -> None:
        """Nothing is attended."""


@contextmanager
def _no_attention(runner: Any) -> Iterator[None]:
    backend = runner.attn_backend
    runner.attn_backend = _NoAttention(backend)
    try:
        yield
    finally:
        runner.attn_backend = backend
