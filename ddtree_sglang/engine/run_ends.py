"""Where a run of tokens ends its request, judged as plain decoding judges: after each token, by what was there then.

SGLang judges a run at once: a stop string anywhere in it beats a token that ends the request before it, of several
strings the first of the list beats the earliest, and what reads the run before it is judged (`reasoning_tokens`,
log-probabilities, KV accounting) reads past the end. Here a run is cut before anything reads it.

The device has cut a run at the tokens and lengths that end its request (`core.round_ends`). What is left needs text, a
grammar's state or an abort, which the host knows; a request that has none of these costs a look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from sglang.srt.layers.logits_processor import SamplingMaskStatus

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
    is_cached: bool = True  # False where plain decoding leaves the tokens out of the prefix cache


_judged: WeakKeyDictionary[Req, JudgedRun] = WeakKeyDictionary()
"""Runs that were cut and are still to be appended to their requests' outputs: at most one of each request."""

_ended_inside: WeakSet[Req] = WeakSet()
"""Requests whose last run went on behind their end: the device has committed tokens that they do not have."""


_aborts: WeakKeyDictionary[Req, tuple[int, Any]] = WeakKeyDictionary()
"""Of requests that a token of the run which is chosen now aborts: its place among their outputs, and the reason."""


def abort_at_next_token(req: Req, reason: Any) -> None:
    """While a run is chosen, with its tokens so far in `output_ids`: the one that comes next ends the request.

    So plain decoding's tokens before it are kept, and it is one of them: what raised did so while it was chosen.
    """
    _aborts.setdefault(req, (len(req.output_ids), reason))


def is_over(req: Req) -> bool:
    """Whether the request has ended, or the run that is still to be appended ends it."""
    judged = _judged.get(req)
    return req.finished() or (judged is not None and judged.finished_reason is not None)


def needs_host(req: Req) -> bool:
    """Whether something may end the request that the device does not know."""
    params = req.sampling_params
    may_end = params.stop_strs or params.stop_regex_strs or req.grammar is not None or req.to_finish
    return bool(may_end or req in _aborts)


def judge(req: Req, run: list[int]) -> JudgedRun:
    """What plain decoding makes of a request that is given the tokens of `run` one by one; the request stays as it is.

    A grammar is judged in the state before the run: plain decoding looks at it before it takes the token in.
    """
    start, abort = len(req.output_ids), req.to_finish
    place, reason = _aborts.get(req, (None, None))
    try:
        for token in run:
            if place == len(req.output_ids) and req.to_finish is None:
                req.to_finish = reason
            req.output_ids.append(token)
            req.update_finish_state(1)
            if req.finished():
                break
        return JudgedRun(list(req.output_ids[start:]), req.finished_reason, req.finished_len)
    finally:
        del req.output_ids[start:]
        req.finished_reason, req.finished_len, req.to_finish = None, None, abort


def cut_runs(processor: Any, result: GenerationBatchResult, batch: ScheduleBatch) -> None:
    """Cut the runs of a decode round that is on the host, once, whoever asks first."""
    stride = result.speculative_output_stride
    unusable = _first_unusable(result, batch)
    lens: list[int] | None = None
    for row, req in enumerate(batch.reqs):
        ends_early = needs_host(req) or row in unusable
        if req.is_retracted or req.finished() or not ends_early or req in _judged:
            continue
        lens = result.accept_lens.tolist() if lens is None else lens
        run = result.next_token_ids[row * stride :][: lens[row]].tolist()
        place, status = unusable.get(row, (len(run), None))
        if place == 0:
            # SGLang ends the request over the status of its next token, and leaves that out.
            lens[row] = 1
            continue
        judged = judge(req, run[:place])
        if judged.finished_reason is None and place < len(run):
            reason = processor.get_sampling_mask_finish_reason(status=status)
            judged = JudgedRun(judged.token_ids, reason, None, is_cached=False)
        _judged[req] = judged
        if len(judged.token_ids) < lens[row]:
            _ended_inside.add(req)
        lens[row] = len(judged.token_ids)
    if lens is not None:
        result.accept_lens = torch.tensor(lens, dtype=torch.int32)
        _cut_supports(result, batch, lens)


def _first_unusable(result: GenerationBatchResult, batch: ScheduleBatch) -> dict[int, tuple[int, int]]:
    """Of rows whose run has a token without a usable support: the place of its first one, and SGLang's status."""
    supports = result.logits_output.sampling_mask_output
    if supports is None or not bool((supports.statuses != SamplingMaskStatus.OK).any()):
        return {}
    found = {}
    rows = [row for row, req in enumerate(batch.reqs) if req.return_sampling_mask]
    for row, statuses, length in zip(
        rows, supports.statuses.tolist(), supports.num_accept_tokens.tolist(), strict=True
    ):
        bad = next((place for place, one in enumerate(statuses[:length]) if one != SamplingMaskStatus.OK), None)
        if bad is not None:
            found[row] = bad, statuses[bad]
    return found


def _cut_supports(result: GenerationBatchResult, batch: ScheduleBatch, lens: list[int]) -> None:
    supports = result.logits_output.sampling_mask_output
    if supports is not None:
        kept = [length for length, req in zip(lens, batch.reqs, strict=True) if req.return_sampling_mask]
        result.logits_output.sampling_mask_output = replace(supports, num_accept_tokens=torch.tensor(kept))


def cut_before_supports_are_read(
    original: Callable[..., None], processor: Any, batch: ScheduleBatch, result: GenerationBatchResult
) -> None:
    """AROUND hook on `process_batch_result_decode`, which looks for unusable supports in whole runs first of all."""
    if serves_ddtree() and result.logits_output.sampling_mask_output is not None:
        if result.copy_done is not None:
            result.copy_done.synchronize()
        _cut_once(processor, result, batch)
    original(processor, batch, result)


def _cut_once(processor: Any, result: GenerationBatchResult, batch: ScheduleBatch) -> None:
    for req in batch.reqs:
        if req.is_retracted or req.finished():
            _judged.pop(req, None)
        if req.is_retracted:
            _ended_inside.discard(req)
    cut_runs(processor, result, batch)


def cut_before_tokens_are_resolved(
    original: Callable[..., list[list[int]]], processor: Any, result: GenerationBatchResult, batch: ScheduleBatch
) -> list[list[int]]:
    """AROUND hook on `_resolve_spec_v2_tokens`, which counts and hands on the runs of a decode round."""
    if not serves_ddtree():
        return original(processor, result, batch)
    _cut_once(processor, result, batch)
    return original(processor, result, batch)


def cut_before_grammars_advance(
    original: Callable[..., None], processor: Any, result: GenerationBatchResult, batch: ScheduleBatch
) -> None:
    """AROUND hook on `advance_grammar_fsm`, which overlap scheduling calls a round before the runs are resolved."""
    is_first = batch.has_grammar and result.accept_lens is not None and not result.grammar_advanced
    if serves_ddtree() and is_first:
        if result.copy_done is not None:
            result.copy_done.synchronize()
        cut_runs(processor, result, batch)
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
    if not judged.is_cached:
        req.skip_radix_cache_insert = True


def keep_only_states_of_the_end(
    original: Callable[..., bool], processor: Any, req: Req, result: GenerationBatchResult, i: int
) -> bool:
    """AROUND hook on `_mamba_can_cache_finished_req`: whether a request's recurrent state is that of its last token.

    Without copies at fixed lengths the prefix cache takes the state that the request ends with, which no cut takes back
    to the end. SGLang compares lengths, but those that it reads here are those of the cut run.
    """
    can = original(processor, req, result, i)
    takes_the_last_state = processor.tree_cache.supports_mamba() and req.kv.mamba_ping_pong_track_buffer is None
    return can and not (takes_the_last_state and req in _ended_inside and serves_ddtree())


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
