"""The entry point that SGLang calls in each of its processes: check the engine, then register DDTREE.

SGLang logs and swallows whatever a plugin raises (plugins/__init__.py), after which DDTREE would merely be
"unknown". So `register` never raises: what goes wrong is logged once, and an algorithm of the same name is
registered that raises the true reason as soon as the algorithm is asked for.
"""

from __future__ import annotations

import logging

from ddtree_sglang.engine.spec import ALGORITHM
from ddtree_sglang.exceptions import DDTreeError, EngineContractError

logger = logging.getLogger(__name__)

_registered = False


def register() -> None:
    """Register DDTREE with this process's SGLang; harmless when called again."""
    global _registered
    if _registered:
        return
    _registered = True
    try:
        _register()
    except Exception as error:  # noqa: BLE001
        # Any failure has to reach the user as itself; an exception that leaves here is only logged.
        reason = error if isinstance(error, DDTreeError) else EngineContractError(f"{type(error).__name__}: {error}")
        logger.error("%s could not be registered: %s", ALGORITHM, reason)
        _register_refusal(reason)


def _register() -> None:
    from ddtree_sglang.contract.cpu_platform import CPU_PLATFORM
    from ddtree_sglang.contract.engine import ENGINE
    from ddtree_sglang.contract.start import require, require_release
    from ddtree_sglang.cpu_platform import install_cpu_hooks, is_active
    from ddtree_sglang.engine.hooks import register_engine_hooks, register_flag_hooks

    register_flag_hooks()
    require((*ENGINE, *CPU_PLATFORM) if is_active() else ENGINE)
    require_release()
    install_cpu_hooks()
    register_engine_hooks()
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from ddtree_sglang.engine.algorithm import DDTreeSpecAlgo

    SpeculativeAlgorithm.register(ALGORITHM, supports_overlap=True, spec_class=DDTreeSpecAlgo)(make_worker_class)


def make_worker_class(server_args: object) -> type:
    """The factory that SGLang's scheduler calls; importing the worker pulls in the engine, so it waits till here."""
    from ddtree_sglang.engine.worker import DDTreeWorker

    return DDTreeWorker


def _register_refusal(reason: DDTreeError) -> None:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from ddtree_sglang.engine.algorithm import RefusedSpecAlgo

    refused = type("Refused", (RefusedSpecAlgo,), {"reason": reason})
    SpeculativeAlgorithm.register(ALGORITHM, supports_overlap=True, spec_class=refused)(make_worker_class)
