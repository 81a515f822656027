"""SGLang's OpenAI endpoints over replicas; the ingress and batch jobs answer with them.

Templates, tool calls, log-probabilities and usage are SGLang's own classes (srt/entrypoints/openai), so an answer here
has the fields and the text of a single server's. They read settings that SGLang publishes once per process; here, only
those that concern text are published.

The order matters: publish the settings, then make the manager, then the templates, then the handlers, which read the
settings and the templates when they are made (sglang/srt/entrypoints/http_server.py, `init_multi_tokenizer` and
`lifespan`). FastAPI routes call `handle_request(request, raw_request)` of `chat` and `completion`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddtree_sglang.contract.start import require
from ddtree_sglang.contract.workers import WORKERS
from workers.answers.protocol import TokenSource
from workers.answers.retry import RetryingGenerator, RetryPolicy
from workers.config import WorkerConfig
from workers.http.openai_errors import with_typed_errors
from workers.http.tokenizer_manager import TokenizerManagerAdapter

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
"""Server arguments that shape prompts and text; all others concern the replicas alone."""


class Frontend:
    """Chat and text completions of one model; `generator.counters` counts their outcomes.

    Args:
        server_args: SGLang's, published in this process by `publish_ingress`.
        generator: generates the answers.
        tokenizer: the model's; loaded as SGLang does it unless given.
    """

    def __init__(self, server_args: Any, generator: RetryingGenerator, tokenizer: Any = None) -> None:
        from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
        from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
        from sglang.srt.parser.template_manager import TemplateManager

        self.generator = generator
        self.manager = TokenizerManagerAdapter(server_args, generator, tokenizer)
        templates = TemplateManager()
        templates.initialize_templates(
            tokenizer_manager=self.manager,
            model_path=self.manager.model_path,
            chat_template=self.manager.config_value("chat_template"),
            completion_template=self.manager.config_value("completion_template"),
        )
        self.chat = with_typed_errors(OpenAIServingChat)(self.manager, templates)
        self.completion = with_typed_errors(OpenAIServingCompletion)(self.manager, templates)

    @classmethod
    def of(
        cls, config: WorkerConfig, source: TokenSource, observe_resume: Callable[[float], None] = lambda seconds: None
    ) -> Frontend:
        """The endpoints of a configuration over a source; publishes the settings."""
        generator = RetryingGenerator(source, resume_policy(config), observe_resume=observe_resume)
        return cls(publish_text_settings(config), generator)

    def models(self) -> dict[str, Any]:
        """The body of `/v1/models`, as SGLang's server gives it."""
        from sglang.srt.entrypoints.openai.protocol import ModelCard, ModelList

        name = self.manager.served_model_name
        card = ModelCard(id=name, root=name, max_model_len=self.manager.model_config.context_len)
        body: dict[str, Any] = ModelList(data=[card]).model_dump()
        return body


def resume_policy(config: WorkerConfig) -> RetryPolicy:
    """The retry settings of a configuration."""
    return RetryPolicy(
        migration_limit=config.migration_limit,
        deadline_s=config.request_deadline_s,
        first_token_timeout_s=config.first_token_timeout_s,
        stall_timeout_s=config.stall_timeout_s,
    )


def publish_text_settings(config: WorkerConfig) -> Any:
    """Publish the model's text settings in this process, as a tokenizer process has them; returns the ServerArgs."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    require(WORKERS)
    load_plugins()
    text = {name: value for name, value in config.engine_args.items() if name in TEXT_ARGS}
    server_args = ServerArgs(model_path=config.model, served_model_name=config.name, **text)
    server_args.resolve_once()
    publish_ingress(server_args)
    return server_args


def publish_ingress(server_args: Any) -> None:
    """Publish the process-wide settings that the handlers read; once, before anything else of SGLang is made.

    `Engine._launch_subprocesses` does so for the tokenizer's process (sglang/srt/entrypoints/engine.py).
    """
    from sglang.srt.parser.template_detection import resolve_auto_parsers
    from sglang.srt.runtime_context import publish

    resolve_auto_parsers(server_args)
    publish(server_args, role="tokenizer")
