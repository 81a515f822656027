"""What requests have said so far, for trees that know which token followed which (`core.request_ngrams`).

A text is a request's prompt and answer up to the round's root: a function of what is committed, so that a request that
was retracted has the trees that it would have had. In a batch that is too large, or beside a grammar, it has those of
the drafter's word alone. It ranks nodes and decides no token.

In host memory, before each draft: the host has to know the root by then, which it does where no round is overlapped.

The places of an image in a prompt hold ids past the vocabulary, SGLang's marks of which image it is. They follow
nothing and nothing follows them: as a node of a tree, such an id has no embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.request_ngrams import LAW, RequestText, pair_table
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.exceptions import DDTreeConfigError

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

MOST_REQUESTS = 8
"""Of a batch: a request's table takes half a millisecond of one core, whatever the others'."""
MOST_READ = 16_384
"""Of a prompt, its last ids: reading takes 4 us and 1.3 KiB each."""
LEAST_CANDIDATES, MOST_CANDIDATES = 8, 16
"""Per depth, of which the table has the square. Three depths of so many hold the largest tree."""


@dataclass(frozen=True)
class BatchTexts:
    """Of the requests of a round, in its order."""

    texts: Sequence[RequestText]

    def mixed(self, ranked: DraftCandidates) -> DraftCandidates:
        """The law of pairs `[B, D, K, K]` of what was ranked and what was said, and its candidates `[B, D, K]`.

        Some of those are tokens that the drafter did not list.
        """
        most = MOST_CANDIDATES if ranked.topk_ids.shape[1] > 2 else ranked.topk_ids.shape[2]
        ids, logprobs = ranked.topk_ids[..., :most], ranked.topk_logprobs[..., :most].contiguous()
        tables = [
            pair_table(of_ids, of_logprobs, text, LAW)
            for of_ids, of_logprobs, text in zip(ids.numpy(), logprobs.numpy(), self.texts, strict=True)
        ]
        return DraftCandidates(
            torch.from_numpy(np.stack([one.topk_ids for one in tables])),
            logprobs,
            torch.from_numpy(np.stack([one.logprobs for one in tables])),
        )


@dataclass
class _Read:
    """A text and how many of a request's ids it was made of; those below `vocab_size` are tokens."""

    text: RequestText
    vocab_size: int
    num_tokens: int = 0

    def take(self, prompt: Sequence[int], answer: Sequence[int]) -> RequestText:
        """Read what is new of both, and return the text."""
        first = self.num_tokens or max(0, len(prompt) - MOST_READ)
        new = (*prompt[first:], *answer[max(0, first - len(prompt)) :])
        for are_tokens, ids in groupby(map(int, new), lambda one: one < self.vocab_size):
            if are_tokens:
                self.text.extend(ids)
            else:
                self.text.interrupt()
        self.num_tokens = len(prompt) + len(answer)
        return self.text


class NoTexts:
    """Trees are of the drafter's word alone."""

    def read(self, batch: ScheduleBatch) -> None:
        """Read what a prefill's requests say."""

    def of_batch(self, batch: ScheduleBatch, root_ids: torch.Tensor) -> BatchTexts | None:
        """The texts up to the roots `[B]`; None where trees do without."""


class RequestTexts(NoTexts):
    """The texts of all requests that a server has begun and not forgotten."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._read: WeakKeyDictionary[Req, _Read] = WeakKeyDictionary()

    @classmethod
    def of(cls, config: DDTreeConfig, ranking: Any, vocab_size: int) -> NoTexts:
        """Those of a server.

        A policy by measured costs has texts without being asked: it also measures how often they are right. Not where
        candidates per depth are set, of which a chain has one and texts need several.

        Args:
            config: of this server, its policy named.
            ranking: of the drafter's output.
            vocab_size: of the target.

        Raises:
            DDTreeConfigError: they are asked for, and the drafter scores pairs itself.
        """
        if config.ngrams is None:
            by_default = config.policy == "adaptive" and config.top_k is None and not is_device_path()
            return cls(vocab_size) if by_default and ranking.scorer is None else NoTexts()
        if not config.ngrams:
            return NoTexts()
        if ranking.scorer is not None:
            raise DDTreeConfigError(
                "--speculative-ddtree-ngrams needs a drafter without a head that scores pairs, whose law it would take "
                "the place of; remove it."
            )
        return cls(vocab_size)

    def read(self, batch: ScheduleBatch) -> None:
        """So that a prompt's reading is no part of the first round, whose time is learned."""
        for req in batch.reqs:
            self._text(req)

    def of_batch(self, batch: ScheduleBatch, root_ids: torch.Tensor) -> BatchTexts | None:
        """None for a batch that is too large, or has a grammar, which plants trees."""
        if batch.has_grammar or len(batch.reqs) > MOST_REQUESTS:
            return None
        texts = [self._text(req) for req in batch.reqs]
        if [text.tail[-1:] for text in texts] != [(root,) for root in root_ids.tolist()]:
            return None  # a text that does not end at its root
        return BatchTexts(texts)

    def _text(self, req: Req) -> RequestText:
        prompt, answer = req.origin_input_ids, req.output_ids
        known = self._read.get(req)
        if known is None or known.num_tokens > len(prompt) + len(answer):
            known = self._read[req] = _Read(RequestText(LAW.order), self._vocab_size)
        return known.take(prompt, answer)
