"""What requests to the OpenAI endpoints have in common: factors, fields that are left out, streams, tools."""

from __future__ import annotations

from tests.e2e.conformance.factors import (
    DISALLOWED,
    SCHEMA,
    Factor,
    Level,
    choice,
    disallowing_processor,
    switch,
)

MULTIMODAL = "for multimodal models; the target of the tests is a text model"
ROUTING = "for disaggregated prefill or data parallelism, which DDTREE refuses at start"
COMMON_LEFT_OUT = {
    **dict.fromkeys(("bootstrap_host", "bootstrap_port", "bootstrap_room", "disagg_prefill_dp_rank"), ROUTING),
    **dict.fromkeys(("routed_dp_rank", "data_parallel_rank"), ROUTING),
    **dict.fromkeys(("images_config", "mm_processor_kwargs"), MULTIMODAL),
    **dict.fromkeys(
        ("return_routed_experts", "routed_experts_start_len"),
        "needs a target of experts or with an indexer, and a flag",
    ),
    "lora_path": "needs a server with adapters, which has tests of its own",
    "watermark": "needs --enable-watermark, which SGLang refuses beside a plugin",
    "session_params": "needs a session that was opened, which has tests of its own",
}
NAMED_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}

REQUEST: dict[str, Factor] = {
    "cache": Factor(
        {
            "off": Level(),
            "extra_key": Level({"extra_key": lambda s: f"key {s.number}"}),
            "cache_salt": Level({"cache_salt": lambda s: f"salt {s.number}"}),
        }
    ),
    "rid": switch("rid", lambda s: f"shape-{s.number}-{{turn}}"),
    "priority": switch("priority", 3),
}
COMPLETION: dict[str, Factor] = {
    **REQUEST,
    "session_id": switch("session_id", lambda s: f"session-{s.number}"),
    "model": switch("model", "default"),
    "user": switch("user", "someone"),
    "seed": switch("seed", 17),
    "custom": Factor(
        {
            "off": Level(),
            "unknown": Level({"custom_params": {"shade": 3}}),
            "no tree": Level({"custom_params": {"ddtree": {"budget": 0}}}),
            "processor": Level(
                {"custom_params": DISALLOWED, "custom_logit_processor": lambda _: disallowing_processor()},
                "custom_logit_processor",
            ),
        }
    ),
    "stream": Factor(
        {
            "off": Level(),
            "on": Level({"stream": True}),
            "usage": Level({"stream": True, "stream_options": {"include_usage": True}}),
            "usage always": Level(
                {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
            ),
        }
    ),
    "return_hidden_states": choice("return_hidden_states", "return_hidden_states", all=True, last="last"),
    "return_cached_tokens_details": switch("return_cached_tokens_details"),
    "return_spec_tokens_details": switch("return_spec_tokens_details"),
    "min_tokens": switch("min_tokens", 6, "min_new_tokens"),
}
STREAMS = ("on", "usage", "usage always")


def not_in_a_stream(factor: str) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    return [((factor, "on"), ("stream", level)) for level in STREAMS]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Tell the {name} of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
    for name in ("weather", "history")
]
STRICT_TOOLS = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]  # type: ignore[dict-item]
