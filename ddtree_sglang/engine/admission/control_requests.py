"""A control request whose handler raises gets a failure for an answer: the scheduler would end over it.

Its client waits for an answer of one class, so one of that class is made. Requests that change weights are not among
them: a scheduler that goes on with half of them would answer wrongly, for everybody. They fail whole, or not at all
(`engine.admission.weight_updates`).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

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


def answer_failures(_result: None, scheduler: Any) -> None:
    """AFTER hook on `Scheduler.init_request_dispatcher`: its handlers may raise."""
    scheduler._request_dispatcher = Guarded(scheduler._request_dispatcher)


class Guarded:
    """A dispatcher that answers with a failure where a handler of `ANSWERS` raises."""

    def __init__(self, dispatch: Callable[[Any], Any]) -> None:
        self._dispatch = dispatch

    def __call__(self, request: Any) -> Any:
        """What the handler answers, or a failure with the reason."""
        try:
            return self._dispatch(request)
        except Exception as error:
            if type(request).__name__ not in ANSWERS:
                raise
            logger.exception("%s failed", type(request).__name__)
            return failure(type(request).__name__, f"{type(error).__name__}: {error}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dispatch, name)


def failure(request: str, reason: str) -> Any:
    """The answer to a request of that class that says why it failed, as far as its class can say so."""
    answer = getattr(importlib.import_module("sglang.srt.managers.io_struct"), ANSWERS[request])
    said = {"success": False, "updated": False, "message": reason, "error_message": reason}
    said |= {"parameter": None, "session_id": None}
    return answer(**{name: value for name, value in said.items() if name in answer.__struct_fields__})
