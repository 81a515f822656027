"""Where a run of tokens ends its request, judged as plain decoding judges: after each token, by what was there then.

SGLang judges a run at once: a stop string anywhere in it beats a token that ends the request before it, of several
strings the first of the list beats the earliest, and what reads the run before it is judged (`reasoning_tokens`,
log-probabilities, KV accounting) reads past the end. Here a run is cut before anything reads it.

The device has cut a run at the tokens and lengths that end its request (`core.round_ends`). What is left needs text, a
grammar's state or an abort, which the host knows; a request that has none of these costs a look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from ddtree_sglang.engine.grammar_ends import grammar_as_plain
from ddtree_sglang.engine.spec import serves_ddtree

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A run up to its end, and what plain decoding makes of the end; both None where the request goes on."""

    token_ids: list[int]
    finished_reason: Any
    finished_len: int | None


_judged: WeakKeyDictionary[Req, JudgedRun] = WeakKeyDictionary()
"""Runs that were cut and are still to be appended to their requests' outputs: at most one of each request."""


def needs_host(req: Req) -> bool:
    """Whether something may end the request that the device does not know."""
    params = req.sampling_params
    return bool(params.stop_strs or params.stop_regex_strs or req.grammar is not None or req.to_finish)


def judge(req: Req, run: list[int]) -> JudgedRun:
    """What plain decoding makes of a request that is given the tokens of `run` one by one; the request stays as it is.

    A grammar is judged in the state before the run: plain decoding looks at it before it takes the token in.
    """
    start, abort = len(req.output_ids), req.to_finish
    try:
        for token in run:
            req.output_ids.append(token)
            req.update_finish_state(1)
            if req.finished():
                break
        return JudgedRun(list(req.output_ids[start:]), req.finished_reason, req.finished_len)
    finally:
        del req.output_ids[start:]
        req.finished_reason, req.finished_len, req.to_finish = None, None, abort


def cut_runs(result: GenerationBatchResult, batch: ScheduleBatch) -> None:
    """Cut the runs of a decode round that is on the host, once, whoever asks first."""
    stride = result.speculative_output_stride
    lens: list[int] | None = None
    for row, req in enumerate(batch.reqs):
        if req.is_retracted or req.finished() or not needs_host(req) or req in _judged:
            continue
        lens = result.accept_lens.tolist() if lens is None else lens
        judged = judge(req, result.next_token_ids[row * stride :][: lens[row]].tolist())
        _judged[req] = judged
        lens[row] = len(judged.token_ids)
    if lens is not None:
        result.accept_lens = torch.tensor(lens, dtype=torch.int32)


def cut_before_tokens_are_resolved(
    original: Callable[..., list[list[int]]], processor: Any, result: GenerationBatchResult, batch: ScheduleBatch
) -> list[list[int]]:
    """AROUND hook on `_resolve_spec_v2_tokens`, which counts and hands on the runs of a decode round."""
    if not serves_ddtree():
        return original(processor, result, batch)
    for req in batch.reqs:
        if req.is_retracted or req.finished():
            _judged.pop(req, None)
    cut_runs(result, batch)
    return original(processor, result, batch)


def cut_before_grammars_advance(
    original: Callable[..., None], processor: Any, result: GenerationBatchResult, batch: ScheduleBatch
) -> None:
    """AROUND hook on `advance_grammar_fsm`, which overlap scheduling calls a round before the runs are resolved."""
    is_first = batch.has_grammar and result.accept_lens is not None and not result.grammar_advanced
    if serves_ddtree() and is_first:
        if result.copy_done is not None:
            result.copy_done.synchronize()
        cut_runs(result, batch)
    original(processor, result, batch)


def end_as_plain(original: Callable[..., None], req: Req, new_accepted_len: int = 1) -> None:
    """AROUND hook on `Req.update_finish_state`: a request ends where plain decoding ends it."""
    with grammar_as_plain(req):
        _end_as_judged(original, req, new_accepted_len)


def _end_as_judged(original: Callable[..., None], req: Req, new_accepted_len: int) -> None:
    """A run that was judged token by token ends where that found its end.

    An abort since then comes first, as it does in plain decoding. Where no end was found, or a grammar has cut the run
    before it, the grammar is asked after the last token, which is all that is left to judge.
    """
    judged = _judged.pop(req, None)
    if judged is None or req.finished() or req.to_finish:
        original(req, new_accepted_len)
        return
    if judged.finished_reason is None or new_accepted_len < len(judged.token_ids):
        if req.grammar is not None:
            original(req, 1)
        return
    for place, token in enumerate(judged.token_ids, len(req.output_ids) - new_accepted_len):
        req.output_ids[place] = token
    req.finished_reason, req.finished_len = judged.finished_reason, judged.finished_len


def prefill_only_at_no_tokens(stock: property) -> property:
    """In the place of `Req.is_prefill_only`: a request for no token is plain decoding's, answered by its prefill.

    Stock says no for every speculative algorithm, and then such a request is sampled for, and answered with the
    log-probability of a token that it does not have.
    """

    def is_prefill_only(req: Req) -> bool:
        if serves_ddtree():
            return bool(req.sampling_params.max_new_tokens == 0)
        return bool(stock.fget(req))  # type: ignore[misc]

    return property(is_prefill_only)
