"""Real servers for the tests: the embedded model on this machine, one server per session and configuration.

Servers are forks of a process that has imported the engine, seconds to start; the one that most tests ask is started
as users start theirs. A server is shared by all tests that can share it; each test flushes the prefix cache where it
matters.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.servers import Pair, Server
from tests.e2e.serving import READY_AT_ONCE, Serve
from tests.preloaded.client import ENGINE, Preloaded
from tests.preloaded.environment import unchanged_environment

ASKED_OF_BOTH = ("--enable-custom-logit-processor",)
"""Flags of the two servers that answers are compared of; what no request asks for costs them nothing."""


@pytest.fixture(autouse=True)
def _unchanged_environment() -> Iterator[None]:
    """A test that imports the engine leaves the next one's servers the environment that they are forked in."""
    with unchanged_environment():
        yield


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """Begins to import the engine; the first server waits for that."""
    log = tmp_path_factory.mktemp("preloaded") / "preloaded.log"
    with Preloaded(log, (*ENGINE, "benchmarks.harness.penalty_order"), READY_AT_ONCE) as process:
        yield process


@pytest.fixture(scope="session")
def serve(pair: Pair, preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Starts servers."""
    return Serve(pair, preloaded, tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A byte-level pair of random weights that was built to accept two tokens a round; its servers answer at once."""
    folder = tmp_path_factory.mktemp("tiny-pair")
    command = [sys.executable, "-m", "benchmarks", "tiny_pair", str(folder)]
    subprocess.run(command, cwd=Path(__file__).resolve().parents[2], check=True, timeout=300)
    return Pair(str(folder / "target"), str(folder / "draft"))


@pytest.fixture(scope="session")
def plain(serve: Serve) -> Iterator[Server]:
    """Plain decoding: the reference of everything."""
    with serve(None, None, *ASKED_OF_BOTH) as server:
        yield server


@pytest.fixture(scope="session")
def ddtree(serve: Serve) -> Iterator[Server]:
    """DDTREE at the default budget, 16 nodes besides the root; it streams token by token."""
    with serve("DDTREE", 16, *ASKED_OF_BOTH, "--speculative-ddtree-stream-tokens", as_users_do=True) as server:
        yield server
