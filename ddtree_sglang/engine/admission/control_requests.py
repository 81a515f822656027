"""A control request whose handler raises gets a failure for an answer: the scheduler would end over it.

Its client waits for an answer of one class, so one of that class is made. Requests that change weights are not among
them: a scheduler that goes on with half of them would answer wrongly, for everybody. They fail whole, or not at all
(`engine.admission.weight_updates`).

What `--speculative-accept-threshold-*` are refused for at start is refused of a running server, too. SGLang's chain
accepts tokens by them. A tree's rounds read none, so the answer would be that they are set, and nothing would change.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from ddtree_sglang.engine.spec import ALGORITHM, serves_ddtree

logger = logging.getLogger(__name__)

ANSWERS = {
    "CheckWeightsReqInput": "CheckWeightsReqOutput",
    "DestroyWeightsUpdateGroupReqInput": "DestroyWeightsUpdateGroupReqOutput",
    "FlushCacheReqInput": "FlushCacheReqOutput",
    "GetWeightsByNameReqInput": "GetWeightsByNameReqOutput",
    "InitWeightsSendGroupForRemoteInstanceReqInput": "InitWeightsSendGroupForRemoteInstanceReqOutput",
    "InitWeightsUpdateGroupReqInput": "InitWeightsUpdateGroupReqOutput",
    "LoadLoRAAdapterFromTensorsReqInput": "LoRAUpdateOutput",
    "LoadLoRAAdapterReqInput": "LoRAUpdateOutput",
    "OpenSessionReqInput": "OpenSessionReqOutput",
    "ProfileReq": "ProfileReqOutput",
    "SendWeightsToRemoteInstanceReqInput": "SendWeightsToRemoteInstanceReqOutput",
    "SetInternalStateReq": "SetInternalStateReqOutput",
    "SlowDownReqInput": "SlowDownReqOutput",
    "UnloadLoRAAdapterReqInput": "LoRAUpdateOutput",
}
"""SGLang's classes of requests (managers/io_struct.py) with those of their answers."""

THRESHOLDS = ("speculative_accept_threshold_single", "speculative_accept_threshold_acc")
"""Of a chain's acceptance, which `/set_internal_state` sets."""


def answer_failures(_result: None, scheduler: Any) -> None:
    """AFTER hook on `Scheduler.init_request_dispatcher`: its handlers may raise."""
    scheduler._request_dispatcher = Guarded(scheduler._request_dispatcher)


class Guarded:
    """A dispatcher that answers with a failure where a handler of `ANSWERS` raises."""

    def __init__(self, dispatch: Callable[[Any], Any]) -> None:
        self._dispatch = dispatch

    def __call__(self, request: Any) -> Any:
        """What the handler answers, or a failure with the reason."""
        name = type(request).__name__
        try:
            if name == "SetInternalStateReq" and (reason := _refusal(request)) is not None:
                logger.warning(reason)
                return failure(name, reason)
            return self._dispatch(request)
        except Exception as error:
            if name not in ANSWERS:
                raise
            logger.exception("%s failed", name)
            return failure(name, f"{type(error).__name__}: {error}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dispatch, name)


def _refusal(request: Any) -> str | None:
    """What is not set on a running server of trees."""
    asked = dict(request.server_args)
    relaxed = [f"{name} to {asked[name]}" for name in THRESHOLDS if asked.get(name, 1) != 1]
    if not relaxed or not serves_ddtree():
        return None
    return f"{ALGORITHM} is lossless, and acceptance thresholds below 1.0 are not; not set: {', '.join(relaxed)}."


def failure(request: str, reason: str) -> Any:
    """The answer to a request of that class that says why it failed, as far as its class can say so."""
    answer = getattr(importlib.import_module("sglang.srt.managers.io_struct"), ANSWERS[request])
    said = {"success": False, "updated": False, "message": reason, "error_message": reason}
    said |= {"parameter": None, "session_id": None}
    return answer(**{name: value for name, value in said.items() if name in answer.__struct_fields__})
