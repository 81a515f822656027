"""A model's tokenizer, end tokens and length limits, as SGLang uses them.

SGLang's own functions make them from its published configuration, so that the ingress and the replicas agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workers.answers.protocol import TokenRequest
from workers.answers.resume import EngineLimits
from workers.answers.text import AnswerText, Decode, TextRules
from workers.http.generate_input import PromptRules

# <|call|> of gpt-oss, an end token that its tool parser reads (DetokenizerManager.trim_matched_stop).
_GPT_OSS_CALL = 200012


class ModelTokenizer:
    """Encodes prompts, decodes answers, and knows the limits of both.

    Args:
        config_value: returns SGLang's published setting of that name.
        model_config: SGLang's ModelConfig.
        tokenizer: loaded with SGLang's `get_tokenizer` unless given.
    """

    def __init__(self, config_value: Callable[[str], Any], model_config: Any, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(config_value)
        self.eos_token_ids = _eos_token_ids(model_config, self.tokenizer)
        self._spoken_token_ids = _spoken_token_ids(config_value("tool_call_parser"), self.tokenizer)
        # The scheduler's bounds (init_req_max_new_tokens; TpModelWorker.get_worker_info and validate_input_length). A
        # replica with less memory for its KV cache has lower ones, and refuses a longer prompt itself.
        context_len = model_config.context_len
        self.limits = EngineLimits(
            self.eos_token_ids, max_total_len=context_len - 2, max_input_len=context_len - 1 - 5 - 1
        )
        self.prompt_rules = PromptRules(
            encode=self.encode,
            tokenizer=self.tokenizer,
            context_len=model_config.context_len,
            vocab_size=model_config.vocab_size,
            preferred_sampling=config_value("preferred_sampling_params") or {},
            truncate=bool(config_value("allow_auto_truncate")),
        )

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text))

    def token_texts(self, token_ids: list[int]) -> list[str]:
        """The text of each token by itself."""
        # One list per token: transformers 5 decodes a flat list as one text.
        return list(self.tokenizer.batch_decode([[token] for token in token_ids]))

    def answer_text(self, request: TokenRequest) -> AnswerText:
        """The empty text of an answer to this request."""
        from sglang.srt.managers.schedule_batch import INIT_INCREMENTAL_DETOKENIZATION_OFFSET

        spaces = request.sampling.get("spaces_between_special_tokens")
        return AnswerText(
            self._decode(True if spaces is None else bool(spaces)),
            TextRules.of(request.sampling, self.eos_token_ids, self._spoken_token_ids),
            context=request.prompt_ids[-INIT_INCREMENTAL_DETOKENIZATION_OFFSET:],
        )

    def _decode(self, spaces_between_special_tokens: bool) -> Decode:
        from sglang.srt.utils.patch_tokenizer import decode_without_hf_kwargs

        def fast(ids: Sequence[int], skip_special_tokens: bool) -> str:
            text: str = self.tokenizer.decode(
                list(ids),
                skip_special_tokens=skip_special_tokens,
                spaces_between_special_tokens=spaces_between_special_tokens,
            )
            return text

        def slow(ids: Sequence[int], skip_special_tokens: bool) -> str:
            text: str = decode_without_hf_kwargs(self.tokenizer, list(ids), skip_special_tokens)
            return text

        return fast if getattr(self.tokenizer, "is_fast", False) else slow


def load_tokenizer(config_value: Callable[[str], Any]) -> Any:
    """The tokenizer that SGLang would load."""
    from sglang.srt.utils.hf_transformers.tokenizer import get_tokenizer

    if config_value("skip_tokenizer_init"):
        raise ValueError("the ingress needs a tokenizer to make text of tokens; leave out --skip-tokenizer-init.")
    return get_tokenizer(
        config_value("tokenizer_path"),
        tokenizer_mode=config_value("tokenizer_mode"),
        trust_remote_code=config_value("trust_remote_code"),
        revision=config_value("revision"),
        tokenizer_backend=config_value("tokenizer_backend"),
    )


def _eos_token_ids(model_config: Any, tokenizer: Any) -> frozenset[int]:
    """The model's end tokens in `Req._check_token_based_finish`: all apart from the request's own."""
    ids = set(model_config.hf_eos_token_id or ())
    ids |= set(getattr(tokenizer, "additional_stop_token_ids", None) or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def _spoken_token_ids(tool_call_parser: str | None, tokenizer: Any) -> frozenset[int]:
    """End tokens that stay in the text because the tool parser needs them."""
    from sglang.srt.parser.response_template import tool_close_token_ids

    ids = frozenset(tool_close_token_ids(tool_call_parser, tokenizer))
    return ids | {_GPT_OSS_CALL} if tool_call_parser == "gpt-oss" else ids
