"""In the scheduler: a round's tokens leave one by one, as if each had been decoded alone.

Parsers of tool calls and reasoning are written for what plain decoding streams. SGLang's give at most one event for
each piece of text (function_call/base_format_detector.py), so where a piece holds the end of a call and the next one,
arguments are lost. Pieces are therefore made where tokens are still known: the streamer is called once for each token,
with the request as it was when the token was its last. What holds text back (stop strings, `stream_interval`, bytes of
an unfinished character) then decides as in plain decoding, because it is the same code with the same input.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.engine.spec import serves_ddtree

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer


def output_token_by_token(
    original: Callable[..., None],
    streamer: SchedulerOutputStreamer,
    reqs: Sequence[Req],
    return_logprob: bool,
    skip_req: Req | None = None,
) -> None:
    """AROUND hook on `SchedulerOutputStreamer.stream_output`: several new tokens are that many outputs."""
    if _streams_under_ddtree(streamer):
        streamed = [req for req in reqs if req is not skip_req and _may_be_split(req)]
        split = [req for req in streamed if len(req.output_ids_through_stop) - _judged_len(req) > 1]
        with ExitStack() as stack:
            growing = [stack.enter_context(_growing(req)) for req in split]
            _output_all_but_the_last(original, streamer, growing, return_logprob)
        _judged_lens.update((req, len(req.output_ids)) for req in streamed)
    original(streamer, reqs, return_logprob, skip_req)


def _streams_under_ddtree(streamer: SchedulerOutputStreamer) -> bool:
    return bool(streamer.is_generation) and serves_ddtree()


_judged_lens: WeakKeyDictionary[Req, int] = WeakKeyDictionary()
"""Tokens that a request had when the streamer looked at it last. What was held back then is not looked at again."""


def _judged_len(req: Req) -> int:
    """Tokens behind which the streamer has already decided whether to send; none of them is new."""
    return max(int(req.send_token_offset), _judged_lens.get(req, 0))


def _may_be_split(req: Req) -> bool:
    if not req.stream or req.beam_group is not None or (req.finished() and req.finished_output):
        return False
    return is_asked_for(req)


def is_asked_for(req: Req) -> bool:
    """Whether a parser may read this stream, or the server was told to stream token by token.

    Without a tool-call parser, a forced call is parsed from the JSON that its grammar makes (serving_chat.py,
    `_process_tool_call_stream`). Masks of the sampler are kept in one piece for a round.
    """
    return not req.return_sampling_mask and (req.grammar is not None or _is_asked_for_all())


@cache
def _is_asked_for_all() -> bool:
    from sglang.srt.runtime_context import get_serving

    serving = get_serving()
    return bool(DDTreeConfig.from_env().stream_tokens or serving.tool_call_parser or serving.reasoning_parser)


class _Growing:
    """A request whose newest tokens are taken away and come back one by one."""

    def __init__(self, req: Req, tokens: array[int]) -> None:
        self.req = req
        self._tokens = iter(tokens)

    def grow(self) -> bool:
        """Give the request its next token; False if there is none but the last."""
        token = next(self._tokens, None)
        if token is None:
            return False
        self.req.output_ids.append(token)
        self.req.finished_len = len(self.req.output_ids)
        return True


@contextmanager
def _growing(req: Req) -> Iterator[_Growing]:
    """The request as it was before its new tokens, none of which had ended it; put back afterwards."""
    first, end = _judged_len(req), len(req.output_ids_through_stop)
    new = req.output_ids[first:]
    before = req.finished_reason, req.finished_len, req.reasoning_tokens, req.hidden_states
    del req.output_ids[first:]
    req.finished_reason = None
    if req.return_hidden_states == "last":
        # Of a round's states the last token's alone is kept, which is no other token's.
        req.hidden_states = []
    try:
        yield _Growing(req, new[: end - first - 1])
    finally:
        req.finished_reason, req.finished_len, req.reasoning_tokens, req.hidden_states = before
        del req.output_ids[first:]
        req.output_ids.extend(new)


def _output_all_but_the_last(
    original: Callable[..., None], streamer: SchedulerOutputStreamer, growing: Sequence[_Growing], return_logprob: bool
) -> None:
    reasoning = {one.req: one.req.reasoning_tokens for one in growing}
    while longer := [one for one in growing if one.grow()]:
        for one in longer:
            # Reasoning is what an answer begins with.
            one.req.reasoning_tokens = min(reasoning[one.req], len(one.req.output_ids))
        original(streamer, [one.req for one in longer], return_logprob)
