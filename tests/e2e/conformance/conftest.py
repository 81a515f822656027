"""One plain server and one DDTREE server for all of conformance, with what requests may need switched on.

They serve the tiny pair of bytes: hundreds of answers take seconds, a tree of 17 nodes is accepted for two tokens a
round, and its answers are pieces of their prompts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.servers import Pair, Server

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
def both(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Both are forks of the preloaded process: the cost is that of loading two tiny models."""
    folder = tmp_path_factory.mktemp("tiny-pair")
    command = [sys.executable, "-m", "benchmarks", "tiny_pair", str(folder)]
    subprocess.run(command, cwd=Path(__file__).resolve().parents[3], check=True, timeout=300)
    pair = Pair(str(folder / "target"), str(folder / "draft"))
    with (
        serve(None, None, *FLAGS, pair=pair) as plain,
        serve("DDTREE", BUDGET, *FLAGS, pair=pair) as ddtree,
    ):
        yield Both(plain, ddtree, pair)
