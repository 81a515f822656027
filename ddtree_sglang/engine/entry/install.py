"""When the hooks of this room are installed: where requests are read, before a `TokenizerManager` is made."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)

HTTP_WORKERS = "ddtree_sglang.engine.entry.http_workers:app"
"""What a web server imports in each of several processes that tokenize."""


def install_where_requests_enter(_result: Any, server_args: Any, *, role: str, **_others: Any) -> None:
    """AFTER hook on `runtime_context.publish`, in which each process says what it is.

    Not at once: a scheduler would import what tokenizes and what serves HTTP, only to have it wrapped.
    """
    if role == "tokenizer":
        _install()


@cache
def _install() -> None:
    """An ingress of replicas has no tokenizer of SGLang's, and `Engine(...)` no HTTP server; none is imported here."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from ddtree_sglang.contract.entry_patches import ENTRY_PATCHES, RESPONSES_PATCHES, TOKENIZER_PATCHES
    from ddtree_sglang.contract.patch import install

    install(ENTRY_PATCHES, HookRegistry, HookType)
    if "sglang.srt.managers.tokenizer_manager" in sys.modules:
        install(TOKENIZER_PATCHES, HookRegistry, HookType)
    if "sglang.srt.entrypoints.http_server" in sys.modules:
        install(RESPONSES_PATCHES, HookRegistry, HookType)
        _register_warmup()
    HookRegistry.apply_hooks()


def _register_warmup() -> None:
    """SGLang looks its warm-ups up by the names in `--warmups` (entrypoints/warmup.py)."""
    from sglang.srt.entrypoints.warmup import warmup

    from ddtree_sglang.engine.admission.server_args import COSTS_WARMUP
    from ddtree_sglang.engine.entry.first_costs import measure_first_costs

    warmup(COSTS_WARMUP)(measure_first_costs)


def load_plugins_in_http_workers(*_args: Any, **_kwargs: Any) -> None:
    """BEFORE hook on `http_server._setup_and_run_http_server`: several processes that tokenize load plugins, too.

    An application of the user's own keeps its place: whether it loads them is its business.
    """
    from sglang.srt.environ import envs
    from sglang.srt.runtime_context import get_serving

    if get_serving().tokenizer_worker_num == 1:
        return
    path = envs.SGLANG_HTTP_SERVER_APP_PATH
    if not path.is_set():
        path.set(HTTP_WORKERS)
    elif path.get() != HTTP_WORKERS:
        logger.warning(
            "%s loads no plugins unless it calls sglang.srt.plugins.load_plugins() before it imports SGLang's "
            "application: requests are then refused by the scheduler, and streams that are refused begin with 200.",
            path.get(),
        )
