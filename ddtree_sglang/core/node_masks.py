"""Which tokens a grammar allows after each node of a draft tree: what plain decoding would allow after that path.

A grammar is a state that tokens advance. Plain decoding advances it by one token a step and asks it for the tokens that
may follow. A tree has one such state per node, so the grammar is walked along the tree, depth first, and taken back on
the way up; afterwards it stands where it stood.

Masks are packed as xgrammar and llguidance have them: a node's row is `[words]` int32, and bit `t % 32` of word
`t // 32` is 1 where token t is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class GrammarGaveUp(Exception):
    """A grammar cannot tell what may follow a node below the root, say at a limit of its parser.

    It stands at the root again, and whose it is goes on without a tree.
    """


class Grammar(Protocol):
    """What is asked of a grammar; SGLang's objects of one request have it (constrained/base_grammar_backend.py)."""

    finished: bool

    def accept_token(self, token: int) -> None:
        """Advance by a token; ValueError where the grammar does not take it."""

    def rollback(self, k: int) -> None:
        """Take the last k tokens back."""

    def is_terminated(self) -> bool:
        """Whether nothing may follow."""

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        """Write the tokens that may follow into row `idx`, or leave the row where any may."""


def accept_as_plain(grammar: Grammar, token: int) -> None:
    """Advance by a token as a step of plain decoding does that goes on.

    Each step notes that the request has not finished (batch_result_processor.py, `process_batch_result_decode`), which
    undoes what llguidance notes of an end token: a request that ignores it goes on under its grammar.

    Raises:
        ValueError: the grammar does not take the token.
    """
    grammar.accept_token(token)
    grammar.finished = False


class GrammarWalk:
    """A grammar on its way along a tree: down by a token, up by taking it back."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        # What the grammar noted of itself, at the root and when it took each token of the path.
        self._noted = [grammar.finished]

    def down(self, token: int) -> bool:
        """Take a token that the mask allows; False, and nothing is changed, where the grammar does not."""
        try:
            self._grammar.accept_token(token)
        except ValueError:
            return False
        self._noted.append(self._grammar.finished)
        self._grammar.finished = False
        return True

    def up(self) -> None:
        """Take the last token back."""
        self._grammar.finished = self._noted.pop()
        self._grammar.rollback(1)
        if len(self._noted) == 1:
            self._grammar.finished = self._noted[0]


def fill_node_masks(
    grammar: Grammar,  # in the state after the root
    parents: Sequence[int],  # of N nodes, each before its children; -1 at the root and at padding
    token_ids: Sequence[int],  # of N nodes
    mask: torch.Tensor,  # [rows, words] int32 on the host, all bits 1 in the tree's rows
    first_row: int,  # row of the root; node i has row `first_row + i`
) -> list[bool]:
    """Fill the rows of one tree's nodes, leave the grammar as it was, and say which nodes the grammar reaches.

    A node that its parent's row forbids is not reached: the target cannot choose it, so its row, which stays 1s, is
    never used. Neither are the rows below a node at which the grammar has ended, whose own row allows everything: plain
    decoding ends with the token after it.

    Raises:
        ValueError: the grammar gave up at the root.
        GrammarGaveUp: it gave up below.
    """
    children: list[list[int]] = [[] for _ in parents]
    for node in range(len(parents) - 1, 0, -1):
        if parents[node] >= 0:
            children[parents[node]].append(node)
    words = mask.numpy()
    walk = GrammarWalk(grammar)
    reached = [False] * len(parents)
    # Nodes to visit and, as -1, the ways back up.
    pending: list[int] = [0]
    while pending:
        node = pending.pop()
        if node < 0:
            walk.up()
            continue
        if node > 0:
            token = token_ids[node]
            allowed = words[first_row + parents[node], token // 32] >> token % 32 & 1
            if not allowed or not walk.down(token):
                continue
            pending.append(-1)
        reached[node] = True
        if not grammar.is_terminated():
            grammar.fill_vocab_mask(mask, first_row + node)
            pending += children[node]
    return reached
