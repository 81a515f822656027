"""SGLang's OpenAI endpoints over a router: what the ingress and a batch job answer with.

Templates, tool calls, log-probabilities and usage are SGLang's own classes (srt/entrypoints/openai), so an answer here
has the fields and the text of a single server's. They read settings that SGLang publishes once per process; the ones
that concern text are published here, nothing of the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers.answers.protocol import TokenSource
from workers.answers.router import ResumePolicy, Router
from workers.config import WorkerConfig
from workers.http.openai_serving import openai_serving, publish_ingress

TEXT_ARGS = frozenset(
    {
        "allow_auto_truncate",
        "chat_template",
        "completion_template",
        "context_length",
        "enable_cache_report",
        "json_model_override_args",
        "log_requests",
        "log_requests_level",
        "preferred_sampling_params",
        "reasoning_parser",
        "revision",
        "tokenizer_backend",
        "tokenizer_mode",
        "tokenizer_path",
        "tool_call_parser",
        "trust_remote_code",
    }
)
"""Server arguments that shape prompts and text; all others are the replicas' own."""


class Frontend:
    """Chat and text completions of one model; `router.counters` says how they fared."""

    def __init__(
        self, config: WorkerConfig, source: TokenSource, observe_resume: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self.router = Router(source, resume_policy(config), observe_resume=observe_resume)
        serving = openai_serving(publish_text_settings(config), self.router)
        self.manager, self.chat, self.completion = serving.manager, serving.chat, serving.completion

    def models(self) -> dict[str, Any]:
        """The body of `/v1/models`, as SGLang's server gives it."""
        from sglang.srt.entrypoints.openai.protocol import ModelCard, ModelList

        name = self.manager.served_model_name
        card = ModelCard(id=name, root=name, max_model_len=self.manager.model_config.context_len)
        body: dict[str, Any] = ModelList(data=[card]).model_dump()
        return body


def resume_policy(config: WorkerConfig) -> ResumePolicy:
    """How often and how long an answer looks for another replica."""
    return ResumePolicy(
        migration_limit=config.migration_limit,
        deadline_s=config.request_deadline_s,
        first_token_timeout_s=config.first_token_timeout_s,
        stall_timeout_s=config.stall_timeout_s,
    )


def publish_text_settings(config: WorkerConfig) -> Any:
    """Make this process's SGLang settings those of a tokenizer process for the model; returns the ServerArgs."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    text = {name: value for name, value in config.engine_args.items() if name in TEXT_ARGS}
    server_args = ServerArgs(model_path=config.model, served_model_name=config.name, **text)
    server_args.resolve_once()
    publish_ingress(server_args)
    return server_args
