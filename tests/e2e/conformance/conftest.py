"""One plain server and one DDTREE server for all of conformance, with what requests may need switched on.

They serve the tiny pair of bytes: hundreds of answers take seconds, a tree of 17 nodes is accepted for two tokens a
round, and its answers are pieces of their prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.servers import Pair, Server
from tests.e2e.serving import Serve

FLAGS = (
    "--enable-custom-logit-processor",
    "--enable-return-hidden-states",
    "--constrained-json-disable-any-whitespace",
    *("--tool-call-parser", "qwen25"),
    *("--served-model-name", "default"),
    # Every prompt stays cached, so that what is cached does not hang on which answers came first.
    *("--max-total-tokens", "200000"),
)
BUDGET = 16


@dataclass(frozen=True)
class Both:
    """The two servers that are compared, and what they serve."""

    plain: Server
    ddtree: Server
    pair: Pair


@pytest.fixture(scope="session")
def both(serve: Serve, tiny_pair: Pair) -> Iterator[Both]:
    """Both are forks of the preloaded process: the cost is that of loading two tiny models."""
    with serve.both(BUDGET, *FLAGS, pair=tiny_pair) as (plain, ddtree):
        yield Both(plain, ddtree, tiny_pair)
