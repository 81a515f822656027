"""The entry point that SGLang calls in each of its processes: with `--use-ray`, ranks become our actors.

A second plugin beside `ddtree_sglang.engine.plugin`, since nothing of the engine adapter may know Ray. Ray is imported
only by a process that was told to use it.
"""

from __future__ import annotations

import multiprocessing
from typing import Any


def register() -> None:
    """Look at the arguments once SGLang has resolved them."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from ddtree_sglang.contract.patch import install
    from ddtree_sglang.contract.worker_patches import PLUGIN_PATCHES

    install(PLUGIN_PATCHES, HookRegistry, HookType)


def install_if_asked(result: Any, server_args: Any) -> None:
    """AFTER hook on `ServerArgs.resolve_once`, in the launching process: its children start no ranks.

    Raises:
        EngineContractError: SGLang or Ray is not what the workers were written against.
    """
    if server_args.use_ray and multiprocessing.parent_process() is None:
        from workers.replicas.rank_actor import install_rank_actors

        install_rank_actors()
