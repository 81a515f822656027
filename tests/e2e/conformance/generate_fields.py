"""`/generate`: each of its fields and sampling parameters is a factor, or is left out by name."""

from __future__ import annotations

import json

from tests.e2e.conformance.factors import (
    DISALLOWED,
    EBNF,
    REGEX,
    SAMPLING_MASK_LEFT_OUT,
    SCHEMA,
    TAG,
    Factor,
    Level,
    choice,
    disallowing_processor,
    sampling_factors,
    switch,
)

_AT = "sampling_params."

_LOGPROBS = {"return_logprob": True}

FACTORS: dict[str, Factor] = {
    "prompt": Factor(
        {
            "text": Level({"text": lambda s: s.text}),
            "ids": Level({"input_ids": lambda s: list(s.ids)}),
            "texts": Level({"text": lambda s: [s.text, s.other]}),
            "rows of ids": Level({"input_ids": lambda s: [list(s.ids), list(s.other_ids)]}),
        }
    ),
    "length": Factor(
        {
            "24": Level({_AT + "max_new_tokens": 24}),
            "1": Level({_AT + "max_new_tokens": 1}),
            "0": Level({_AT + "max_new_tokens": 0}),
            "60": Level({_AT + "max_new_tokens": 60}),
        }
    ),
    **sampling_factors(_AT),
    "min_new_tokens": switch(_AT + "min_new_tokens", 6, "min_new_tokens"),
    "grammar": Factor(
        {
            "off": Level(),
            "json_schema": Level({_AT + "json_schema": json.dumps(SCHEMA)}, "grammars"),
            "regex": Level({_AT + "regex": REGEX}, "grammars"),
            "ebnf": Level({_AT + "ebnf": EBNF}, "grammars"),
            "structural_tag": Level({_AT + "structural_tag": json.dumps(TAG)}, "grammars"),
        }
    ),
    "sampling_seed": switch(_AT + "sampling_seed", 17),
    "spaces_between_special_tokens": switch(_AT + "spaces_between_special_tokens", False),
    "stream_interval": choice(_AT + "stream_interval", every=1, third=3),
    "custom": Factor(
        {
            "off": Level(),
            "unknown": Level({_AT + "custom_params": {"shade": 3}}),
            "no tree": Level({_AT + "custom_params": {"ddtree": {"budget": 0}}}),
            "processor": Level(
                {_AT + "custom_params": DISALLOWED, "custom_logit_processor": lambda _: disallowing_processor()},
                "custom_logit_processor",
            ),
        }
    ),
    "logprobs": Factor(
        {
            "off": Level(),
            "chosen": Level(_LOGPROBS),
            "top": Level({**_LOGPROBS, "top_logprobs_num": 3}),
            "of ids": Level({**_LOGPROBS, "token_ids_logprob": [32, 101, 116]}),
            "prompt": Level({**_LOGPROBS, "logprob_start_len": 0, "top_logprobs_num": 2}),
            "end of prompt": Level({**_LOGPROBS, "logprob_start_len": 3, "token_ids_logprob": [32]}),
            "flat": Level({**_LOGPROBS, "top_logprobs_num": 2, "return_flat_raw_top_logprobs": True}),
            "flat output": Level(
                {
                    **_LOGPROBS,
                    "top_logprobs_num": 2,
                    "logprob_start_len": 0,
                    "return_flat_raw_top_logprobs": True,
                    "return_flat_raw_output_top_logprobs": True,
                    "return_flat_raw_top_logprobs_b64": False,
                }
            ),
        }
    ),
    "return_text_in_logprobs": switch("return_text_in_logprobs"),
    "stream": switch("stream"),
    "return_hidden_states": switch("return_hidden_states", feature="return_hidden_states"),
    "return_entropy": switch("return_entropy"),
    "return_prompt_token_ids": switch("return_prompt_token_ids"),
    "require_reasoning": switch("require_reasoning"),
    "cache": Factor(
        {
            "off": Level(),
            "extra_key": Level({"extra_key": lambda s: f"key {s.number}"}),
            "cache_salt": Level({"cache_salt": lambda s: f"salt {s.number}"}),
        }
    ),
    "rid": switch("rid", lambda s: f"shape-{s.number}-{{turn}}"),
    "session_id": switch("session_id", lambda s: f"session-{s.number}"),
    "priority": switch("priority", 3),
    "log_metrics": switch("log_metrics", False),
    "no_logs": switch("no_logs"),
    "labels": Factor(
        {
            "off": Level(),
            "on": Level(
                {"custom_labels": {"team": "a"}, "routing_key": "r", "conversation_id": "c", "background": True}
            ),
        }
    ),
}

FORBIDDEN = {
    "SGLang refuses flat rows of the output in a stream": [(("logprobs", "flat output"), ("stream", "on"))],
    "SGLang's log-probabilities of an answer of no token hang on what is prefilled beside it; tests/e2e/test_ends.py": [
        (("length", "0"), ("logprobs", level))
        for level in ("chosen", "top", "of ids", "prompt", "end of prompt", "flat", "flat output")
    ],
    "SGLang forbids a stop token before the minimum length, and ends a grammar that needs it": [
        (("min_new_tokens", "on"), ("stop_token_ids", "likely"))
    ],
    "SGLang refuses a minimum length above the maximum": [
        (("min_new_tokens", "on"), ("length", "1")),
        (("min_new_tokens", "on"), ("length", "0")),
    ],
}
"""Pairs that no shape holds, by reason."""

LEFT_OUT = {
    **SAMPLING_MASK_LEFT_OUT,
    **dict.fromkeys(
        (
            "image_data",
            "video_data",
            "audio_data",
            "mm_hashes",
            "mm_content_hashes",
            "use_audio_in_video",
            "video_config",
            "modalities",
            "max_dynamic_patch",
            "min_dynamic_patch",
            "image_max_dynamic_patch",
            "video_max_dynamic_patch",
            "images_config",
            "mm_processor_kwargs",
            "need_wait_for_mm_inputs",
            "num_items_assigned",
            "encoder_urls",
        ),
        "for multimodal models; the target of the tests is a text model",
    ),
    **dict.fromkeys(
        (
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "bootstrap_pair_key",
            "decode_tp_size",
            "disagg_prefill_dp_rank",
            "kv_hints",
        ),
        "for disaggregated prefill or its orchestrator, which DDTREE refuses at start",
    ),
    **dict.fromkeys(
        ("routed_dp_rank", "data_parallel_rank"), "chooses a rank of data parallelism, which DDTREE refuses at start"
    ),
    **dict.fromkeys(("lora_path", "lora_id"), "needs a server with adapters, which has tests of its own"),
    **dict.fromkeys(
        ("return_routed_experts", "routed_experts_start_len", "return_indexer_topk"),
        "needs a target of experts or with an indexer, and a flag",
    ),
    **dict.fromkeys(
        ("watermark", "sampling_params.watermark"), "needs --enable-watermark, which SGLang refuses beside a plugin"
    ),
    "input_embeds": "stands in for a prompt; SGLang needs --disable-radix-cache for it",
    "positional_embed_overrides": "holds tensors; no JSON can carry it",
    "session_params": "needs a session that was opened, which has tests of its own",
    "max_thinking_tokens": "needs --enable-strict-thinking and a reasoning model",
    "multi_item_delimiter_indices": "for scoring, which the scoring endpoints set themselves",
    "token_indices_to_pool": "for pooling, which the scoring endpoints set themselves",
    "sampling_params.beam_width": "SGLang refuses beam search with every speculative algorithm",
    **dict.fromkeys(
        ("http_worker_ipc", "received_time", "external_trace_header", "return_bytes"), "internal to the engine"
    ),
    **dict.fromkeys(
        (
            f"sampling_params.{name}"
            for name in (
                "stop_strs",
                "stop_regex_strs",
                "stop_str_max_len",
                "stop_regex_max_len",
                "is_normalized",
                "ebnf_full_assistant",
            )
        ),
        "internal: SGLang fills it in",
    ),
}
"""Fields that no shape sets, with the reason."""
