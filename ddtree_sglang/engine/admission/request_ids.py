"""Ids of requests: an abort ends the one that it names, and no two requests that live have the same.

Stock's scheduler ends every request whose id starts with the one that is aborted. A client that calls its request "a"
and hangs up ends a sixteenth of all others, whose ids are hexadecimal numbers. Nothing says so to them: each gets the
tokens that it had, with status 200.

With `--tokenizer-worker-num` above 1 each process knows its own ids alone. Two requests with one id get parts of each
other's text, and the process that makes text ends when one of them ends (managers/detokenizer_manager.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler

_OF_A_BATCH = re.compile(r"(_\d+)+")
"""What SGLang appends to the id of a batch for each of its requests (managers/io_struct.py, `_normalize_rid`)."""


def abort_no_other(original: Callable[..., None], scheduler: Scheduler, abort: AbortReq) -> None:
    """AROUND hook on `Scheduler.abort_request`: whose id merely begins like the aborted one's is left alone.

    Disaggregated servers keep further requests, in queues of their own; these are as in stock.
    """
    if abort.abort_all:
        original(scheduler, abort)
        return
    with _under_another_id(_others(scheduler, abort.rid), abort.rid):
        original(scheduler, abort)


def check_id(scheduler: Scheduler, request: TokenizedGenerateReqInput) -> str | None:
    """Why a request with this id must not be made now; None where it may, and where its process knows all ids."""
    if request.http_worker_ipc is None or all(req.rid != request.rid for req in _living(scheduler)):
        return None
    return f"rid must be no other request's, got {request.rid!r}; leave it out for one of its own."


def _living(scheduler: Scheduler) -> set[Req]:
    living = {*scheduler.waiting_queue, *scheduler.grammar_manager.grammar_queue, *scheduler.collect_inflight_reqs()}
    return living if scheduler.chunked_req is None else {*living, scheduler.chunked_req}


def _others(scheduler: Scheduler, rid: str) -> list[Req]:
    """Requests that stock would end with this one, and that are not of its batch."""
    return [req for req in _living(scheduler) if req.rid.startswith(rid) and not _is_meant(req.rid, rid)]


def _is_meant(rid: str, aborted: str) -> bool:
    return rid == aborted or _OF_A_BATCH.fullmatch(rid[len(aborted) :]) is not None


@contextmanager
def _under_another_id(requests: list[Req], rid: str) -> Iterator[None]:
    """In here their ids do not begin with `rid`. The scheduler's only thread is in here, too."""
    before = "\x00" if rid[:1] != "\x00" else "\x01"
    kept = [req.rid for req in requests]
    for req in requests:
        req.rid = before + req.rid
    try:
        yield
    finally:
        for req, own in zip(requests, kept, strict=True):
            req.rid = own
