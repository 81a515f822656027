"""Values of a request that a scheduler ends over, with or without DDTREE.

Stock sends them on: its scheduler reads them in a forward of many requests, raises, and the server is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ddtree_sglang.engine.admission.request_kinds import check_kinds

MOST_ANSWERS = 8192
"""Of one request with `n`: each is a request of its own, made before the first is sent, some 20 KB of memory."""

_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)

_OF_A_SESSION = {"id": str, "rid": str, "offset": int, "replace": bool, "drop_previous_output": bool}

Check = Callable[[Any, int], str | None]


def check_fields(request: Any, vocab_size: int) -> str | None:
    """Why this tokenized request must not reach a scheduler; None where it may.

    Args:
        request: SGLang's `TokenizedGenerateReqInput`.
        vocab_size: number of rows of the target's embedding.
    """
    return next((reason for check in _CHECKS if (reason := check(request, vocab_size)) is not None), None)


def check_number_of_answers(num_answers: Any, num_prompts: int) -> str | None:
    """Why a request for so many answers to each prompt must not be taken apart; None where it may."""
    if not isinstance(num_answers, int) or isinstance(num_answers, bool) or num_answers < 1:
        return f"n must be a whole number from 1, got {num_answers!r}; leave it out for one answer."
    if num_answers > 1 and num_answers * num_prompts > MOST_ANSWERS:
        return f"n must give at most {MOST_ANSWERS} answers, got {num_answers} to {num_prompts}; send several requests."
    return None


def check_meetings(num_answers: int) -> str | None:
    """Why so many answers to each prompt must not be asked of a server that shares requests out; None where they may.

    SGLang gives all of them one room to meet their prefill in (managers/tokenizer_manager.py, `_handle_batch_request`),
    the first to come leaves with it, and the others wait for ever. A transfer that is faked meets nobody.
    """
    from sglang.srt.runtime_context import get_disagg

    if num_answers == 1:
        return None
    disagg = get_disagg()
    if disagg.disaggregation_mode == "null" or disagg.disaggregation_transfer_backend == "fake":
        return None
    return (
        f"n must be 1 with --disaggregation-mode {disagg.disaggregation_mode}, because all answers to a prompt "
        f"would wait in one bootstrap_room, got {num_answers}; send {num_answers} requests, each with its own room."
    )


def check_labels(labels: Any) -> str | None:
    """Why a request with these `custom_labels` must not be counted; None where it may.

    The process that tokenizes gives them to its metrics when the answer comes, and ends over one that they do not have.
    """
    from sglang.srt.runtime_context import get_observability

    if not labels or not get_observability().enable_metrics:
        return None
    allowed = get_observability().tokenizer_metrics_allowed_custom_labels or ()
    foreign = [label for label in labels if label not in allowed]
    if not foreign:
        return None
    known = ", ".join(allowed) or "none"
    return f"custom_labels must be among --tokenizer-metrics-allowed-custom-labels ({known}), got {foreign[0]!r}."


def _foreign_token(request: Any, vocab_size: int) -> str | None:
    """The embedding is indexed with these. Those of images are marked by ids of their own, which no client names."""
    if request.mm_inputs is not None or not request.input_ids:
        return None
    ids = np.asarray(request.input_ids)
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.size == 0:
        return None
    return f"input_ids must be token ids of the model, 0 to {vocab_size - 1}, got {int(wrong[0])}; check the tokenizer."


def _empty_prompt(request: Any, vocab_size: int) -> str | None:
    """An embedding of nothing, and the last row of it; a session may have the prompt already."""
    if request.input_ids or request.mm_inputs is not None or request.input_embeds or _continues_a_session(request):
        return None
    return "a prompt must have at least one token, got none; send a text that is not empty."


def _continues_a_session(request: Any) -> bool:
    """As the scheduler tells it (managers/scheduler.py, `_handle_generate_request`): by the id alone."""
    session = request.session_params
    return session is not None and session.id is not None and request.session_id is None


def _session(request: Any, vocab_size: int) -> str | None:
    """What a session's earlier requests are found and cut by; SGLang makes these of whatever JSON holds."""
    session = request.session_params
    if session is None:
        return None
    for name, kind in _OF_A_SESSION.items():
        value = getattr(session, name)
        if value is not None and type(value) is not kind:
            return f"session_params.{name} must be of type {kind.__name__}, got {value!r}; leave it out for none."
    if request.input_embeds is not None or request.input_ids is None:
        return "a request of a session must have tokens, got embeddings; send a text or input_ids."
    return None


def _overrides(request: Any, vocab_size: int) -> str | None:
    """Tensors for places of the prompt, which JSON cannot carry."""
    overrides = request.positional_embed_overrides
    if overrides is None or hasattr(overrides, "reconstruct"):
        return None
    return f"positional_embed_overrides must be SGLang's PositionalEmbeds, got {type(overrides).__name__}; drop it."


def _top_k(request: Any, vocab_size: int) -> str | None:
    """A batch's are one int32 tensor."""
    top_k = request.sampling_params.top_k
    if top_k <= _INT32_MAX:
        return None
    return f"top_k must be at most {_INT32_MAX}, got {top_k}; -1 is the whole vocabulary."


def _temperature(request: Any, vocab_size: int) -> str | None:
    """A batch's are one float32 tensor, where a larger one is infinite, and -inf logits over it are NaN.

    SGLang makes 0 greedy, unless a client says `is_normalized`, its mark of what it has read already.
    """
    temperature = request.sampling_params.temperature
    if _FLOAT32_TINY <= temperature <= _FLOAT32_MAX:
        return None
    return f"temperature must be at most {_FLOAT32_MAX:.2g}, got {temperature}; 0 is greedy, without is_normalized."


def _min_new_tokens(request: Any, vocab_size: int) -> str | None:
    """A batch's are one int32 tensor, and until then what ends the request is banned: a scatter into rows of logits."""
    sampling = request.sampling_params
    if not sampling.min_new_tokens > 0:
        return None
    if not sampling.min_new_tokens <= _INT32_MAX:
        return f"min_new_tokens must be at most {_INT32_MAX}, got {sampling.min_new_tokens}."
    for token in sampling.stop_token_ids or ():
        if not isinstance(token, (int, float)) or not 0 <= token < vocab_size:
            return (
                f"stop_token_ids must be token ids of the model, 0 to {vocab_size - 1}, with min_new_tokens, "
                f"got {token!r}; check the tokenizer."
            )
    return None


def _logit_bias(request: Any, vocab_size: int) -> str | None:
    """The sampler's softmax of a row with NaN, with +inf, or with -inf alone is NaN, and drawing from that raises."""
    bias = request.sampling_params.logit_bias or {}
    for token, value in bias.items():
        # As the float32 tensor has them.
        if math.isnan(value) or value > _FLOAT32_MAX:
            return f"logit_bias must be finite or -Infinity, got {value} for token {token}; 100 forces a token."
    if len(bias) >= vocab_size and all(value < -_FLOAT32_MAX for value in bias.values()):
        return "logit_bias must leave a token, got -Infinity for all of them; leave one out."
    return None


def _logprobs(request: Any, vocab_size: int) -> str | None:
    """The top of a row of logits, which has so many, and a place in the prompt to begin at."""
    if not request.return_logprob:
        return None
    if not 0 <= request.top_logprobs_num <= vocab_size:
        return f"top_logprobs_num must be from 0 to {vocab_size}, got {request.top_logprobs_num}."
    if request.logprob_start_len < -1:
        return f"logprob_start_len must be -1 for none of the prompt's, or from 0, got {request.logprob_start_len}."
    return None


def _places(request: Any, vocab_size: int) -> str | None:
    """Indices into the prompt."""
    length = len(request.input_ids or ())
    for name in ("multi_item_delimiter_indices", "token_indices_to_pool"):
        for place in getattr(request, name) or ():
            if not 0 <= place < length:
                return f"{name} must be places of the prompt, 0 to {length - 1}, got {place}."
    return None


_CHECKS: tuple[Check, ...] = (
    check_kinds,
    _empty_prompt,
    _session,
    _foreign_token,
    _overrides,
    _top_k,
    _temperature,
    _min_new_tokens,
    _logit_bias,
    _logprobs,
    _places,
)
