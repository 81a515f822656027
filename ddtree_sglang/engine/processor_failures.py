"""A custom logit processor that raises ends its own request; stock's scheduler ends, and the server with it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

logger = logging.getLogger(__name__)

End = Callable[[Any, Any], None]


def _end_at_once(req: Any, reason: Any) -> None:
    if req.to_finish is None:
        req.to_finish = reason


_running: Sequence[Any] = ()
"""The requests that processors are called for, row by row; sampling parameters do not know whose they are."""

_end: End = _end_at_once
"""What is done with a request whose processor raises."""


def note_running(_scheduler: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    """BEFORE hook on `Scheduler.run_batch`: remember whose processors run now."""
    global _running
    _running = batch.reqs


@contextmanager
def called_for(reqs: Sequence[Any], end: End) -> Iterator[None]:
    """While processors are called for the rows of these requests: `end(req, reason)` ends one whose processor raises.

    `reason` is SGLang's `FINISH_ABORT`.
    """
    global _running, _end
    before = _running, _end
    _running, _end = reqs, end
    try:
        yield
    finally:
        _running, _end = before


def let_processors_fail_alone(
    original: Callable[..., None], logits: Any, sampling_batch_info: Any, num_tokens_in_batch: int = 1
) -> None:
    """AROUND hook on `apply_custom_logit_processor`: a processor that raises ends its request, and no other.

    Stock calls a processor once for all requests that sent the same one. Where such a call raises, it cannot be told
    for whose row, nor which rows the processor has seen by then, and what a client's code remembers cannot be taken
    back. So a processor is called for one request at a time: a call that raises has seen no other request, and none
    is repeated.

    Args:
        original: copies the rows of a processor, calls it, writes back what it returns.
        logits: `[B * num_tokens_in_batch, V]`, changed in place; unchanged for the requests that are ended.
        sampling_batch_info: of B requests.
        num_tokens_in_batch: rows of each request.
    """
    for key, entry in sampling_batch_info.custom_logit_processor.items():
        for place, row in enumerate(entry.rows):
            own = dataclasses.replace(entry, rows=[row], indices=entry.indices[place : place + 1])
            try:
                original(logits, _with_only(sampling_batch_info, key, own), num_tokens_in_batch)
            except Exception as error:  # noqa: BLE001
                # A client's code may raise anything.
                _end_with_400(row, error)


def _with_only(sampling_info: Any, key: int, entry: Any) -> Any:
    return dataclasses.replace(sampling_info, custom_logit_processor={key: entry})


def _end_with_400(row: int, error: Exception) -> None:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req = _running[row]
    message = f"custom_logit_processor raised {described(error)}"
    logger.error("%s, req.rid=%r", message, req.rid)
    _end(req, FINISH_ABORT(message, HTTPStatus.BAD_REQUEST, "BadRequestError"))


def described(error: Exception) -> str:
    """Its kind and what it says."""
    return f"{type(error).__name__}: {error}"
