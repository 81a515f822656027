"""Faults in what a request asks for besides its tokens, and in how its tokens are chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tests.device_lane.attention_mutations import set_attribute as _set


def bias_of_another_request() -> None:
    """A request's bias is added to the logits of the request before it."""
    from ddtree_sglang.engine.stages import target_choice

    original = target_choice._adjust

    def adjust(logits: torch.Tensor, sampling_info: Any, num_nodes: int, adjustments: Any) -> None:
        if sampling_info is not None and sampling_info.logit_bias is not None:
            sampling_info = dataclasses.replace(sampling_info, logit_bias=sampling_info.logit_bias.roll(1, dims=0))
        original(logits, sampling_info, num_nodes, adjustments)

    _set(target_choice, "_adjust", adjust)


def the_best_is_drawn() -> None:
    """Whoever samples gets the most probable token."""
    from ddtree_sglang.engine.stages.sampling_supports import NodeSupports

    original = NodeSupports._describe

    def describe(supports: Any, output: Any, *others: Any) -> tuple[torch.Tensor, Any]:
        best = output.next_token_logits.argmax(-1)
        return best, original(supports, output, *others)[1]

    _set(NodeSupports, "_describe", describe)


def supports_of_the_first_nodes() -> None:
    """The supports that a request gets are those of its tree's first nodes, not of the accepted ones."""
    from ddtree_sglang.engine.stages.sampling_supports import NodeSupports

    original = NodeSupports.of_path

    def of_path(supports: Any, path: Any) -> Any:
        nodes = torch.arange(path.accept_index.shape[1], device=path.accept_index.device)
        first = nodes.expand_as(path.accept_index)
        return original(supports, dataclasses.replace(path, accept_index=first))

    _set(NodeSupports, "of_path", of_path)


def logprobs_of_the_first_nodes() -> None:
    """The log-probabilities that a request gets are of its tokens at its tree's first nodes."""
    from ddtree_sglang.engine import worker

    original = worker.compute_spec_logprobs

    def compute(batch: Any, output: Any, tokens: torch.Tensor, *, accept_index: torch.Tensor) -> None:
        first = accept_index[:, :1] + torch.arange(accept_index.shape[1], device=accept_index.device)
        original(batch, output, tokens, accept_index=first.where(accept_index >= 0, accept_index))

    _set(worker, "compute_spec_logprobs", compute)


def streams_round_by_round() -> None:
    """A stream gets the tokens of a round together, whatever its server was asked for."""
    from ddtree_sglang.engine.streaming import token_outputs

    _set(token_outputs, "is_asked_for", lambda _: False)


def masks_of_a_prefill_by_width() -> None:
    """A prefill's masks are laid on the logits as if no rows were wider, as SGLang has it."""
    from ddtree_sglang.engine import grammar_rows

    _set(grammar_rows, "serves_ddtree", lambda: False)


REQUEST_MUTATIONS = (
    masks_of_a_prefill_by_width,
    bias_of_another_request,
    the_best_is_drawn,
    supports_of_the_first_nodes,
    logprobs_of_the_first_nodes,
    streams_round_by_round,
)
