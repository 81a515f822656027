"""`/v1/responses`: each of its fields is a factor, or is left out by name."""

from __future__ import annotations

from tests.e2e.conformance.factors import (
    SCHEMA,
    Factor,
    Level,
    choice,
    switch,
)
from tests.e2e.conformance.openai_common import (
    COMMON_LEFT_OUT,
    ROUTING,
    TOOLS,
)

FACTORS: dict[str, Factor] = {
    "input": Factor(
        {
            "text": Level({"input": lambda s: s.text, "model": "default"}),
            "messages": Level({"input": lambda s: [{"role": "user", "content": s.text}], "model": "default"}),
        }
    ),
    "length": Factor(
        {
            "middle": Level({"max_output_tokens": 24}),
            # SGLang takes one off.
            "one": Level({"max_output_tokens": 2}),
            "long": Level({"max_output_tokens": 60}),
        }
    ),
    "sampling": Factor(
        {
            "greedy": Level({"temperature": 0.0}),
            "top_k": Level({"temperature": 1.0, "top_k": 1}),
            "top_p": Level({"temperature": 1.3, "top_p": 1e-6}),
            "min_p": Level({"temperature": 1.3, "min_p": 1.0}),
            "drawn": Level({"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01}),
        }
    ),
    "frequency_penalty": choice("frequency_penalty", "penalties", high=0.9, negative=-0.3),
    "presence_penalty": choice("presence_penalty", "penalties", high=1.2),
    "repetition_penalty": choice("repetition_penalty", "penalties", high=1.3),
    "stop": choice("stop", likely=" ", several=["th", "e", "a "], rare="xyzzy"),
    "instructions": switch("instructions", lambda s: s.other),
    "text": Factor(
        {
            "off": Level(),
            "text": Level({"text": {"format": {"type": "text"}}}),
            "json_schema": Level(
                {"text": {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA}}}, "grammars"
            ),
        }
    ),
    "tools": Factor(
        {
            "off": Level(),
            "auto": Level({"tools": [{"type": "function", **tool["function"]} for tool in TOOLS]}),  # type: ignore[dict-item]
            "required": Level(
                {
                    "tools": [{"type": "function", **tool["function"]} for tool in TOOLS],  # type: ignore[dict-item]
                    "tool_choice": "required",
                    "parallel_tool_calls": False,
                },
                "grammars",
            ),
        }
    ),
    "store": switch("store", False),
    "stream": switch("stream"),
    "metadata": switch("metadata", {"colour": "red"}),
    "user": switch("user", "someone"),
    "truncation": switch("truncation", "disabled"),
    "service_tier": switch("service_tier", "default"),
    "include": switch("include", ["message.output_text.logprobs"]),
    "top_logprobs": switch("top_logprobs", 2),
    "reasoning": switch("reasoning", {"effort": "low"}),
    "chat_template_kwargs": switch("chat_template_kwargs", {"enable_thinking": False}),
    "max_tool_calls": switch("max_tool_calls", 1),
    "session_id": switch("session_id", lambda s: f"session-{s.number}"),
    "priority": switch("priority", 3),
    "cache": Factor(
        {
            "off": Level(),
            "extra_key": Level({"extra_key": lambda s: f"key {s.number}"}),
            "cache_salt": Level({"cache_salt": lambda s: f"salt {s.number}"}),
        }
    ),
    "request_id": switch("request_id", lambda s: f"resp_{s.number}{{turn}}"),
}
FORBIDDEN = {
    "SGLang refuses two constraints of one output": [(("tools", "required"), ("text", "json_schema"))],
    "SGLang refuses log-probabilities in a stream": [
        (("include", "on"), ("stream", "on")),
        (("top_logprobs", "on"), ("stream", "on")),
    ],
}
LEFT_OUT = {
    **{name: why for name, why in COMMON_LEFT_OUT.items() if why == ROUTING},
    "background": "the answer is polled for later, and no body comes back at once",
    "previous_response_id": "needs an earlier answer; a conversation in `messages` is the same request inside",
}
