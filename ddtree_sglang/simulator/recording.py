"""Answers as a trace holds them: each one's text, and the trees that were drafted at some of its positions.

The text is what the target chose, whatever was drafted, so it decides every walk: of a tree at a position, the nodes
are accepted that spell the text from there. This is exact for every tree that was recorded there, for each of its
prefixes (a smaller budget's tree), and for its spine (the chain) as far as it was recorded.
`benchmarks/record_replay.py` records a tree at each position. In other traces positions lack one, and the nearest
earlier tree of the same answer stands in, with the tokens that it brought where it stood.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, cast

from ddtree_sglang.calibration.recorded import depths_of
from ddtree_sglang.exceptions import DDTreeError
from ddtree_sglang.viewer.rounds import NotARound, Part, Round, parse_round


class RecordingError(DDTreeError):
    """A trace from which nothing can be replayed; the message says what to do."""


@dataclass(frozen=True)
class Tree:
    """A recorded tree: N nodes in descending probability, the root first, and the walk that its text takes."""

    parents: tuple[int, ...]
    depths: tuple[int, ...]
    path_probs: tuple[float, ...]
    path: tuple[int, ...]
    """Nodes that spell the text, the root first."""
    spine: tuple[int, ...]
    """The root, its first child, that one's first child, and so on."""
    num_asked: int = 0
    """Nodes of the round; where the tree has fewer, its candidates gave no more."""

    def accepted(self, num_nodes: int) -> tuple[int, ...]:
        """The walk in the tree of its first `num_nodes` nodes; a parent stands before its children."""
        return tuple(node for node in self.path if node < num_nodes)

    def accepted_of_chain(self, block_size: int) -> tuple[int, bool]:
        """Drafted tokens of the spine's first `block_size` nodes that are accepted, and whether the record ends there.

        If it does, the chain might have gone on, so the count is a lower bound.
        """
        spine = self.spine[:block_size]
        count = sum(1 for node, taken in zip(spine, self.path, strict=False) if node == taken) - 1
        return count, count + 1 == len(spine) < block_size


@dataclass(frozen=True)
class Answer:
    """One request: positions `start` to `end` of its text, whose root was first at `start`; `end` is its last token."""

    name: str
    start: int
    end: int
    trees: Mapping[int, Tree]

    def tree_at(self, position: int) -> tuple[Tree, bool]:
        """The tree of the root at that position, and whether another one stands in."""
        if position in self.trees:
            return self.trees[position], False
        before = [place for place in self.trees if place < position]
        return self.trees[max(before) if before else min(self.trees)], True

    @property
    def widest(self) -> int:
        """Nodes of which every tree has as many, or all that its candidates gave."""
        return min(max(tree.num_asked, len(tree.parents)) for tree in self.trees.values())


@dataclass
class _Collected:
    tokens: dict[int, int] = field(default_factory=dict)
    parts: dict[int, tuple[Part, int]] = field(default_factory=dict)


def load_answers(path: Path) -> list[Answer]:
    """The answers of a trace, as a server wrote it or compressed by gzip (`.gz`).

    Raises:
        RecordingError: there is no file, or no answer with a tree in it.
    """
    try:
        with _opened(path) as lines:
            answers = answers_of(_rounds(lines))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RecordingError(f"a recording must be a readable trace, got {path}: {error}.") from error
    if not answers:
        raise RecordingError(f"a recording must hold drafted trees, got none in {path}; trace a server that drafts.")
    return answers


def block_size_of(path: Path) -> int | None:
    """The drafter's block, root included, by the first round that tells its walks: a walk has a place for each depth.

    None where no line does. The file is one that `load_answers` reads.
    """
    with _opened(path) as lines:
        for line in lines:
            try:
                walks = json.loads(line)["accept_index"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(walks, list) and walks and isinstance(walks[0], list) and len(walks[0]) > 1:
                return len(walks[0])
    return None


def _opened(path: Path) -> IO[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    return cast("IO[str]", opened(path, "rt", encoding="utf-8"))


def _rounds(lines: Iterable[str]) -> Iterator[Round]:
    for line in lines:
        try:
            yield parse_round(line)
        except NotARound:
            continue


def answers_of(rounds: Iterable[Round]) -> list[Answer]:
    """Answers in the order in which they came; one without a tree, or with a gap in its text after it, ends there."""
    collected: dict[str, _Collected] = {}
    for num_nodes, part in ((one.num_nodes or 0, part) for one in rounds for part in one.parts):
        if part.prefix_len is None or not part.emitted_ids:
            continue
        one = collected.setdefault(part.request_id, _Collected())
        for place, token in enumerate(part.emitted_ids, part.prefix_len + 1):
            one.tokens[place] = token
        if len(part.parents) > 1:
            one.parts[part.prefix_len] = part, num_nodes
    found = (_answer(name, one) for name, one in collected.items() if one.parts)
    return [answer for answer in found if answer.end > answer.start]


def _answer(name: str, one: _Collected) -> Answer:
    start = min(one.parts)
    end = start
    while end + 1 in one.tokens:
        end += 1
    trees = {at: tree_of(part, asked, one.tokens, at) for at, (part, asked) in one.parts.items() if at < end}
    return Answer(name, start, end if trees else start, trees)


def tree_of(part: Part, num_asked: int, text: Mapping[int, int], position: int) -> Tree:
    """A part's tree, of a round of `num_asked` nodes, walked along the text from the root's position."""
    tree = walked(part.token_ids, part.parents, part.path_probs, text, position)
    return replace(tree, num_asked=num_asked)


def walked(
    token_ids: Sequence[int],
    parents: Sequence[int],
    path_probs: Sequence[float],
    text: Mapping[int, int],
    position: int,
) -> Tree:
    """The tree with its walk; `text` has tokens by position, of which those after `position` are read."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    path, spine = [0], [0]
    while found := [n for n in children.get(path[-1], ()) if token_ids[n] == text.get(position + len(path))]:
        path.append(found[0])
    while below := children.get(spine[-1]):
        spine.append(below[0])
    return Tree(tuple(parents), tuple(depths_of(parents)), tuple(path_probs), tuple(path), tuple(spine))
