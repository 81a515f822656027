"""Sets up SGLang's OpenAI handlers in a process without an engine, as its HTTP server does in one with.

The order matters: publish the settings, then the token manager, then templates, then the handlers, which read the
settings and the templates when they are made (sglang/srt/entrypoints/http_server.py, `init_multi_tokenizer` and
`lifespan`). FastAPI routes call `chat.handle_request(request, raw_request)` and the same of `completion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workers.answers.router import Router
from workers.http.openai_errors import resilient
from workers.http.token_manager import TokenManager


@dataclass(frozen=True)
class OpenAIServing:
    """What a process needs to answer OpenAI requests."""

    manager: TokenManager
    chat: Any  # OpenAIServingChat
    completion: Any  # OpenAIServingCompletion


def publish_ingress(server_args: Any) -> None:
    """Publish the process-wide settings that the handlers read, once, before anything else of SGLang is made.

    What `Engine._launch_subprocesses` does for the tokenizer's process (sglang/srt/entrypoints/engine.py).
    """
    from sglang.srt.parser.template_detection import resolve_auto_parsers
    from sglang.srt.runtime_context import publish

    resolve_auto_parsers(server_args)
    publish(server_args, role="tokenizer")


def openai_serving(server_args: Any, router: Router, tokenizer: Any = None, model_config: Any = None) -> OpenAIServing:
    """The handlers over a router, after `publish_ingress`. Arguments as for `TokenManager`."""
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
    from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
    from sglang.srt.parser.template_manager import TemplateManager

    manager = TokenManager(server_args, router, tokenizer, model_config)
    templates = TemplateManager()
    templates.initialize_templates(
        tokenizer_manager=manager,
        model_path=manager.model_path,
        chat_template=manager.config_value("chat_template"),
        completion_template=manager.config_value("completion_template"),
    )
    return OpenAIServing(
        manager,
        chat=resilient(OpenAIServingChat)(manager, templates),
        completion=resilient(OpenAIServingCompletion)(manager, templates),
    )
