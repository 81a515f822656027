"""The entry point that SGLang calls in each of its processes: check the engine, then register DDTREE.

SGLang logs and swallows whatever a plugin raises (plugins/__init__.py), after which DDTREE would merely be
"unknown". So `register` never raises: what goes wrong is logged once, and an algorithm of the same name is
registered that raises the true reason as soon as the algorithm is asked for.
"""

from __future__ import annotations

import logging
from functools import cache, partial

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.engine.spec import ALGORITHM
from ddtree_sglang.exceptions import DDTreeError, EngineContractError

logger = logging.getLogger(__name__)

_registered = False
_refusal: DDTreeError | None = None
"""Why this process must not serve DDTREE; None once the wrappers of its round are installed."""


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
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from ddtree_sglang.contract.cpu_platform import CPU_PLATFORM
    from ddtree_sglang.contract.engine import ENGINE
    from ddtree_sglang.contract.entry import ENTRY
    from ddtree_sglang.contract.patch import install
    from ddtree_sglang.contract.patches import FLAG_PATCHES
    from ddtree_sglang.contract.start import require, untested_release
    from ddtree_sglang.cpu_platform import is_active

    install(FLAG_PATCHES, HookRegistry, HookType)
    require((*ENGINE, *ENTRY, *(CPU_PLATFORM if is_active() else ())))
    # Only now: a release that lacks what this imports is refused by the rows that name it.
    from ddtree_sglang.engine.algorithm import DDTreeSpecAlgo, UntestedSpecAlgo

    refusal = untested_release()
    if refusal is None:
        install_round()
        _register_algorithm(DDTreeSpecAlgo)
        return
    _refuse(refusal)
    if DDTreeConfig.from_env().untested_engine:
        # A process that the launcher started reads no arguments; the launcher's are still to come, and they decide.
        _start_untested(refusal)
    start = staticmethod(partial(_start_untested, refusal, at_once=True))
    _register_algorithm(type("Untested", (UntestedSpecAlgo,), {"reason": refusal, "start": start}))


@cache
def install_round() -> None:
    """Tell SGLang to wrap what a decode round needs wrapped; it does so after its last plugin. Once per process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from ddtree_sglang.contract.patch import install
    from ddtree_sglang.contract.patches import ADMISSION_PATCHES, ROUND_PATCHES
    from ddtree_sglang.cpu_platform import install_cpu_hooks

    install_cpu_hooks()
    install((*ROUND_PATCHES, *ADMISSION_PATCHES), HookRegistry, HookType)


def _start_untested(refusal: DDTreeError, at_once: bool = False) -> None:
    """Go on with a release that was not tested; `at_once` where SGLang has wrapped what its plugins asked for."""
    global _refusal
    from sglang.srt.plugins.hook_registry import HookRegistry

    if _refusal is not None:
        logger.warning("Starting on an engine that was not tested, as asked for: %s", refusal)
    install_round()
    _refusal = None
    if at_once:
        HookRegistry.apply_hooks()


def is_refused() -> bool:
    """Whether this process must not serve DDTREE, so that no name of its engine may be relied on."""
    return _refusal is not None


def make_worker_class(server_args: object) -> type:
    """The factory that SGLang's scheduler calls; importing the worker pulls in the engine, so it waits till here.

    Raises:
        DDTreeError: DDTREE is refused here. A scheduler asks no algorithm about its arguments, so this is its gate.
    """
    if _refusal is not None:
        raise _refusal
    from ddtree_sglang.contract.patch import assign
    from ddtree_sglang.contract.patches import SCHEDULER_PATCHES
    from ddtree_sglang.engine.worker import DDTreeWorker

    for patch in SCHEDULER_PATCHES:
        assign(patch)
    return DDTreeWorker


def _register_algorithm(algorithm: type) -> None:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    SpeculativeAlgorithm.register(ALGORITHM, supports_overlap=True, spec_class=algorithm)(make_worker_class)


def _refuse(reason: DDTreeError) -> None:
    global _refusal
    _refusal = reason


def _register_refusal(reason: DDTreeError) -> None:
    _refuse(reason)
    from ddtree_sglang.engine.algorithm import RefusedSpecAlgo

    _register_algorithm(type("Refused", (RefusedSpecAlgo,), {"reason": reason}))
