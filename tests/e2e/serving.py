"""Start the tests' servers, two at the same time where their models are small."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.server_process import ServerProcess, ServerSpec, free_port, start_command
from tests.e2e.servers import Pair, Server
from tests.preloaded.client import Preloaded

KV_POOL_TOKENS = 16384
READY_AT_ONCE = {"SGLANG_DIAG_BYPASS_HEALTH_GENERATE": "1"}
"""A forked server is ready when SGLang's own first request was answered. Its health check would ask another one, and
sleep a second before it looks whether that was (entrypoints/http_server.py, `health_generate`)."""


@dataclass(frozen=True)
class Wanted:
    """A server: `algorithm` None for plain decoding, `pair` None for the embedded one.

    `as_users_do` starts it by its command, with imports of its own, and with what `environment` adds. `policy` None is
    the server's default; most tests look at rounds, which a fixed budget makes the same on every machine.
    """

    algorithm: str | None
    budget: int | None = None
    flags: tuple[str, ...] = ()
    pair: Pair | None = None
    as_users_do: bool = False
    policy: str | None = "fixed"
    environment: tuple[tuple[str, str], ...] = ()


class Serve:
    """`with serve("DDTREE", 16) as server:` starts one and stops it, whatever happens in between.

    `embedded` is served where nothing else is asked for; `folder` makes a new folder of that name.
    """

    def __init__(self, embedded: Pair, preloaded: Preloaded, folder: Callable[[str], Path]) -> None:
        self._embedded = embedded
        self._preloaded = preloaded
        self._folder = folder

    @contextmanager
    def __call__(
        self,
        algorithm: str | None,
        budget: int | None = None,
        *flags: str,
        pair: Pair | None = None,
        as_users_do: bool = False,
        policy: str | None = "fixed",
        environment: tuple[tuple[str, str], ...] = (),
    ) -> Iterator[Server]:
        """One server."""
        with self.together(Wanted(algorithm, budget, flags, pair, as_users_do, policy, environment)) as (server,):
            yield server

    @contextmanager
    def both(self, budget: int, *flags: str, pair: Pair) -> Iterator[tuple[Server, Server]]:
        """Plain decoding and DDTREE with the same flags, started at the same time: most of that is work for one core.

        For a pair that takes little memory. SGLang looks how much of it a model has left, and would count what
        another server takes meanwhile.
        """
        with self.together(Wanted(None, None, flags, pair), Wanted("DDTREE", budget, flags, pair)) as (plain, ddtree):
            yield plain, ddtree

    @contextmanager
    def together(self, *wanted: Wanted) -> Iterator[list[Server]]:
        """All of them."""
        made: list[tuple[ServerProcess, Server]] = []
        try:
            for one in wanted:
                process, server = self._make(one)
                made.append((process, server))
                process.start()
            for process, _ in made:
                process.wait_ready()
            yield [server for _, server in made]
        finally:
            for process, _ in made:
                # Without the wait for a drained server, which takes it longer than it gets.
                process.stop(grace_s=0.0)

    def _make(self, wanted: Wanted) -> tuple[ServerProcess, Server]:
        models = wanted.pair or self._embedded
        folder = self._folder(f"server-{wanted.algorithm}-{wanted.budget}")
        trace = folder / "trace.jsonl"
        flags = ("--max-total-tokens", str(KV_POOL_TOKENS), "--random-seed", "0", *wanted.flags)
        if wanted.algorithm == "DDTREE":
            flags += ("--speculative-ddtree-trace", str(trace))
        spec = ServerSpec(
            model=models.model,
            port=free_port(),
            algorithm=wanted.algorithm,
            draft=models.draft if wanted.algorithm else None,
            budget=wanted.budget,
            policy=wanted.policy if wanted.algorithm == "DDTREE" else None,
            extra=flags,
        )
        log = folder / "server.log"
        environment = dict(wanted.environment) if wanted.as_users_do else {**READY_AT_ONCE, **dict(wanted.environment)}
        process = ServerProcess.from_spec(str(wanted.algorithm), spec, sys.executable, log, **environment)
        process.starter = start_command if wanted.as_users_do else self._preloaded.start
        return process, Server(spec.url, folder / "server.log", trace)
