"""New weights from a client's tensors: read on all ranks before one of them changes anything, or refused on all.

Stock's scheduler ends over a payload that cannot be unpickled, or that is of another form than its loader's. A rank
that refused alone would leave the others waiting where they meet after an update (managers/scheduler_components/
weight_updater.py). What fails later, in the middle of loading, is taken back (`engine.admission.weight_updates`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from ddtree_sglang.engine.admission.weight_updates import take_back_failures

logger = logging.getLogger(__name__)

BUCKET = "flattened_bucket"
_FORMATS = (None, "direct", BUCKET)
_BUCKET_FIELDS = ("flattened_tensor", "metadata")

_update: ContextVar[Any] = ContextVar("the update whose weights are read", default=None)


class WeightsUnreadable(ValueError):
    """New weights that a rank cannot read; raised on all ranks, before one of them has changed anything."""


def answer_unreadable_weights(original: Callable[..., Any], updater: Any, request: Any) -> Any:
    """AROUND hook on `SchedulerWeightUpdaterManager.update_weights_from_tensor`: what cannot be read is a failure."""
    from sglang.srt.managers.io_struct import UpdateWeightsFromTensorReqOutput

    reading = _update.set(request)
    try:
        _check_format(request.load_format)
        return take_back_failures(original, updater, request)
    except WeightsUnreadable as error:
        logger.error("new weights are refused: %s", error)
        return UpdateWeightsFromTensorReqOutput(success=False, message=str(error))
    finally:
        _update.reset(reading)


def read_on_all_ranks(original: Callable[..., Any], worker: Any, payloads: Any) -> Any:
    """AROUND hook on `TpModelWorker.deserialize_own_rank`: in an update, ranks go on if each has read its own payload.

    Raises:
        WeightsUnreadable: with the reasons of the ranks that could not.
    """
    request = _update.get()
    if request is None:  # an adapter, of which no rank waits for the others
        return original(worker, payloads)
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    weights, reason = None, None
    try:
        weights = _in_form(original(worker, payloads), request.load_format, int(parallel.tp_rank))
    except Exception as error:  # noqa: BLE001
        # Unpickling what a client sent may raise anything.
        reason = f"{type(error).__name__}: {error}"
    wrong = [
        f"rank {rank}: {one}" for rank, one in enumerate(parallel.tp_group.all_gather_object(reason)) if one is not None
    ]
    if wrong:
        raise WeightsUnreadable("serialized_named_tensors cannot be read by " + "; ".join(wrong))
    return weights


def _check_format(load_format: str | None) -> None:
    """Stock raises over one that it does not know, once the weights are read."""
    from sglang.srt.runtime_context import get_model

    known = (*_FORMATS, *(get_model().custom_weight_loader or ()))
    if load_format not in known:
        raise WeightsUnreadable(
            f"load_format must be left out or one of {', '.join(map(str, known[1:]))}, got {load_format!r}"
        )


def _in_form(weights: Any, load_format: str | None, rank: int) -> Any:
    """The weights, each tensor read; TypeError where they are of another form than the loader's."""
    from sglang.srt.model_executor.model_runner_components.weight_updater import LocalSerializedTensor

    if load_format == BUCKET:
        if not isinstance(weights, dict) or not all(name in weights for name in _BUCKET_FIELDS):
            raise TypeError(f"expected an object of {' and '.join(_BUCKET_FIELDS)}, got {type(weights).__name__}")
        return weights
    named = []
    for pair in weights:
        name, tensor = pair
        tensor = tensor.get(rank) if isinstance(tensor, LocalSerializedTensor) else tensor
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"expected pairs of a name and a tensor, got {type(name).__name__} and {type(tensor).__name__}"
            )
        named.append((name, tensor))
    return named
