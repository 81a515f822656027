"""A law of draft trees from a request's own text: which token followed which, mixed with the drafter's marginals.

A plain DFlash drafter gives each position a distribution of its own, which does not know the token before. The text of
the request up to the root does: after a context of n tokens it holds counts of what came. Both are one law of pairs
`[D, K, K]` (`core.tree_builder`): parent's rank, then the candidate's. A pair's table knows the parent alone, so a
longer context is the best path to the parent, by the law itself (Viterbi); at depths 1 and 2 that path is the only one.

It ranks nodes and decides no token. In host memory, with numpy: a table takes some 0.6 ms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LEAST_PATH = -7.0
"""A parent whose best path has a log-probability below this is not looked up: its children enter no small tree."""
SURE = 0.5
"""From this probability of its first candidate on, the drafter counts as sure of a position."""

Counts = dict[int, int]


class RequestText:
    """The tokens of a request so far, and how often which token followed each context of 1 to `order` tokens."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.tail: tuple[int, ...] = ()  # the last `order` tokens
        self._after: list[dict[tuple[int, ...], Counts]] = [defaultdict(dict) for _ in range(order)]

    def extend(self, tokens: Iterable[int]) -> None:
        """Take what the request committed."""
        for token in tokens:
            for length in range(1, len(self.tail) + 1):
                counts = self._after[length - 1][self.tail[-length:]]
                counts[token] = counts.get(token, 0) + 1
            self.tail = (*self.tail, token)[-self.order :]

    def interrupt(self) -> None:
        """Something that is no token stands here: nothing before it is a context of what comes behind it."""
        self.tail = ()

    def after(self, context: Sequence[int]) -> list[Counts]:
        """What followed the last token of `context`, its last two, and so on as far as the text holds them."""
        found: list[Counts] = []
        for length in range(1, min(self.order, len(context)) + 1):
            counts = self._after[length - 1].get(tuple(context[-length:]))
            if not counts:
                break
            found.append(counts)
        return found


class Word(NamedTuple):
    """What a context says: the drafter's probabilities times `keep`, plus `extra` by token. Together at most 1."""

    keep: float
    extra: dict[int, float]


@dataclass(frozen=True)
class Mixture:
    """A Dirichlet prior at each order: the word of the shorter context, first the drafter's, counts as so many tokens.

    Attributes:
        strengths: of contexts of 1, 2, ... tokens, how many counts the word before is worth; inf reads no such context.
        first: factor of all strengths at depth 1, whose parent the drafter has read.
        sure: factor where the drafter is sure of the position.
        inject: tokens that followed a parent, and are no candidates, take up to so many of the last candidates' places.
        depths: deeper ones have the drafter's marginals.
    """

    strengths: tuple[float, ...]
    first: float = 1.0
    sure: float = 1.0
    inject: int = 0
    depths: int = 99

    @property
    def order(self) -> int:
        """The longest context."""
        return len(self.strengths)

    def word(self, found: Sequence[Counts], factor: float) -> Word | None:
        """Of `RequestText.after`; None where nothing is said."""
        keep, extra = 1.0, dict[int, float]()
        for counts, strength in zip(found, self.strengths, strict=False):
            worth = strength * factor
            if worth == float("inf"):
                continue
            total = worth + sum(counts.values())
            keep *= worth / total
            extra = {token: said * worth / total for token, said in extra.items()}
            for token, count in counts.items():
                extra[token] = extra.get(token, 0.0) + count / total
        return Word(keep, extra) if extra else None

    def row(self, probs: Floats, ranks: dict[int, int], word: Word) -> Floats:
        """`[K]` conditionals after one parent."""
        mixed = probs * np.float32(word.keep)
        for token, said in word.extra.items():
            rank = ranks.get(token)
            if rank is not None:
                mixed[rank] += said
        return mixed


LAW = Mixture((16.0, 4.0, 1.0, 1.0, 1.0), inject=4)
"""Of servers: contexts of five tokens, four followers a depth. Strengths hardly matter: fitted on either half of 140
prompts they were others, and the gain the same (benchmarks/results/ngram-conditional-20261128.md)."""


class PairTable(NamedTuple):
    """What `build_draft_tree` takes of one request."""

    topk_ids: Ints  # [D, K], those of the drafter but for injected ones
    logprobs: Floats  # [D, K, K]


def pair_table(topk_ids: Ints, topk_logprobs: Floats, text: RequestText, law: Mixture) -> PairTable:
    """The law of pairs of one block `[D, K]` after a request's text, whose last token is the root."""
    num_depths, k = topk_ids.shape
    ids, table = topk_ids.copy(), np.empty((num_depths, k, k), dtype=np.float32)
    marginals = np.exp(topk_logprobs)
    contexts, scores = [text.tail], np.zeros(1, dtype=np.float32)
    for d in range(num_depths):
        probs = marginals[d]
        factor = (law.first if d == 0 else 1.0) * (law.sure if probs[0] >= SURE else 1.0)
        words: dict[int, Word] = {}
        for parent in np.flatnonzero(scores > LEAST_PATH).tolist() if d < law.depths else ():
            word = law.word(text.after(contexts[parent]), factor)
            if word is not None:
                words[parent] = word
        if law.inject and words:
            probs = _inject(ids[d], probs, words, scores, law.inject)
        rows = np.repeat(probs[None], k, axis=0)
        ranks = {token: rank for rank, token in enumerate(ids[d].tolist())}
        for parent, word in words.items():
            rows[parent] = law.row(probs, ranks, word)
        if d == 0:
            rows[1:] = rows[0]
        with np.errstate(divide="ignore"):
            np.log(rows, out=table[d])
        paths = scores[:, None] + table[d, : len(scores)]
        best = paths.argmax(0)
        contexts = [(*contexts[p], c)[-text.order :] for p, c in zip(best.tolist(), ids[d].tolist(), strict=True)]
        scores = paths.max(0)
    return PairTable(ids, table)


def _inject(ids: Ints, probs: Floats, words: dict[int, Word], scores: Floats, most: int) -> Floats:
    """Put followers that are no candidates in the places of the last ones, if they are on better paths.

    Changes `ids [K]`; the result are the marginals `[K]`, 0 at what was put in: of those the drafter said nothing.
    """
    known, paths = set(ids.tolist()), np.exp(scores)
    found: dict[int, float] = {}
    for parent, word in words.items():
        for token, said in word.extra.items():
            if token not in known:
                found[token] = max(found.get(token, 0.0), float(paths[parent]) * said)
    chosen = sorted(found, key=lambda token: -found[token])[: min(most, len(ids) - 1)]
    if not chosen:
        return probs
    kept, best_path = probs.copy(), float(paths.max())
    for place, token in zip(range(len(ids) - 1, 0, -1), chosen, strict=False):
        if found[token] <= best_path * probs[place]:
            break
        ids[place], kept[place] = token, 0.0
    return kept
