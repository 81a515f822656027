"""Turns SGLang's GenerateReqInput into single requests of tokens.

Checks what `TokenizerManager` checks (sglang/srt/managers/tokenizer_manager.py, `_validate_one_request` and
`_create_tokenized_object`), so that a bad request never reaches a replica. SGLang is imported in functions only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.answers.protocol import TokenRequest

# Fields that a replica needs beside prompt and sampling parameters; passed on if they are set.
PASSED_ON = (
    "session_id",
    "session_params",
    "logprob_start_len",
    "token_ids_logprob",
    "return_sampling_mask",
    "sampling_logprobs_mode",
    "return_hidden_states",
    "return_routed_experts",
    "routed_experts_start_len",
    "return_indexer_topk",
    "custom_logit_processor",
    "watermark",
    "lora_path",
    "require_reasoning",
    "max_thinking_tokens",
    "priority",
    "extra_key",
    "cache_salt",
    "routing_key",
    "conversation_id",
    "custom_labels",
)
# Fields that concern one engine process, or that an answer made of tokens cannot have.
UNSUPPORTED = (
    "input_embeds",
    "positional_embed_overrides",
    "bootstrap_host",
    "bootstrap_room",
    "return_flat_raw_top_logprobs",
    "return_flat_raw_output_top_logprobs",
    "multi_item_delimiter_indices",
    "token_indices_to_pool",
    "routed_dp_rank",
    "kv_hints",
)


@dataclass(frozen=True)
class PromptRules:
    """Limits and defaults that the model and the server set for requests.

    Attributes:
        encode: token ids of a text.
        tokenizer: for SGLang's own check of the sampling parameters.
        context_len: most tokens of prompt and answer together.
        vocab_size: number of the model's token ids.
        preferred_sampling: the server's defaults (--preferred-sampling-params).
        truncate: shorten a prompt or answer that is too long instead of refusing it (--allow-auto-truncate).
    """

    encode: Callable[[str], list[int]]
    tokenizer: Any
    context_len: int
    vocab_size: int
    preferred_sampling: Mapping[str, Any]
    truncate: bool = False


def split(obj: Any) -> list[Any]:
    """One object per answer, in SGLang's order: all samples of the first prompt, then those of the second."""
    obj.normalize_batch_and_arguments()
    if obj.is_single:
        return [obj]
    num_samples: int = obj.parallel_sample_num
    if num_samples == 1:
        return [obj[i] for i in range(obj.batch_size)]
    return [_sample(obj[i]) for i in range(obj.batch_size) for _ in range(num_samples)]


def _sample(obj: Any) -> Any:
    sample = copy.copy(obj)
    sample.regenerate_rid()
    return sample


def token_request(obj: Any, rules: PromptRules) -> TokenRequest:
    """The request of tokens for one object of `split`.

    Raises:
        ValueError: an engine would refuse the request, or an answer to it could not resume at another replica.
    """
    _require_supported(obj)
    prompt = list(obj.input_ids) if obj.input_ids is not None else rules.encode(obj.text)
    sampling = {**rules.preferred_sampling, **(obj.sampling_params or {}), "n": 1}
    prompt, sampling = _fit_context(prompt, sampling, rules)
    _check_sampling(sampling, rules)
    return TokenRequest(
        request_id=obj.rid,
        prompt_ids=tuple(prompt),
        sampling=sampling,
        return_logprob=bool(obj.return_logprob),
        top_logprobs_num=obj.top_logprobs_num or 0,
        extra={name: value for name in PASSED_ON if (value := getattr(obj, name, None)) not in (None, False)},
    )


def _require_supported(obj: Any) -> None:
    named = [name for name in UNSUPPORTED if getattr(obj, name, None) not in (None, False)]
    if obj.contains_mm_input():
        named.append("image_data, video_data or audio_data")
    if ((obj.sampling_params or {}).get("beam_width") or 1) > 1:
        named.append("sampling_params.beam_width")
    if named:
        raise ValueError(
            f"not supported here: {', '.join(named)}. Only text requests can resume after a replica is lost; leave it "
            "out, or ask a single SGLang server."
        )


def _fit_context(
    prompt: Sequence[int], sampling: dict[str, Any], rules: PromptRules
) -> tuple[list[int], dict[str, Any]]:
    """Prompt and sampling parameters that fit the context: cut with `truncate`, else refused with ValueError."""
    limit = rules.context_len
    if not prompt:
        raise ValueError("a prompt must have at least one token, got none.")
    if len(prompt) >= limit:
        if not rules.truncate:
            raise ValueError(
                f"The input ({len(prompt)} tokens) is longer than the model's context length ({limit} tokens)."
            )
        prompt = prompt[:limit]
    max_new_tokens = sampling.get("max_new_tokens")
    if max_new_tokens is not None and len(prompt) + max_new_tokens > limit:
        if not rules.truncate:
            raise ValueError(
                f"Prompt and answer must fit the context of {limit} tokens, got {len(prompt)} tokens and "
                f"max_new_tokens {max_new_tokens}; shorten the prompt or ask for at most {limit - len(prompt)} tokens."
            )
        sampling = {**sampling, "max_new_tokens": limit - len(prompt)}
    return list(prompt), sampling


def _check_sampling(sampling: Mapping[str, Any], rules: PromptRules) -> None:
    from sglang.srt.sampling.sampling_params import SamplingParams

    try:
        params = SamplingParams(**sampling)
    except TypeError as error:
        raise ValueError(
            f"sampling_params must be SGLang's: {error}; see sampling_params in its documentation."
        ) from None
    params.normalize(rules.tokenizer)
    params.verify(rules.vocab_size)
