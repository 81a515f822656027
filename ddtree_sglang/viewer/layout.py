"""Where the nodes of a tree are drawn, and how their tokens are written."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_SHOWN = {"\n": "\u23ce", "\t": "\u21e5", " ": "\u00b7"}


def visible(token: str) -> str:
    """A token's text with its white space shown.

    What has no picture, or moves a cursor or the direction of writing, is its code point: no token acts on a terminal.
    """
    return "".join(_SHOWN.get(char) or _printable(char) for char in token) or "\u2205"


def running(text: str) -> str:
    """Text as it is read, spaces as spaces; else as `visible`."""
    return "".join(char if char == " " else _SHOWN.get(char) or _printable(char) for char in text)


def plain_line(text: str) -> str:
    """A text from a file on one line of a terminal, without control characters."""
    return "".join(char if char == " " else _printable(char) for char in text)


def _printable(char: str) -> str:
    is_shown = unicodedata.category(char)[0] not in "CZ"
    return char if is_shown else f"\\u{{{ord(char):x}}}"


def node_depths(parents: Sequence[int]) -> list[int]:
    """Edges from the root to each node; a parent comes before its children."""
    depths: list[int] = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return depths


def children_of(parents: Sequence[int]) -> list[list[int]]:
    """Each node's children, in ascending order."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    return children


def node_rows(parents: Sequence[int]) -> list[int]:
    """Row of each node, from 0 downwards: a first child continues its parent's row, the others follow below.

    Node 0 is the root. No two nodes of one depth share a row.
    """
    children = children_of(parents)
    rows = [0] * len(parents)
    num_rows = 1
    stack = [(child, place) for place, child in enumerate(children[0])][::-1] if parents else []
    while stack:
        node, place = stack.pop()
        if place == 0:
            rows[node] = rows[parents[node]]
        else:
            rows[node], num_rows = num_rows, num_rows + 1
        stack += [(child, place) for place, child in enumerate(children[node])][::-1]
    return rows
