"""Below a tree's root another matcher of llguidance's stands in a grammar's place: its scout, with a lexer of its own.

llguidance keeps every state that its lexer was ever in, for all copies of a matcher, and gives up for good at 250,000
of them (`LLParserLimits.max_lexer_states`); tokens that are taken back free none. A walk along a tree comes to many
more states than plain decoding. So a request's own matcher takes in its committed tokens and fills the masks of its
roots alone, which is less than plain decoding asks of it. Where a scout gives up, the request's trees are roots from
then on: slower, with the same answer.

A higher limit would be no mend: a lexer with 250,000 states has 75 MB and more, of each grammar that clients send.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from llguidance import LLMatcher
from sglang.srt.constrained.llguidance_backend import GuidanceGrammar

from ddtree_sglang.core.node_masks import Grammar, GrammarGaveUp
from ddtree_sglang.engine.spec import serves_ddtree

logger = logging.getLogger(__name__)

KEPT_GRAMMARS = 32

_scouts: WeakKeyDictionary[GuidanceGrammar, LLMatcher | None] = WeakKeyDictionary()
"""Of each request's grammar: what has taken in its committed tokens as well; None once it has given up."""

_first_states: OrderedDict[tuple[int, str], tuple[LLMatcher, Any]] = OrderedDict()
"""By tokenizer and grammar, the last ones: a matcher in its first state, whose copies share its lexer."""


def follow_token(_result: None, grammar: GuidanceGrammar, token: int) -> None:
    """AFTER hook on `GuidanceGrammar.accept_token`: the scout takes in what the request's own matcher has taken in."""
    # It may stand in the other's place; and of an end token behind its end a grammar only takes a note.
    if grammar.ll_matcher is _scouts.get(grammar) or grammar.finished or not serves_ddtree():
        return
    scout = _scout_of(grammar)
    if scout is not None and not scout.consume_token(token):
        _drop(grammar, scout)


def guided_part(grammar: Any) -> GuidanceGrammar | None:
    """What llguidance knows of a request's grammar: itself, or what waits behind its reasoning; None if nothing."""
    inner = getattr(grammar, "grammar", grammar)
    return inner if isinstance(inner, GuidanceGrammar) else None


def explored(grammar: Any) -> Grammar:
    """A request's grammar for one walk along a tree."""
    guided = guided_part(grammar)
    return grammar if guided is None else ScoutedGrammar(grammar, guided)


class ScoutedGrammar:
    """A grammar whose own matcher answers at the root and its scout below; below, it raises `GrammarGaveUp`.

    When it does, the grammar stands at the root again.
    """

    def __init__(self, grammar: Any, guided: GuidanceGrammar) -> None:
        self._grammar, self._guided = grammar, guided
        self._own, self._scout = guided.ll_matcher, _scout_of(guided)
        self._finished_at_root = grammar.finished
        self._depth = 0

    @property
    def finished(self) -> bool:
        """What the grammar noted of an end token."""
        return bool(self._grammar.finished)

    @finished.setter
    def finished(self, finished: bool) -> None:
        self._grammar.finished = finished

    def is_terminated(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._grammar.is_terminated())

    def accept_token(self, token: int) -> None:
        """Advance by a token; ValueError where the grammar does not take it."""
        if self._scout is None:
            raise GrammarGaveUp("its scout gave up before")
        self._guided.ll_matcher = self._scout
        try:
            self._grammar.accept_token(token)
        except ValueError as error:
            raise self._back_at_root(self._scout, error) from error
        self._depth += 1

    def rollback(self, k: int) -> None:
        """Take the last k tokens back."""
        self._grammar.rollback(k)
        self._depth -= k
        if self._depth == 0:
            self._guided.ll_matcher = self._own

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        """Write the tokens that may follow into row `idx`; ValueError where the root's row allows an end alone."""
        if self._scout is None or self._depth == 0:
            self._grammar.fill_vocab_mask(vocab_mask, idx)
            return
        try:
            self._grammar.fill_vocab_mask(vocab_mask, idx)
        except ValueError as error:
            raise self._back_at_root(self._scout, error) from error

    def _back_at_root(self, scout: LLMatcher, error: ValueError) -> GrammarGaveUp:
        """Leave a scout that llguidance never lets go on, and take back what else the grammar noted on its way."""
        self._guided.ll_matcher = _Spent()
        self._grammar.rollback(self._depth)
        self._grammar.finished = self._finished_at_root
        self._guided.ll_matcher = self._own
        self._depth = 0
        self._scout = None
        _drop(self._guided, scout)
        return GrammarGaveUp(str(error))


class _Spent:
    """Stands where a matcher is in error, so that what is around it can be taken back."""

    def rollback(self, num_tokens: int) -> bool:
        """Nothing is there to be taken back."""
        return num_tokens >= 0

    def is_error(self) -> bool:
        """Not this one."""
        return False


def _scout_of(grammar: GuidanceGrammar) -> LLMatcher | None:
    """A grammar without one has not taken in a token yet."""
    if grammar not in _scouts:
        key = _key(grammar)
        if key not in _first_states:
            matcher = LLMatcher(grammar.llguidance_tokenizer, grammar.serialized_grammar, log_level=0)
            _first_states[key] = matcher, grammar.llguidance_tokenizer
        _first_states.move_to_end(key)
        while len(_first_states) > KEPT_GRAMMARS:
            _first_states.popitem(last=False)
        _scouts[grammar] = _first_states[key][0].deep_copy()
    return _scouts[grammar]


def _drop(grammar: GuidanceGrammar, scout: LLMatcher) -> None:
    """The lexer is used up, so the next request with this grammar begins with a new one."""
    logger.warning("No trees under a grammar any more, for the rest of one request: %.200s", scout.get_error())
    _scouts[grammar] = None
    _first_states.pop(_key(grammar), None)


def _key(grammar: GuidanceGrammar) -> tuple[int, str]:
    return id(grammar.llguidance_tokenizer), grammar.serialized_grammar
