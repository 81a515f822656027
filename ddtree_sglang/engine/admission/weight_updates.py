"""New weights are loaded on all ranks, or on none: an update that fails is taken back, and the server goes on.

SGLang's scheduler ends over most failures in the middle of loading, and goes on with half of the new weights over the
others (model_runner_components/weight_updater.py): a failure from disk is "rolled back" from the new path, since the
old one is forgotten by then. Here each rank says after each model whether it could load. If one could not, all of them
take back what the update wrote, in every model, and the client gets the reasons.

Stock leaves out names that a model does not know, with a warning. An update of which nothing at all is loaded is a
failure here, and so is a checkpoint on disk that leaves a weight of the model as it was.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from ddtree_sglang.engine.admission.host_cache import keeps_keys_in_files
from ddtree_sglang.engine.admission.weight_undo import KEPT_FREE_BYTES, UndoLog, watching
from ddtree_sglang.engine.device_path import is_device_path

logger = logging.getLogger(__name__)

ANSWERS = {
    "UpdateWeightFromDiskReqInput": "UpdateWeightFromDiskReqOutput",
    "UpdateWeightsFromDistributedReqInput": "UpdateWeightsFromDistributedReqOutput",
    "UpdateWeightsFromIPCReqInput": "UpdateWeightsFromIPCReqOutput",
    "UpdateWeightsFromTensorReqInput": "UpdateWeightsFromTensorReqOutput",
}
"""SGLang's classes of updates (managers/io_struct.py) with those of their answers."""

NOTHING = "none of them is a weight of the model"
"""A failure if all ranks say so: an expert of one rank is nothing to the others."""

IN_FILES = (
    "the files of --hicache-storage-backend hold keys of the weights from before, and no update reaches them; restart "
    "the server with the new weights and an empty folder."
)
"""A failure of every update: SGLang clears the device and the host alone."""

MOST_NAMES = 4
"""Names that a message gives in full."""

_log: ContextVar[UndoLog | None] = ContextVar("what the update in progress may write", default=None)


class UpdateFailed(ValueError):
    """An update that some rank could not load; raised on all ranks."""


def take_back_failures(original: Callable[..., Any], manager: Any, request: Any) -> Any:
    """AROUND hook on updates of `SchedulerWeightUpdaterManager`: one that fails changes nothing, and is answered."""
    if keeps_keys_in_files():
        return _failure(request, IN_FILES)
    try:
        runners = [runner for _, runner in manager._select_runners(getattr(request, "selector", "all"))]
    except ValueError as error:  # a selector that SGLang does not know
        return _failure(request, str(error))
    log = UndoLog([runner.model for runner in runners], _room_bytes(runners))
    token = _log.set(log)
    try:
        return original(manager, request)
    except UpdateFailed as error:
        log.roll_back()
        logger.error("new weights are taken back: %s", error)
        return _failure(request, f"{error}; the weights are those from before.")
    finally:
        _log.reset(token)
        log.forget()


def load_on_all_ranks(original: Callable[..., Any], updater: Any, *args: Any, **kwargs: Any) -> tuple[bool, str]:
    """AROUND hook on what loads of a runner's `WeightUpdater`: ranks go on if each of them could load.

    Raises:
        UpdateFailed: with the reasons of the ranks that could not.
    """
    sent = [*args, *kwargs.values()][0]
    return _loaded(updater, lambda: original(updater, *args, **kwargs), is_empty=isinstance(sent, list) and not sent)


def load_checkpoint_on_all_ranks(
    original: Callable[..., Any],
    updater: Any,
    model_path: str,
    load_format: str,
    *args: Any,
    recapture_cuda_graph: bool = False,
    **kwargs: Any,
) -> tuple[bool, str]:
    """AROUND hook on `WeightUpdater.update_weights_from_disk`: as above, and graphs are captured once all have loaded.

    Raises:
        UpdateFailed: as above, or a weight of the model is not in the checkpoint.
    """
    runner = updater.get_model_runner()
    forget = _memory_of_the_old_path(updater, runner)
    try:
        # A filter of names, which no endpoint gives, asks for part of a model.
        is_whole = not args and not kwargs
        answer = _loaded(
            updater, lambda: original(updater, model_path, load_format, *args, **kwargs), is_whole=is_whole
        )
    except UpdateFailed:
        forget()
        raise
    if recapture_cuda_graph and is_device_path():
        # Graphs need the memory that the copies hold, and a checkpoint is for one model: nothing else can fail.
        if (log := _log.get()) is not None:
            log.forget()
        updater.recapture_cuda_graph()
    return answer


def receive_on_all_ranks(original: Callable[..., Any], updater: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on `WeightUpdater.receive_weights_from_distributed`: stock lets each rank go on as it could receive.

    Raises:
        UpdateFailed: with the reasons of the ranks that could not.
    """
    weights, reason = None, None
    try:
        weights = original(updater, *args, **kwargs)
    except Exception as error:  # noqa: BLE001
        # A group of a client's may fail with anything.
        reason = _described(error)
    agree(reason, "received")
    return weights


def agree(reason: str | None, done: str) -> None:
    """Raise UpdateFailed on all tensor-parallel ranks if one of them has a reason, or if all found NOTHING."""
    from sglang.srt.runtime_context import get_parallel

    reasons = get_parallel().tp_group.all_gather_object(reason)
    passed = (None,) if set(reasons) == {NOTHING} else (None, NOTHING)
    wrong = [f"rank {rank}: {one}" for rank, one in enumerate(reasons) if one not in passed]
    if wrong:
        raise UpdateFailed(f"new weights cannot be {done} by " + "; ".join(wrong))


def _loaded(
    updater: Any, load: Callable[[], tuple[bool, str]], is_whole: bool = False, is_empty: bool = False
) -> tuple[bool, str]:
    """What `load` returns for a runner's model, if it could on all ranks.

    `is_whole`: every weight of the model has to be new; `is_empty`: none has to be.
    """
    log = _log.get()
    if log is None:
        return load()
    answer, reason = (False, ""), None
    try:
        with watching(log):
            answer = load()
        reason = answer[1]
        if answer[0]:
            reason = None if is_empty else _what_is_missing(log, updater.get_model(), is_whole)
    except Exception as error:  # noqa: BLE001
        # Loaders of models raise anything over weights that are not theirs.
        reason = _described(error)
    agree(reason, "loaded")
    return answer


def _what_is_missing(log: UndoLog, model: torch.nn.Module, is_whole: bool) -> str | None:
    """What is wrong with an update that `model` was given; at least the last of several has to be reached by it."""
    if not log.writes:
        return NOTHING if model is log.models[-1] else None
    missing = log.unwritten(model) if is_whole else []
    if not missing:
        return None
    more = f" and {len(missing) - MOST_NAMES} more" if len(missing) > MOST_NAMES else ""
    return f"the checkpoint has no {', '.join(missing[:MOST_NAMES])}{more}; send part of a model as tensors"


def _described(error: BaseException) -> str:
    """Its kind, what it says, and the tensor that a loader was at, which loaders of models have as `name`."""
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    at = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            at = ""  # what reads weights raised, in search of the one after
        name, tensor = frame.f_locals.get("name"), frame.f_locals.get("loaded_weight")
        if frame.f_code.co_name == "load_weights" and isinstance(name, str) and isinstance(tensor, torch.Tensor):
            at = f"{name} {list(tensor.shape)} of {tensor.dtype}: "
    return at + said


def _memory_of_the_old_path(updater: Any, runner: Any) -> Callable[[], None]:
    """What makes a runner name the checkpoint again that it names now: stock renames it first, and loads then."""
    from sglang.srt.runtime_context import get_model

    served = get_model()
    path, load_config = updater.model_config.model_path, runner.load_config
    of_process = {"model_path": served.model_path, "load_format": served.load_format}

    def forget() -> None:
        updater.model_config.model_path = path
        runner.update_model_fields(runner.model, load_config=load_config, **of_process)

    return forget


def _room_bytes(runners: list[Any]) -> int:
    """Device memory that copies may take; none on a host, where a copy is a copy."""
    from sglang.srt.utils import get_available_gpu_memory

    if not runners or not is_device_path():
        return 0
    updater = runners[0].weight_updater
    free_gib = get_available_gpu_memory(updater.device, updater.gpu_id, empty_cache=False)
    return max(0, int(free_gib * (1 << 30)) - KEPT_FREE_BYTES)


def _failure(request: Any, reason: str) -> Any:
    import sglang.srt.managers.io_struct as io_struct

    return getattr(io_struct, ANSWERS[type(request).__name__])(success=False, message=reason)
