"""Asks SGLang's OpenAI handlers without a network, and reads what they answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tests.workers.byte_tokenizer import byte_tokenizer
from workers.http.frontend import Frontend

CHAT_TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def save_model_folder(folder: Path) -> Path:
    """Configuration and tokenizer of a small model; no weights, as an ingress needs none."""
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokenizer = byte_tokenizer()
    LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=256,
        architectures=["LlamaForCausalLM"],
        bos_token_id=None,
        eos_token_id=0,
    ).save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    return folder


@dataclass
class Answer:
    """A response, whole or streamed."""

    status: int
    headers: dict[str, str]
    body: Any = None
    events: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False  # the stream ended with [DONE]

    def text(self, index: int = 0) -> str:
        """The streamed text of one choice."""
        parts = [choice for event in self.events for choice in event.get("choices", ()) if choice["index"] == index]
        return "".join(part["text"] if "text" in part else part["delta"].get("content") or "" for part in parts)

    def finish_reasons(self) -> list[tuple[int, str]]:
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return [(choice["index"], choice["finish_reason"]) for choice in choices if choice.get("finish_reason")]


def http_request(connected: list[bool] | None = None) -> Request:
    """A request whose client is there, or goes away when `connected` says so."""
    state = connected if connected is not None else [True]

    async def receive() -> dict[str, Any]:
        if state[0]:
            import asyncio

            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}, receive)


async def ask(serving: Frontend, **fields: Any) -> Answer:
    """Chat where there are messages, else a completion."""
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest

    if "messages" in fields:
        response = await serving.chat.handle_request(ChatCompletionRequest(model="m", **fields), http_request())
    else:
        response = await serving.completion.handle_request(CompletionRequest(model="m", **fields), http_request())
    return await read(response)


async def read(response: Any) -> Answer:
    if hasattr(response, "model_dump"):
        return Answer(200, {}, response.model_dump())
    answer = Answer(response.status_code, dict(response.headers))
    if not hasattr(response, "body_iterator"):
        answer.body = json.loads(response.body)
        return answer
    async for part in response.body_iterator:
        for line in part.strip().split("\n\n"):
            payload = line.removeprefix("data: ")
            if payload == "[DONE]":
                answer.done = True
            else:
                answer.events.append(json.loads(payload))
    if response.background is not None:
        await response.background()
    return answer
