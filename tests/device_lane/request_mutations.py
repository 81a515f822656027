"""Faults in what a request asks for besides its tokens, and in how its tokens are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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


def draws_at_the_roots_position() -> None:
    """A node's draw uses its root's position with the seed, instead of its own."""
    from ddtree_sglang.engine import worker

    original = worker.choose_target_tokens

    def choose(logits: Any, sampling_info: Any, positions: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        roots = positions[:, :1].expand_as(positions).contiguous()
        return original(logits, sampling_info, roots, *others, **options)

    _set(worker, "choose_target_tokens", choose)


def parameters_of_another_request() -> None:
    """Sampling parameters are tiled over the nodes, not repeated for each request's own."""
    from ddtree_sglang.engine.stages import target_choice

    def tiled(values: torch.Tensor, repeats: int, dim: int = 0) -> torch.Tensor:
        return values.repeat(repeats, *[1] * (values.dim() - 1))

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return tiled if name == "repeat_interleave" else getattr(torch, name)

    _set(target_choice, "torch", Torch())


def grammars_of_the_round_before() -> None:
    """Under overlap the grammars are not advanced by the tokens of the round before."""
    from ddtree_sglang.engine.stages.node_grammar import BatchGrammars

    original = BatchGrammars.of
    _set(BatchGrammars, "of", lambda batch, barrier: original(batch, None))


def grammars_along_the_flat_order() -> None:
    """One state is advanced from node to node in the order of their numbers."""
    from ddtree_sglang.engine.stages import node_grammar

    original = node_grammar.fill_node_masks

    def fill(grammar: Any, parents: Any, token_ids: Any, mask: Any, first_row: int) -> Any:
        chain = [node - 1 if node == 0 or parent >= 0 else -1 for node, parent in enumerate(parents)]
        return original(grammar, chain, token_ids, mask, first_row)

    _set(node_grammar, "fill_node_masks", fill)


def roots_children_whatever_the_grammar() -> None:
    """Tokens that cannot follow a root stay in the trees."""
    from ddtree_sglang.engine.stages.node_grammar import BatchGrammars

    _set(BatchGrammars, "prune_roots", lambda grammars, ranked: ranked)


def penalties_of_the_root_at_every_node() -> None:
    """Every node gets the penalties that its tree's root has: what SGLang does for a speculated run."""
    from ddtree_sglang.kernels import node_penalties_triton

    original = node_penalties_triton.penalize_nodes_triton

    def penalize(logits: Any, state: Any, slots: Any, tree: Any) -> None:
        roots = dataclasses.replace(
            tree, token_ids=tree.token_ids[:, :1].expand_as(tree.token_ids), parents=torch.full_like(tree.parents, -1)
        )
        original(logits, state, slots, roots)

    _set(node_penalties_triton, "penalize_nodes_triton", penalize)


def one_token_of_a_round_is_counted() -> None:
    """Of the tokens that a round emits the penalties learn of one: what SGLang does for a speculated run."""
    from ddtree_sglang.kernels import node_penalties_triton

    original = node_penalties_triton.count_tokens_triton

    def count(state: Any, slots: Any, root_ids: Any, emitted_ids: Any, commit_lens: torch.Tensor) -> None:
        original(state, slots, root_ids, emitted_ids, torch.ones_like(commit_lens))

    _set(node_penalties_triton, "count_tokens_triton", count)


def answers_are_forgotten_when_requests_are_retracted() -> None:
    """A request that starts again has the penalties of a new one: what SGLang does in plain decoding."""
    from ddtree_sglang.engine.stages.node_penalties import PenaltyTable

    _set(PenaltyTable, "_resume", lambda *_: None)


def processors_a_round_late() -> None:
    """Custom logit processors do not see the tokens of the round before, whose results wait to be processed."""
    from ddtree_sglang.engine.stages import node_processors

    def finish(original: Callable[..., bool], *arguments: Any, **named: Any) -> bool:
        return original(*arguments, **named)

    _set(node_processors, "finish_the_round_before", finish)


def processors_see_the_root_alone() -> None:
    """A custom logit processor does not see the tokens between the root and its node."""
    from ddtree_sglang.engine.stages.node_processors import ProcessedPaths

    def next_node(paths: Any, tree: Any, request: int, node: int, token: int) -> int | None:
        child: int | None = tree.child(request, node, token)
        return child

    _set(ProcessedPaths, "_next_node", next_node)


REQUEST_MUTATIONS = (
    draws_at_the_roots_position,
    parameters_of_another_request,
    grammars_of_the_round_before,
    grammars_along_the_flat_order,
    roots_children_whatever_the_grammar,
    penalties_of_the_root_at_every_node,
    one_token_of_a_round_is_counted,
    answers_are_forgotten_when_requests_are_retracted,
    processors_a_round_late,
    processors_see_the_root_alone,
    masks_of_a_prefill_by_width,
    bias_of_another_request,
    the_best_is_drawn,
    supports_of_the_first_nodes,
    logprobs_of_the_first_nodes,
    streams_round_by_round,
)
