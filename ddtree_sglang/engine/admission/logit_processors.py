"""Custom logit processors: one that cannot be made is refused, one that raises ends its own request.

Both end the scheduler in stock: it unpickles what a client sent in the middle of a batch, and calls it there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

logger = logging.getLogger(__name__)

_running: Sequence[Any] = ()
"""The requests of the batch that runs; a batch's sampling parameters do not know whose they are."""


def check_processor(serialized: str | None) -> str | None:
    """Why this `custom_logit_processor` must not reach a scheduler; None where it may.

    It is made here, in whichever process asks: with `--enable-custom-logit-processor` clients run their code anyway.
    """
    from sglang.srt.runtime_context import get_exec

    if not serialized or not get_exec().features.enable_custom_logit_processor:
        return None
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    try:
        processor = CustomLogitProcessor.from_str(serialized)
    except Exception as error:  # noqa: BLE001
        # Unpickling and a client's constructor may raise anything.
        return f"custom_logit_processor cannot be made: {_described(error)}; send what its `to_str()` returns."
    if not callable(processor):
        return f"custom_logit_processor must be callable, got {type(processor).__name__}; derive CustomLogitProcessor."
    return None


def note_running(_scheduler: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    """BEFORE hook on `Scheduler.run_batch`: remember whose processors run now."""
    global _running
    _running = batch.reqs


def let_processors_fail_alone(
    original: Callable[..., None], logits: Any, sampling_batch_info: Any, num_tokens_in_batch: int = 1
) -> None:
    """AROUND hook on `apply_custom_logit_processor`: a processor that raises ends its requests, and no others.

    Args:
        original: copies the rows of a processor, calls it, writes back what it returns.
        logits: `[B * num_tokens_in_batch, V]`, changed in place; unchanged for the requests that are ended.
        sampling_batch_info: of B requests.
        num_tokens_in_batch: rows of each request.
    """
    for key, entry in sampling_batch_info.custom_logit_processor.items():
        try:
            original(logits, _with_only(sampling_batch_info, key, entry), num_tokens_in_batch)
        except Exception as error:  # noqa: BLE001
            # A client's code may raise anything.
            _find_whose(original, logits, sampling_batch_info, num_tokens_in_batch, key, entry, error)


def _find_whose(
    original: Callable[..., None], logits: Any, info: Any, num_tokens: int, key: int, entry: Any, error: Exception
) -> None:
    """End the requests on whose rows the processor raises when it is called for one at a time."""
    if len(entry.rows) == 1:
        _end(key, info.custom_params[entry.rows[0]], error)
        return
    for place, row in enumerate(entry.rows):
        alone = dataclasses.replace(entry, rows=[row], indices=entry.indices[place : place + 1])
        try:
            original(logits, _with_only(info, key, alone), num_tokens)
        except Exception as own:  # noqa: BLE001
            _end(key, info.custom_params[row], own)


def _with_only(sampling_info: Any, key: int, entry: Any) -> Any:
    return dataclasses.replace(sampling_info, custom_logit_processor={key: entry})


def _end(key: int, custom_params: Any, error: Exception) -> None:
    """End the running requests that have this processor with these very parameters, with a 400."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    message = f"custom_logit_processor raised {_described(error)}"
    for req in _running:
        is_theirs = req.custom_logit_processor is not None and hash(req.custom_logit_processor) == key
        if is_theirs and req.sampling_params.custom_params is custom_params and req.to_finish is None:
            logger.error("%s, req.rid=%r", message, req.rid)
            req.to_finish = FINISH_ABORT(message, HTTPStatus.BAD_REQUEST, "BadRequestError")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
