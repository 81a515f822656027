"""The tests' side: start that process, and start servers through it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from deploy.local.server_process import ServerError, die_with_parent, log_tail
from tests.preloaded.messages import receive, send, socket_pair

# What a server's processes import before they load a model, and what they import while they load it.
ENGINE = (
    "sglang.launch_server",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.models.registry",
)


# The name of the test that runs; a folder that transformers, once a test imports it, lets torch name.
SET_BY_TEST_RUN = frozenset({"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"})


class Preloaded:
    """A process that has imported `modules`; `start` takes the place of `ServerProcess`'s own way to start one.

    `environment` is added to this process's own, and a server that is forked has to have it too.
    """

    def __init__(
        self, log_path: Path, modules: Sequence[str] = ENGINE, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log_path = log_path
        self._end, theirs = socket_pair()
        self._lock = threading.Lock()
        self._is_ready = False
        command = [sys.executable, "-m", "tests.preloaded.process", str(theirs.fileno()), *modules]
        # What the modules read of it when they are imported counts for every server.
        self._environment = {**os.environ, **(environment or {})}
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=die_with_parent,
                env=self._environment,
            )
        theirs.close()

    def start(self, command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> ForkedServer:
        """Start `PYTHON -m MODULE ARGUMENTS` as a fork."""
        changed = _of_user(environment).items() ^ _of_user(self._environment).items()
        if changed:
            raise ValueError(
                "a server that is forked has the environment that the preloaded process was started with, "
                f"found other values of {sorted({name for name, _ in changed})}: start it by its command"
            )
        request = {
            "module": command[command.index("-m") + 1],
            "arguments": list(command[command.index("-m") + 2 :]),
            "environment": dict(environment),
            "folder": os.getcwd(),
        }
        return ForkedServer(self, int(self._ask(request, [log.fileno()])["pid"]))

    def exit_status(self, pid: int) -> int | None:
        """As `subprocess.Popen.poll` gives it; None while the server runs."""
        status = self._ask({"poll": pid})["status"]
        return None if status is None else int(status)

    def _ask(self, request: dict[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        try:
            with self._lock:
                if not self._is_ready:
                    receive(self._end)
                    self._is_ready = True
                send(self._end, request, files)
                return receive(self._end)[0]
        except (EOFError, ConnectionError) as error:
            raise ServerError(f"the preloaded process has ended. Its output:\n{log_tail(self._log_path)}") from error

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_exc: object) -> None:
        """End it, and whatever server is left."""
        self._end.close()
        self._process.terminate()
        self._process.wait()


def _of_user(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a test run itself puts there."""
    return {name: value for name, value in environment.items() if name not in SET_BY_TEST_RUN}


class ForkedServer:
    """The first process of a server that was forked; has what `ServerProcess` asks of a `subprocess.Popen`."""

    def __init__(self, preloaded: Preloaded, pid: int) -> None:
        self.pid = pid
        self._preloaded = preloaded
        self._status: int | None = None

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        if self._status is None:
            self._status = self._preloaded.exit_status(self.pid)
        return self._status

    def terminate(self) -> None:
        """Ask it to end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        while (status := self.poll()) is None:
            time.sleep(0.05)
        return status
