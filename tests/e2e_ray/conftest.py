"""Real Ray clusters on this machine, on the loopback interface, with real servers beside them for reference."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.ray_client import KEY, KEY_VARIABLE, completed, serving
from deploy.local.server_process import ServerProcess, ServerSpec, free_port
from tests.e2e.servers import Pair
from tests.e2e_ray.questions import BODIES, Answers
from workers.cluster.local import prepare_environment

# Before any test file imports Ray. A process reads the token once; `Cluster`, unlike `ray start`, does not make one.
prepare_environment()
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

REPO = Path(__file__).resolve().parents[2]
EXIT_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the run ended."""
    session.config.stash[EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without the interpreter's own end.

    With several Rays started and shut down in one process it crashed once in ten runs, after everything had passed and
    been reported (a segmentation fault in native threads; benchmarks/LOG.md).
    """
    if EXIT_STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[EXIT_STATUS])


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    """A Ray of this module's own with Serve on it; CPUs are booked more often than there are any."""
    from workers.cluster.local import start_local_cluster

    os.environ[KEY_VARIABLE] = KEY
    # Where a replica finds the replicas of these tests.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    start_local_cluster(num_cpus=8)
    with serving() as port:
        yield port


@pytest.fixture(scope="session")
def reference(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What a single process answers, by the stock launcher; stopped, for the memory's sake, when this returns."""
    spec = ServerSpec(
        model=pair.model,
        port=free_port(),
        algorithm="DDTREE",
        draft=pair.draft,
        budget=16,
        policy="fixed",
        extra=("--max-total-tokens", "8192", "--random-seed", "0"),
    )
    log = tmp_path_factory.mktemp("reference") / "server.log"
    with ServerProcess.from_spec("DDTREE", spec, sys.executable, log) as process:
        process.wait_ready()
        return [completed(spec.url, {**body, "return_spec_tokens_details": True}) for body in BODIES]
