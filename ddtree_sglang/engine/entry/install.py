"""When the hooks of this room are installed: where requests are read, before a `TokenizerManager` is made."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any


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
    HookRegistry.apply_hooks()
