"""Refusals to take away, by name: what the lane has to find wrong without them.

Each is applied in every process of a server before its arguments are resolved, so that neither the arguments, nor the
loaded model, nor a request is refused for this one reason. What the server does then is SGLang's and the round's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from tests.device_lane.attention_mutations import set_attribute as _set


def trees_on_torch_native() -> None:
    """SGLang's backend of torch operators, which has no form of a verify, is taken for one with tree masks."""
    from ddtree_sglang.engine.admission import server_args, target_checks

    _add(server_args, "TREE_BACKENDS", "torch_native")
    _add(target_checks, "BACKEND_CLASSES", "TorchNativeAttnBackend")


def latent_attention_on_flashinfer() -> None:
    """The backend of FlashInfer's wrapper for latent attention, which takes no mask."""
    from ddtree_sglang.engine.admission import target_checks

    _add(target_checks, "LATENT_BACKENDS", "flashinfer")
    _add(target_checks, "BACKEND_CLASSES", "FlashInferMLAAttnBackend")


def seeded_min_p() -> None:
    """A request's min-p is handed to the sampler of deterministic inference."""
    from ddtree_sglang.engine.admission import request_rules

    kept = tuple(rule for rule in request_rules.REQUEST_RULES if not rule.name.startswith("min_p"))
    _replace_by_shorter(request_rules, "REQUEST_RULES", kept)


def keys_over_ranks() -> None:
    """Decode context parallelism, which SGLang has on GPUs alone: a request's keys are shared out over ranks."""
    from sglang.srt.distributed import parallel_state

    _without("server_args", "ARGUMENT_RULES", "keeps all of a request's keys on each rank")
    _set(parallel_state, "is_cuda", lambda: True)


def classes_that_attend_over_all_ranks() -> None:
    """DP attention with classes that shard attention over all groups."""
    from ddtree_sglang.engine.admission import attention_groups

    _add(attention_groups, "GROUP_TARGETS", "LlamaForCausalLM")


def heads_that_read_the_prompts_end() -> None:
    """LiLiCorr, whose head reads features of the last token, on a server that has not prefilled it."""
    from ddtree_sglang.engine.admission import split_servers
    from ddtree_sglang.engine.admission.drafter_families import LATTICE

    _add(split_servers, "SERVED_SPLIT", LATTICE)


def kimi_k3s_text_alone() -> None:
    """Kimi-K3's class without images, for which SGLang chooses no way to keep states in its prefix cache."""
    from ddtree_sglang.engine.admission import recurrent_checks, target_checks

    name = "KimiK3LinearForCausalLM"
    _set(target_checks, "NOT_SHOWN", {one: why for one, why in target_checks.NOT_SHOWN.items() if one != name})
    _add(recurrent_checks, "SERVED", name)


def states_on_two_servers() -> None:
    """Recurrent layers under overlapped scheduling, where a round is in flight when its request is retracted."""
    from ddtree_sglang.engine.admission import server_args

    _set(server_args, "check_split_target", _accept)


def _change(where: str, name: str, to: Callable[..., Any]) -> None:
    """Have another function in the place of one that a module of the engine calls."""
    _set(import_module(f"ddtree_sglang.engine.{where}"), name, to)


def _without_check(name: str) -> None:
    """A request's values are looked at without this one of the looks."""
    from ddtree_sglang.engine.admission import request_fields

    kept = tuple(check for check in request_fields._CHECKS if check.__name__ != name)
    _replace_by_shorter(request_fields, "_CHECKS", kept)


def _without(name: str, table: str, words: str) -> None:
    """Take the one rule away whose message has these words."""
    module = import_module(f"ddtree_sglang.engine.admission.{name}")
    _replace_by_shorter(module, table, tuple(rule for rule in getattr(module, table) if words not in rule.message))


def _replace_by_shorter(module: ModuleType, table: str, kept: tuple[Any, ...]) -> None:
    before = getattr(module, table)
    if len(kept) != len(before) - 1:
        raise LookupError(
            f"one refusal is taken away at a time, got {len(before) - len(kept)} of {module.__name__}.{table}; follow "
            "the product's name or message"
        )
    _set(module, table, kept)


def _add(module: ModuleType, table: str, name: str) -> None:
    _set(module, table, (*getattr(module, table), name))


def _accept(*_: Any, **__: Any) -> None:
    """A check that finds nothing."""


def _pass_on(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A hook that looks at nothing."""
    return original(*arguments, **named)


CHANGED: dict[str, tuple[str, str, Callable[..., Any]]] = {
    # Several answers to one prompt of a server that shares requests out.
    "answers_in_one_room": ("entry.refusals", "check_meetings", _accept),
    # Prompts of embeddings that the first layer has no weights for.
    "embeddings_of_another_width": ("entry.refusals", "check_embeddings", _accept),
    # Logit processors that are none.
    "processors_that_cannot_be_made": ("entry.refusals", "check_processor", _accept),
    # Labels that the server's metrics do not have.
    "labels_that_nobody_counts": ("entry.refusals", "check_labels", _accept),
    # Names of requests that a busy scheduler drops.
    "names_of_probes": ("entry.refusals", "_refuse_id_of_a_probe", _accept),
    # Times to sleep before each forward.
    "sleeps_without_end": ("entry.memory", "check_sleep", _pass_on),
    # Weights to receive of which too little is said.
    "weights_without_shapes": ("entry.weight_groups", "check_received", _pass_on),
    # Values that a scheduler which decodes by types does not read, sent to one that does.
    "values_of_no_type": ("entry.refusals", "_refuse_unreadable", _accept),
    # Groups for weights that this server's ranks cannot be in.
    "groups_that_are_full": ("entry.weight_groups", "check_receivers", _pass_on),
    # DP attention with Nemotron-H, whose layers end a forward early in a group without a request.
    "states_in_groups": ("admission.server_args", "check_groups_target", _accept),
}
"""Of one look: the module of `engine` that calls it, its name there, and what stands in its place."""

CHECKS: dict[str, str] = {
    # Ids that the embedding has no row for.
    "foreign_tokens": "_foreign_token",
    # More log-probabilities of a token than the vocabulary has tokens.
    "places_outside_of_a_row": "_logprobs",
    "prompts_of_no_token": "_empty_prompt",
    # Values that SGLang's scheduler slices, counts and concatenates with.
    "values_of_another_kind": "check_kinds",
    # Names of sessions and of their requests.
    "names_of_another_kind": "_session",
    # Embeddings for places of a prompt, which are tensors.
    "embeddings_in_json": "_overrides",
    # More candidates than an int32 counts.
    "candidates_past_counting": "_top_k",
    # Ends that may not come yet, and are no tokens.
    "foreign_ends": "_min_new_tokens",
    "places_outside_of_a_prompt": "_places",
}
"""Of one look at a request's values: its function in `_CHECKS` of `engine.admission.request_fields`."""

RULES: dict[str, tuple[str, str, str]] = {
    # Mamba2 with a number of nodes that follows the load.
    "states_of_several_widths": ("recurrent_checks", "RECURRENT_RULES", "with a fixed number of nodes"),
    # DP attention with an LM head that is sharded over all groups.
    "groups_share_a_head": ("attention_groups", "GROUP_RULES", "an LM head of each group's own"),
    # DP attention where each group chooses its number of nodes by its own rounds.
    "groups_that_measure": ("attention_groups", "GROUP_RULES", "which no group may choose by its own rounds"),
    # A logit processor is called where a request is prefilled, and where it is decoded.
    "processors_on_two_servers": ("split_servers", "SPLIT_RULES", "calls a logit processor on two servers"),
    # LoRA with a number of nodes that follows the load.
    "adapters_of_several_widths": ("server_args", "ADAPTER_RULES", "serves adapters with a fixed number of nodes"),
    # LoRA on the backend whose graphs have room for one row per request.
    "adapters_by_torch": ("server_args", "ADAPTER_RULES", "verifies trees with adapters on the LoRA backends"),
    # Grammars that cannot take a token back.
    "grammars_of_outlines": ("server_args", "ARGUMENT_RULES", "which outlines cannot"),
    # Hidden states of a request that one server prefills and another decodes.
    "states_from_two_servers": ("split_servers", "SPLIT_RULES", "returns no hidden states"),
    # Routed experts of such a request.
    "experts_from_two_servers": ("split_servers", "SPLIT_RULES", "returns no routed experts"),
    # Routed experts under DP attention.
    "experts_of_groups": ("attention_groups", "GROUP_RULES", "returns wrong experts"),
    # The state of a request that ends in another one's prefill, where the prefix cache gets the last one.
    "states_of_mixed_ends": ("recurrent_checks", "RECURRENT_RULES", "keeps a wrong state of a request that ends"),
    # The same of convolutions, of which the prefix cache always gets the last inputs.
    "inputs_of_mixed_ends": ("recurrent_checks", "RECURRENT_RULES", "keeps wrong inputs of convolutions"),
    # The state that a session keeps from turn to turn.
    "states_of_sessions": ("recurrent_checks", "RECURRENT_RULES", "keep a session's state from turn to turn"),
    # States for the prefix cache in slots that are chosen ahead.
    "states_planned_ahead": ("recurrent_checks", "RECURRENT_RULES", "plan the prefix cache's states ahead"),
    # DP attention where each group counts its own requests.
    "groups_that_count_alone": ("attention_groups", "GROUP_RULES", "counts the requests of all groups"),
    # Sessions whose requests one server prefills and another decodes.
    "sessions_on_two_servers": ("split_servers", "SPLIT_RULES", "has not been run with sessions"),
    # LoRA on layers whose q_proj has a gate, or whose o_proj multiplies by one.
    "adapters_of_states": ("recurrent_checks", "RECURRENT_RULES", "has not been shown with adapters"),
    # Adapters of requests of several groups.
    "adapters_of_groups": ("attention_groups", "GROUP_RULES", "verifies wrongly with adapters in a graph"),
    # The state of a mixed chunk in pages of several tokens.
    "states_within_a_page": ("recurrent_checks", "RECURRENT_RULES", "where a chunk ends within a page"),
}
"""Of one rule each: its module of `engine.admission`, its table there, and words of its message."""


LIFTED: dict[str, Callable[[], None]] = {
    **{name: partial(_without, *where) for name, where in RULES.items()},
    **{name: partial(_change, *what) for name, what in CHANGED.items()},
    **{name: partial(_without_check, check) for name, check in CHECKS.items()},
    **{
        lifted.__name__: lifted
        for lifted in (
            trees_on_torch_native,
            latent_attention_on_flashinfer,
            seeded_min_p,
            keys_over_ranks,
            classes_that_attend_over_all_ranks,
            heads_that_read_the_prompts_end,
            states_on_two_servers,
            kimi_k3s_text_alone,
        )
    },
}
