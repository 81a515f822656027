"""Real servers for the tests: the embedded model on this machine, one server per session and configuration.

A server takes about a minute to start, so it is shared by all tests that can share it; each test flushes the prefix
cache where it matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from deploy.local.server_process import ServerProcess, ServerSpec, free_port
from tests.e2e.servers import Pair, Server

KV_POOL_TOKENS = 16384


@pytest.fixture(scope="session")
def serve(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """`with serve("DDTREE", budget=16) as server:` starts one and stops it, whatever happens in between."""
    embedded = pair

    @contextmanager
    def start(
        algorithm: str | None, budget: int | None = None, *extra: str, pair: Pair | None = None
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
        with ServerProcess.from_spec(str(algorithm), spec, sys.executable, folder / "server.log") as process:
            process.wait_ready()
            yield Server(spec.url, folder / "server.log", trace)

    return start


@pytest.fixture(scope="session")
def plain(serve: Callable[..., object]) -> Iterator[Server]:
    """Plain decoding: the reference of everything."""
    with serve(None) as server:  # type: ignore[attr-defined]
        yield server


@pytest.fixture(scope="session")
def ddtree(serve: Callable[..., object]) -> Iterator[Server]:
    """DDTREE at the default budget, 16 nodes besides the root."""
    with serve("DDTREE", 16) as server:  # type: ignore[attr-defined]
        yield server
