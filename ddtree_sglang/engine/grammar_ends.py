"""A grammar's state over the tokens of a run, and its end, as plain decoding has them.

Plain decoding takes one token a step. It asks whether the grammar has ended before it advances it by the step's token
(schedule_batch.py, `update_finish_state`), so a request that ignores end tokens ends with the token after the one that
ends its grammar. Speculative decoding advances it by the whole run first. Here it is advanced as those steps do it, a
run is cut behind the first token that came after the grammar's end, and the question is answered as if asked before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ddtree_sglang.core.node_masks import accept_as_plain
from ddtree_sglang.engine.spec import serves_ddtree

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

_tokens_at_end: WeakKeyDictionary[Req, int] = WeakKeyDictionary()
"""Of each request whose grammar has ended: its output tokens at that moment."""


def accept_run(original: Callable[..., list[int]], processor: Any, req: Req, tokens: int | list[int]) -> list[int]:
    """AROUND hook on `SchedulerBatchResultProcessor._accept_grammar_tokens`: the run up to the token after the end.

    Called before the run is appended to the request's tokens.
    """
    if not serves_ddtree():
        return original(processor, req, tokens)
    run = [tokens] if isinstance(tokens, int) else tokens
    for index, token in enumerate(run):
        had_ended = req.grammar.is_terminated()
        try:
            accept_as_plain(req.grammar, token)
        except ValueError:
            # Stock's way to end a request whose grammar does not take its token; it takes none of the rest.
            original(processor, req, run[index:])
            return run[:index]
        if had_ended:
            return run[: index + 1]
        if req.grammar.is_terminated():
            _tokens_at_end[req] = len(req.output_ids) + index + 1
    return run


@contextmanager
def grammar_as_plain(req: Req) -> Iterator[None]:
    """While it is asked whether a request has ended: its grammar ends it with a token that came after its end."""
    grammar = req.grammar
    if grammar is None or not serves_ddtree():
        yield
        return
    # Under synchronous scheduling the first token's grammar is advanced after this question, and nothing is noted.
    ended = grammar.is_terminated() and len(req.output_ids) > _tokens_at_end.get(req, 0)
    req.grammar = grammar if ended else None
    try:
        yield
    finally:
        req.grammar = grammar
