"""Real servers for the tests: the embedded model on this machine, one server per session and configuration.

Servers are forks of a process that has imported the engine, seconds to start; the one that most tests ask is started
as users start theirs. A server is shared by all tests that can share it; each test flushes the prefix cache where it
matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from deploy.local.server_process import ServerProcess, ServerSpec, free_port, start_command
from tests.e2e.servers import Pair, Server
from tests.preloaded.client import ENGINE, Preloaded
from tests.preloaded.environment import unchanged_environment

KV_POOL_TOKENS = 16384
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
    with Preloaded(log, (*ENGINE, "benchmarks.harness.penalty_order")) as process:
        yield process


@pytest.fixture(scope="session")
def serve(pair: Pair, preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """`with serve("DDTREE", budget=16) as server:` starts one and stops it, whatever happens in between.

    `as_users_do` starts it by its command, with imports of its own.
    """
    embedded = pair

    @contextmanager
    def start(
        algorithm: str | None,
        budget: int | None = None,
        *extra: str,
        pair: Pair | None = None,
        as_users_do: bool = False,
    ) -> Iterator[Server]:
        models = pair or embedded
        folder = tmp_path_factory.mktemp(f"server-{algorithm}-{budget}")
        trace = folder / "trace.jsonl"
        flags = ("--max-total-tokens", str(KV_POOL_TOKENS), "--random-seed", "0", *extra)
        if algorithm == "DDTREE":
            flags += ("--speculative-ddtree-trace", str(trace))
        spec = ServerSpec(
            model=models.model,
            port=free_port(),
            algorithm=algorithm,
            draft=models.draft if algorithm else None,
            budget=budget,
            extra=flags,
        )
        process = ServerProcess.from_spec(str(algorithm), spec, sys.executable, folder / "server.log")
        process.starter = start_command if as_users_do else preloaded.start
        process.start()
        try:
            process.wait_ready()
            yield Server(spec.url, folder / "server.log", trace)
        finally:
            # Without the wait for a drained server, which takes it longer than it gets.
            process.stop(grace_s=0.0)

    return start


@pytest.fixture(scope="session")
def plain(serve: Callable[..., object]) -> Iterator[Server]:
    """Plain decoding: the reference of everything."""
    with serve(None, None, *ASKED_OF_BOTH) as server:  # type: ignore[attr-defined]
        yield server


@pytest.fixture(scope="session")
def ddtree(serve: Callable[..., object]) -> Iterator[Server]:
    """DDTREE at the default budget, 16 nodes besides the root; it streams token by token."""
    with serve("DDTREE", 16, *ASKED_OF_BOTH, "--speculative-ddtree-stream-tokens", as_users_do=True) as server:  # type: ignore[attr-defined]
        yield server
