"""`/v1/chat/completions`: each of its fields is a factor, or is left out by name."""

from __future__ import annotations

from tests.e2e.conformance.factors import (
    EBNF,
    REGEX,
    SAMPLING_MASK_LEFT_OUT,
    TAG,
    Factor,
    Level,
    choice,
    sampling_factors,
    switch,
)
from tests.e2e.conformance.openai_common import (
    COMMON_LEFT_OUT,
    COMPLETION,
    MULTIMODAL,
    NAMED_SCHEMA,
    STREAMS,
    STRICT_TOOLS,
    TOOLS,
    not_in_a_stream,
)

FACTORS: dict[str, Factor] = {
    "messages": Factor(
        {
            "one": Level({"messages": lambda s: [{"role": "user", "content": s.text}]}),
            "system": Level(
                {
                    "messages": lambda s: [
                        {"role": "system", "content": s.other},
                        {"role": "user", "content": s.text},
                    ]
                }
            ),
            "parts": Level({"messages": lambda s: [{"role": "user", "content": [{"type": "text", "text": s.text}]}]}),
            "turns": Level(
                {
                    "messages": lambda s: [
                        {"role": "user", "content": s.text},
                        {"role": "assistant", "content": "Yes."},
                        {"role": "user", "content": "Go on."},
                    ]
                }
            ),
            "begun answer": Level(
                {
                    "messages": lambda s: [
                        {"role": "user", "content": s.text},
                        {"role": "assistant", "content": "Well, the"},
                    ],
                    "continue_final_message": True,
                }
            ),
            "ids": Level(
                {"messages": lambda s: [{"role": "user", "content": s.text}], "input_ids": lambda s: list(s.ids)}
            ),
        }
    ),
    "length": Factor(
        {
            "middle": Level({"max_tokens": 24}),
            "one": Level({"max_tokens": 1}),
            "long": Level({"max_completion_tokens": 60}),
            "both": Level({"max_tokens": 6, "max_completion_tokens": 10}),
        }
    ),
    **sampling_factors(),
    **COMPLETION,
    "logprobs": Factor(
        {
            "off": Level(),
            "on": Level({"logprobs": True}),
            "top": Level({"logprobs": True, "top_logprobs": 3}),
            "flat": Level(
                {
                    "logprobs": True,
                    "top_logprobs": 2,
                    "return_meta_info": True,
                    "return_flat_raw_output_top_logprobs": True,
                    "return_flat_raw_top_logprobs_b64": False,
                }
            ),
        }
    ),
    "grammar": Factor(
        {
            "off": Level(),
            "regex": Level({"regex": REGEX}, "grammars"),
            "ebnf": Level({"ebnf": EBNF}, "grammars"),
            "json_schema": Level({"response_format": NAMED_SCHEMA}, "grammars"),
            "json_object": Level({"response_format": {"type": "json_object"}}, "grammars"),
            "text": Level({"response_format": {"type": "text"}}),
            "structural_tag": Level({"response_format": TAG}, "grammars"),
        }
    ),
    "tools": Factor(
        {
            "off": Level(),
            "auto": Level({"tools": TOOLS}),
            "none": Level({"tools": TOOLS, "tool_choice": "none"}),
            "required": Level({"tools": TOOLS, "tool_choice": "required"}, "grammars"),
            "named": Level(
                {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "history"}}}, "grammars"
            ),
            "strict": Level({"tools": STRICT_TOOLS}, "grammars"),
            "one at a time": Level(
                {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}, "grammars"
            ),
        }
    ),
    "return_prompt_token_ids": switch("return_prompt_token_ids"),
    "return_token_ids": switch("return_token_ids"),
    "return_meta_info": switch("return_meta_info"),
    "return_input_ids_in_sglext": switch("return_input_ids_in_sglext"),
    "return_output_ids_in_sglext": switch("return_output_ids_in_sglext"),
    "reasoning_effort": choice("reasoning_effort", low="low", none="none", some=0.5),
    "thinking": switch("thinking", {"type": "adaptive"}),
    "task": switch("task", "query"),
    "separate_reasoning": switch("separate_reasoning", False),
    "stream_reasoning": switch("stream_reasoning", False),
    "chat_template_kwargs": choice(
        "chat_template_kwargs", thinking={"enable_thinking": False}, spaces={"spaces_between_special_tokens": False}
    ),
}
FORBIDDEN = {
    "SGLang forbids a stop token before the minimum length, and ends a grammar that needs it": [
        (("min_tokens", "on"), ("stop_token_ids", "likely"))
    ],
    "an object may be over before the minimum length, and then no token is left": [
        (("min_tokens", "on"), ("grammar", "json_object"))
    ],
    "SGLang refuses a minimum length above the maximum": [(("min_tokens", "on"), ("length", "one"))],
    "SGLang refuses these in a stream": [
        *not_in_a_stream("return_prompt_token_ids"),
        *not_in_a_stream("return_token_ids"),
        *not_in_a_stream("return_meta_info"),
        *((("logprobs", "flat"), ("stream", stream)) for stream in STREAMS),
    ],
    "SGLang refuses two constraints of one output": [
        (("tools", tools), ("grammar", grammar))
        for tools in ("required", "named", "one at a time")
        for grammar in ("regex", "ebnf", "json_schema", "json_object", "structural_tag")
    ],
}
LEFT_OUT = {
    **SAMPLING_MASK_LEFT_OUT,
    **COMMON_LEFT_OUT,
    **dict.fromkeys(("max_dynamic_patch", "min_dynamic_patch", "use_audio_in_video", "video_config"), MULTIMODAL),
}
