"""Refusals of what a server is asked: each ends it, holds it, or has an answer that is not true, once it is let in."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.catalogue import SMALL_FA3, TRITON_DETERMINISTIC
from tests.device_lane.lifted_waves import (
    Ask,
    asking,
    asking_as_a_probe,
    asking_for_less_than_tokens,
    joining_a_group_that_is_full,
    receiving_weights_without_shapes,
    refused_one_after_the_other,
    sleeping_without_end,
)
from tests.device_lane.needed import UNANSWERED, Needed
from tests.device_lane.waves import seeded


def _ended_by(error: str) -> str:
    """A server that is gone; the message of a refusal may name the error, too."""
    return f"(?s)the server broke off.*{error}"


# Embeddings in place of tokens are taken without a prefix cache alone.
_BARE = replace(
    SMALL_FA3,
    name="",
    waves=(),
    flags=("--disable-radix-cache", "--enable-custom-logit-processor", "--enable-metrics"),
    captured=(),
)

_ASKED: tuple[tuple[str, str, str, Ask, str], ...] = (
    (
        "foreign_tokens",
        "foreign-tokens",
        "input_ids must be token ids of the model",
        asking(input_ids=[5, 6, 1000]),
        _ended_by("index out of range in self"),
    ),
    (
        "places_outside_of_a_row",
        "logprobs",
        "top_logprobs_num must be from 0",
        asking(return_logprob=True, top_logprobs_num=1000),
        _ended_by("selected index k out of range"),
    ),
    (
        "prompts_of_no_token",
        "empty-prompt",
        "at least one token, got none",
        asking(input_ids=None, text=""),
        _ended_by("dimension with size 0"),
    ),
    (
        "values_of_another_kind",
        "kinds",
        "max_new_tokens must be a whole number, got 1.5",
        asking_for_less_than_tokens,
        _ended_by("slice indices must be integers"),
    ),
    (
        "names_of_another_kind",
        "session-names",
        "session_params.id must be of type str",
        asking(session_params={"id": ["s"]}),
        "the request could not be made: TypeError",
    ),
    (
        "embeddings_in_json",
        "overrides",
        "must be SGLang's PositionalEmbeds, got dict",
        asking(positional_embed_overrides={"positions": [0]}),
        _ended_by("'dict' object has no attribute 'reconstruct'"),
    ),
    (
        "candidates_past_counting",
        "top-k",
        "top_k must be at most 2147483647",
        asking({"temperature": 1.0, "top_k": 2**31}),
        _ended_by("converted to type int32 without overflow"),
    ),
    (
        "foreign_ends",
        "min-new-tokens",
        "with min_new_tokens, got 100",
        asking({"min_new_tokens": 1, "stop_token_ids": [100]}),
        _ended_by("index 100 is out of bounds"),
    ),
    (
        "places_outside_of_a_prompt",
        "places",
        "token_indices_to_pool must be places of the prompt",
        asking({"max_new_tokens": 0}, token_indices_to_pool=[99]),
        _ended_by("index 99 is out of bounds"),
    ),
    (
        "embeddings_of_another_width",
        "embeddings",
        "input_embeds must have the shape",
        asking(input_ids=None, input_embeds=[[1.0]]),
        _ended_by("Expected hidden_size to be 32"),
    ),
    (
        "processors_that_cannot_be_made",
        "processors",
        "custom_logit_processor cannot be made",
        asking(custom_logit_processor="x"),
        _ended_by("JSONDecodeError"),
    ),
    (
        "labels_that_nobody_counts",
        "labels",
        "custom_labels must be among",
        asking(custom_labels={"team": "a"}),
        _ended_by("Incorrect label names"),
    ),
    ("names_of_probes", "probes", "rid must not begin with HEALTH_CHECK", asking_as_a_probe, UNANSWERED),
    (
        "sleeps_without_end",
        "sleeps",
        "forward_sleep_time must be at most",
        sleeping_without_end,
        _ended_by("timestamp out of range"),
    ),
    (
        "weights_without_shapes",
        "received-weights",
        "must be equally many",
        receiving_weights_without_shapes,
        "a weight that was not sent .*'success': True",
    ),
    (
        "groups_that_are_full",
        "full-groups",
        "must fit into world_size",
        joining_a_group_that_is_full,
        UNANSWERED,
    ),
)
"""What is lifted, the name of its scene, words of the refusal, what is asked, and what is found wrong."""
_TOGETHER = replace(
    _BARE, name="refused-requests", before=refused_one_after_the_other(*(ask for _, _, _, ask, _ in _ASKED))
)

REQUESTS = (
    Needed(
        "seeded_min_p",
        "min_p must be 0",
        replace(
            TRITON_DETERMINISTIC,
            name="refused-seeded-min-p",
            waves=(seeded,),
            before=asking({"temperature": 1.0, "top_k": 8, "sampling_seed": 1, "min_p": 0.1}),
        ),
        "multinomial_with_seed will provide wrong results",
    ),
    # Where a scheduler decodes by types.
    Needed(
        "values_of_no_type",
        "a value of a kind that is not expected there",
        replace(
            _BARE,
            name="refused-undecodable",
            flags=("--lane-variable", "SGLANG_USE_PICKLE_IPC=0"),
            before=asking({"custom_params": {"a": {"b": {"c": 1}}}}),
        ),
        _ended_by("msgspec.ValidationError: Expected"),
    ),
    *(
        Needed(lifted, refusal, replace(_BARE, name=f"refused-{name}", before=ask), wrong, together=_TOGETHER)
        for lifted, name, refusal, ask, wrong in _ASKED
    ),
)
