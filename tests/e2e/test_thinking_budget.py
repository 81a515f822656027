"""Thinking budgets that the server enforces (`--enable-strict-thinking`): what plain decoding answers.

A file of its own: its two servers stop before other pairs start, as the memory of a small machine holds so many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.asking import ask
from tests.e2e.servers import Server
from tests.e2e.test_grammars import THOUGHTS, UNMEASURED, seen

STRICT = ("--reasoning-parser", "qwen3", "--enable-strict-thinking")


@pytest.fixture(scope="module")
def strict(serve: Callable[..., Any]) -> Iterator[tuple[Server, Server]]:
    """Plain decoding and DDTREE, which enforce thinking budgets."""
    with serve(None, None, *STRICT) as reference, serve("DDTREE", 8, *STRICT, *UNMEASURED, policy=None) as mine:
        yield reference, mine


def test_a_thinking_budget_ends_the_thoughts(strict: tuple[Server, Server]) -> None:
    """Without a grammar of the request's own: a mask that forces the end once the budget is used up."""
    lengths = []
    for budget in (0, 2, 5, 9, None):
        body = {"require_reasoning": True, "max_thinking_tokens": budget}
        expected, mine = (ask(server.url, THOUGHTS, 24, body=body) for server in strict)
        assert seen(mine) == seen(expected)
        lengths.append(len(mine["text"].partition("</think>")[0]))
    assert lengths[0] < lengths[2] <= lengths[-1], lengths
