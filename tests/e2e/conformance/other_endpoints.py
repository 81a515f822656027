"""Requests to the endpoints that are not combined pairwise: their answers' bodies are compared all the same."""

from __future__ import annotations

from typing import Any

from tests.e2e.conformance.factors import SCHEMA

_WHOLE: dict[str, Any] = {"stream": False, "model": "default"}
_GREEDY = {"temperature": 0}
_OPTIONS = {"num_predict": 12, "temperature": 0}
_ASKED = [{"role": "user", "content": "Name three uses of copper."}]
_TOOL = {
    "name": "weather",
    "description": "Tell the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
    },
}
_QUESTIONS = [
    {"id": "ok", "type": "yes_no", "question": "Is it good?"},
    {
        "id": "kind",
        "type": "choice",
        "question": "Which?",
        "options": [{"name": "tea"}, {"name": "coffee", "description": "black"}],
    },
    {"id": "how", "type": "score", "question": "How much?", "levels": ["low", "middle", "high"]},
]
_MESSAGES: dict[str, Any] = {"model": "default", "max_tokens": 40, "messages": _ASKED, **_GREEDY}
_SCORE = {"query": "The sky is", "items": [" blue", " green"], "label_token_ids": [253, 28, 30], "model": "default"}

OTHER_SHAPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/messages", _MESSAGES),
    ("/v1/messages", {**_MESSAGES, "system": "Be brief.", "stop_sequences": [",", " of"]}),
    ("/v1/messages", {**_MESSAGES, "top_k": 1, "temperature": 1.0, "metadata": {"user_id": "a"}}),
    ("/v1/messages", {**_MESSAGES, "tools": [_TOOL], "tool_choice": {"type": "none"}}),
    ("/v1/messages/count_tokens", {"model": "default", "messages": _ASKED}),
    ("/api/chat", {**_WHOLE, "messages": _ASKED, "options": _OPTIONS}),
    ("/api/chat", {**_WHOLE, "messages": _ASKED, "options": {**_OPTIONS, "stop": [","], "top_k": 1}}),
    ("/api/generate", {**_WHOLE, "prompt": "Once upon a time", "options": _OPTIONS}),
    (
        "/api/generate",
        {**_WHOLE, "prompt": "Once upon a time", "system": "Be brief.", "options": _OPTIONS, "raw": True},
    ),
    ("/api/show", {"model": "default"}),
    ("/v1/score", _SCORE),
    ("/v1/score", {**_SCORE, "apply_softmax": True, "temperature": 0.5}),
    ("/v1/score", {**_SCORE, "item_first": True, "return_token_logprobs": True}),
    ("/v1/decisions", {"input": "A cup of tea.", "questions": _QUESTIONS}),
    ("/v1/decisions", {"input": {"cup": "tea"}, "questions": _QUESTIONS[:1], "return_prompt_token_ids": True}),
    ("/v1/systemone", {"state": "A cup.", "model": "default", "questions": {"ok": {"type": "noul"}}}),
    ("/v1/rerank", {"query": "tea", "documents": ["green tea", "a stone"]}),
    (
        "/vertex_generate",
        {
            "instances": [{"text": "The quick brown fox"}, {"text": "Dear Sir"}],
            "parameters": {"sampling_params": {"max_new_tokens": 12, **_GREEDY}},
        },
    ),
    ("/invocations", {"model": "default", "messages": _ASKED, "max_tokens": 12, **_GREEDY}),
    ("/v1/tokenize", {"model": "default", "prompt": "The quick brown fox"}),
    ("/v1/detokenize", {"model": "default", "tokens": [504, 2365, 253]}),
    ("/parse_function_call", {"text": "no call", "tools": [], "tool_call_parser": "qwen25"}),
    ("/separate_reasoning", {"text": "<think>so</think>yes", "reasoning_parser": "qwen3"}),
    ("/v1/embeddings", {"input": "tea", "model": "default"}),
    ("/v1/classify", {"input": "tea", "model": "default"}),
    ("/classify", {"text": "tea"}),
    ("/encode", {"text": "tea"}),
)
"""Path and body. Some are answered with an error by a model that generates; both servers' errors are compared."""

WITH_GRAMMARS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/messages", {**_MESSAGES, "tools": [_TOOL], "tool_choice": {"type": "any"}}),
    (
        "/v1/messages",
        {**_MESSAGES, "tools": [_TOOL], "tool_choice": {"type": "tool", "name": "weather"}},
    ),
    ("/v1/messages", {**_MESSAGES, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
)
"""Those that need grammars."""

_ADMIN = "changes the server or tells of it, and answers no prompt"
PATHS_LEFT_OUT = {
    **dict.fromkeys(
        (
            "/abort_request",
            "/add_external_corpus",
            "/begin_weight_update",
            "/close_session",
            "/configure_logging",
            "/continue_generation",
            "/destroy_weights_update_group",
            "/dump_expert_distribution_record",
            "/end_weight_update",
            "/flush_cache",
            "/freeze_gc",
            "/get_weights_by_name",
            "/hicache/storage-backend/clear",
            "/init_weights_send_group_for_remote_instance",
            "/init_weights_update_group",
            "/load_lora_adapter",
            "/load_lora_adapter_from_tensors",
            "/open_session",
            "/pause_generation",
            "/pd_role_switch",
            "/release_memory_occupation",
            "/remove_external_corpus",
            "/resume_memory_occupation",
            "/scale_elastic_ep",
            "/send_weights_to_remote_instance",
            "/set_internal_state",
            "/set_trace_level",
            "/slow_down",
            "/start_expert_distribution_record",
            "/start_profile",
            "/stop_expert_distribution_record",
            "/stop_profile",
            "/unload_lora_adapter",
            "/update_weight_version",
            "/update_weights_from_disk",
            "/update_weights_from_distributed",
            "/update_weights_from_ipc",
            "/update_weights_from_tensor",
            "/weights_checker",
        ),
        _ADMIN,
    ),
    "/v1/audio/transcriptions": "for speech models; the target of the tests is a text model",
    "/v1/responses/{response_id}/cancel": "ends an answer in the background, which no shape asks for",
}
"""POST endpoints that no request is sent to, with the reason."""
