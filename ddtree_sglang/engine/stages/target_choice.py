"""The target's own choice at every node: its argmax, or one draw from its adjusted distribution.

Sampling goes through SGLang's own `Sampler`, with the request's parameters repeated for each of its nodes and each
node's position, so temperature, top-k, top-p, min-p and seeds mean exactly what they mean in plain decoding. Each
emitted token is then the target's own draw under its true prefix, which is why nothing is biased: siblings share
a draw's randomness only when at most one of them can be on the accepted path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sglang.srt.layers.sampler import Sampler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


LogitsChange = Callable[[torch.Tensor], None]
"""Changes the verify forward's logits `[B * N, V]` in place, each node's row by what is before that node."""

PathChoice = Callable[[torch.Tensor], torch.Tensor]
"""Chooses along each request's path from adjusted logits `[B * N, V]`, which it changes in place at the path's nodes.
Gives the tokens `[B, N]` int64; those of nodes off the path are read by nobody."""


@dataclass(frozen=True)
class NodeAdjustments:
    """What a batch's requests ask of their logits; None for what no request asks for, which then costs nothing.

    They are applied in plain decoding's order (sampling_batch_info.py, `apply_logits_bias`; layers/sampler.py).
    """

    penalties: LogitsChange | None = None
    grammar: LogitsChange | None = None
    processors: PathChoice | None = None  # after the bias; chooses, too, as what follows hangs on the choice


NO_ADJUSTMENTS = NodeAdjustments()


def repeat_for_nodes(sampling_info: SamplingBatchInfo, num_nodes: int) -> SamplingBatchInfo:
    """The batch's sampling parameters, each request's repeated for its N nodes: `[B]` becomes `[B * N]`."""

    def repeat(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else torch.repeat_interleave(values, num_nodes, dim=0)

    return dataclasses.replace(
        sampling_info,
        temperatures=repeat(sampling_info.temperatures),
        top_ps=repeat(sampling_info.top_ps),
        top_ks=repeat(sampling_info.top_ks),
        min_ps=repeat(sampling_info.min_ps),
        sampling_seed=repeat(sampling_info.sampling_seed),
        logit_bias=None,
        sampling_mask_batch_indices=None,
    )


def choose_target_tokens(
    logits: torch.Tensor,  # [B * N, V] of the verify forward
    sampling_info: SamplingBatchInfo | None,  # the batch's parameters, None for greedy
    positions: torch.Tensor,  # [B, N] int64, what a seed is mixed with, as in plain decoding (layers/sampler.py)
    sampler: Sampler,  # the target model runner's
    *,
    keep_logits: bool,
    adjustments: NodeAdjustments = NO_ADJUSTMENTS,
) -> torch.Tensor:
    """`[B, N]` int64: one token of the target's for each node.

    The adjustments and a request's bias change `logits` in place, as in plain decoding. The sampler then turns them
    into probabilities in place (layers/sampler.py), unless `keep_logits`, which costs a copy of `[B * N, V]`: only
    `compute_spec_logprobs` reads them afterwards, for a batch that asks for log-probabilities. With processors the
    choice is theirs (`node_processors`), and the logits stay logits.

    Where SGLang looks for NaN or sanitizes logits, which it does by flags of the environment, it does so here, too:
    in the sampler, and in what the sampler does not see, an argmax and logits that are kept.
    """
    from sglang.srt.utils.async_probe import sanitize_nan_logits

    batch_size, num_nodes = positions.shape
    _adjust(logits, sampling_info, num_nodes, adjustments)
    if adjustments.processors is not None:
        return adjustments.processors(logits)
    is_greedy = sampling_info is None or sampling_info.is_all_greedy
    if is_greedy or keep_logits:
        sanitize_nan_logits(logits, "verify: target model logits")
    if is_greedy:
        return torch.argmax(logits, dim=-1).view(batch_size, num_nodes)
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput

    assert sampling_info is not None, "only a greedy batch has no parameters"
    chosen = sampler(
        LogitsProcessorOutput(next_token_logits=logits.clone() if keep_logits else logits),
        repeat_for_nodes(sampling_info, num_nodes),
        return_logprob=False,
        top_logprobs_nums=[],
        token_ids_logprobs=[],
        positions=positions.reshape(-1),
    )
    return chosen.to(torch.int64).view(batch_size, num_nodes)


def _adjust(
    logits: torch.Tensor, sampling_info: SamplingBatchInfo | None, num_nodes: int, adjustments: NodeAdjustments
) -> None:
    for change in (adjustments.penalties, adjustments.grammar):
        if change is not None:
            change(logits)
    if sampling_info is not None and sampling_info.logit_bias is not None:
        bias = sampling_info.logit_bias
        logits.view(len(bias), num_nodes, -1).add_(bias.unsqueeze(1))
