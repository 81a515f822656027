"""One SGLang server as a child: its command line, its start, its readiness, its end.

Standard library only. Callers rely on this: once `stop` has returned, or this process has died, however it died,
none of the server's processes is left.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

_PR_SET_PDEATHSIG = 1
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


# What SGLang's log shows, in order, and what it is busy with from there on.
_STARTUP_STAGES = (
    ("server_args=", "importing SGLang in the scheduler"),
    ("Load weight begin", "loading weights"),
    ("KV Cache is allocated", "warming up"),
)


LAUNCH_SERVER = "sglang.launch_server"
# A minute on an idle machine; on a busy one, importing alone was seen to take six.
START_TIMEOUT_S = 1800.0

_KERNELS_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_000
_PORT_DRAWS = 200


class ServerError(Exception):
    """A server ended or did not become ready; the message carries the end of its log."""


@dataclass(frozen=True)
class ServerSpec:
    """What to serve and how; everything that decides the command line.

    `algorithm` is None for plain decoding. `budget` (nodes besides the root) and `policy` (how a round's budget is
    chosen, None: the server's default) count for DDTREE only.
    `extra` are further flags, passed on as they are. `module` is what `python -m` runs.
    """

    model: str
    port: int
    host: str = "127.0.0.1"
    algorithm: str | None = None
    draft: str | None = None
    budget: int | None = None
    policy: str | None = None
    dtype: str = "float32"
    extra: tuple[str, ...] = ()
    module: str = LAUNCH_SERVER

    @property
    def url(self) -> str:
        """Address without a trailing slash."""
        return f"http://{self.host}:{self.port}"

    def command(self, python: str | Path) -> list[str]:
        """The command line of the server."""
        # -P: a folder called workers or sglang where the user stands is no part of the server.
        parts = [str(python), "-P", "-m", self.module, "--model-path", self.model]
        parts += ["--host", self.host, "--port", str(self.port), "--dtype", self.dtype]
        # Without it an idle server keeps one core busy, and the next measurement with it.
        parts += ["--sleep-on-idle"]
        if self.algorithm is not None:
            parts += ["--speculative-algorithm", self.algorithm]
        if self.draft is not None:
            parts += ["--speculative-draft-model-path", self.draft]
        if self.budget is not None:
            parts += ["--speculative-ddtree-budget", str(self.budget)]
        if self.policy is not None:
            parts += ["--speculative-ddtree-policy", self.policy]
        return [*parts, *self.extra]


def port_is_free(host: str, port: int) -> bool:
    """True when a server could listen at `host:port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` that is free at this moment, and that the kernel gives to nobody who asks for any.

    A server binds its port a minute after it was chosen. Of a range that the kernel chooses from, another process may
    have got it by then for a connection of its own.

    Raises:
        ServerError: of many ports none is free.
    """
    draw = random.SystemRandom()
    for _ in range(_PORT_DRAWS):
        port = draw.randrange(_FIRST_PORT, _kernels_first_port())
        if port_is_free(host, port):
            return port
    raise ServerError(f"a port of {host} must be free, got {_PORT_DRAWS} that are taken; close what listens there")


def _kernels_first_port() -> int:
    """The first port that the kernel chooses by itself."""
    try:
        first = int(_KERNELS_PORTS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        first = 0
    return first if first > _FIRST_PORT + _PORT_DRAWS else 32768


def die_with_parent() -> None:
    """In the child before exec: SIGKILL when the parent dies, so that even kill -9 leaves no server."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def http_status(url: str, timeout_s: float = 5.0) -> int | None:
    """Status code of a GET; None without an answer within `timeout_s`."""
    try:
        with _NO_PROXY.open(url, timeout=timeout_s) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def log_tail(path: Path, lines: int = 25) -> str:
    """The last lines of a log, indented; empty when there is none."""
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as handle:
        return "".join("    " + line for line in deque(handle, maxlen=lines)).rstrip()


class Child(Protocol):
    """A started process, the leader of its group: what is used of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self) -> int: ...


def start_command(command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> Child:
    """Start a command in a session of its own, its output in `log`; it dies with this process."""
    return subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,
        env=environment,
    )


Starter = Callable[[Sequence[str], IO[bytes], Mapping[str, str]], Child]


@dataclass
class ServerProcess:
    """A running server and its process group. Use as a context manager, or call `stop` in a finally."""

    name: str
    command: Sequence[str]
    url: str
    log_path: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    starter: Starter = start_command
    _process: Child | None = None

    @classmethod
    def from_spec(
        cls, name: str, spec: ServerSpec, python: str | Path, log_path: Path, **environment: str
    ) -> ServerProcess:
        """A server for `spec` whose output goes to `log_path`; not started yet."""
        return cls(name, spec.command(python), spec.url, log_path, environment)

    def start(self) -> ServerProcess:
        """Start it in a session of its own; returns self."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = self.starter(self.command, log, {**os.environ, **self.environment})
        return self

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the group."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def startup_stage(self) -> str:
        """What it is busy with before it is ready, told from its log."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""
        reached = [stage for mark, stage in _STARTUP_STAGES if mark in text]
        return reached[-1] if reached else "importing SGLang"

    def check_alive(self) -> None:
        """Raise ServerError with the end of the log if the server has ended."""
        status = self.exit_status()
        if status is not None:
            raise ServerError(
                f"{self.name} ended with status {status}. The end of {self.log_path}:\n{log_tail(self.log_path)}"
            )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once it generates tokens; raise ServerError if it ends or takes longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check_alive()
            if http_status(f"{self.url}/health_generate", timeout_s=30.0) == 200:
                return
            time.sleep(0.5)
        raise ServerError(
            f"{self.name} was not ready within {timeout_s:.0f} s. The end of {self.log_path}:\n"
            f"{log_tail(self.log_path)}"
        )

    def stop(self, grace_s: float = 3.0) -> None:
        """End every process of it: SIGTERM to the server, which then ends its own, then SIGKILL to what is left.

        Safe to call twice. (SGLang takes a SIGTERM to its scheduler for a crash, and stays to write diagnostics.)
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            _eventually(self._group_is_gone, grace_s)
        if self._signal_group(signal.SIGKILL):
            _eventually(self._group_is_gone, 10.0)
        self._process.wait()

    def _signal_group(self, signum: int) -> bool:
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            return False
        return True

    def _group_is_gone(self) -> bool:
        self.exit_status()  # reaps our child
        return not self._signal_group(0) or not _has_running(self.pid)

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(self, *_exc: Any) -> None:
        self.stop()


def _has_running(group: int) -> bool:
    """Whether a process of this group is more than a zombie; True where there is no /proc to tell.

    The server's children are left to whatever reaps orphans here, which may take its time. They hold nothing any more,
    but for a first thread that ended before others of its process did.
    """
    try:
        stats = list(Path("/proc").glob("[0-9]*/stat"))
    except OSError:
        return True
    if not stats:
        return True
    for stat in stats:
        try:
            # Behind the command's name, which may hold anything.
            state, _, its_group, *rest = stat.read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(its_group) == group and not (state in "ZX" and int(rest[14]) <= 1):
            return True
    return False


def _eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
