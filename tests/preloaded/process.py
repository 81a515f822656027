"""The process that forks servers: `python -m tests.preloaded.process SOCKET MODULES` imports the modules first.

It runs nothing of the engine beyond imports, and no thread pool of torch's: what is forked off starts its own.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import runpy
import signal
import socket
import sys
from typing import Any

from tests.preloaded.messages import receive, send
from tests.preloaded.spawned import become, place_files, prepare_children

# Of a server: four ranks at most, a detokenizer, and room.
NUM_CHILDREN = 6
_PR_SET_PDEATHSIG = 1


def serve_forks(tests: socket.socket) -> dict[str, Any] | None:
    """Fork what the tests ask for until they close the socket; returns the request in the fork, None in the end."""
    while True:
        try:
            request, files = receive(tests)
        except EOFError:
            return None
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            send(tests, {"status": os.waitstatus_to_exitcode(status) if pid else None})
            continue
        pid = os.fork()
        if pid == 0:
            tests.close()
            begin(files)
            return request
        for file in files:
            os.close(file)
        send(tests, {"pid": pid})


def begin(output: list[int]) -> None:
    """In the fork: a session of its own that writes to `output`, reads nothing and dies with this program."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    place_files([os.open(os.devnull, os.O_RDONLY), output[0], os.dup(output[0])], [0, 1, 2])
    for number in (0, 1, 2):
        os.set_inheritable(number, True)


def run_module(request: dict[str, Any]) -> None:
    """`python -m MODULE ARGUMENTS` with the request's environment."""
    os.chdir(request["folder"])
    # Under DP attention the schedulers are started by a process that the server has started.
    prepare_children(NUM_CHILDREN, further=NUM_CHILDREN if "--enable-dp-attention" in request["arguments"] else 0)
    become(["", *request["arguments"]], request["environment"])
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    """Import, say so, and fork until the tests end."""
    tests = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    # Forks share these pages as long as no garbage collection writes into them.
    gc.freeze()
    send(tests, {"ready": True})
    request = serve_forks(tests)
    if request is not None:
        run_module(request)


if __name__ == "__main__":
    main()
