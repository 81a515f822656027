"""Forks made in advance in place of what multiprocessing starts by `spawn`, which imports everything again.

The engine starts its schedulers and its detokenizer by `spawn`. A child that was forked before the server began holds
the imported modules and nothing of the server's state, as a new interpreter does after its imports.
"""

from __future__ import annotations

import fcntl
import multiprocessing.util
import os
import socket
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tests.preloaded.messages import receive, send, socket_pair


def prepare_children(number: int, further: int = 0, files: Sequence[int] = ()) -> None:
    """Fork `number` children that wait to be what multiprocessing spawns next; any more are spawned as ever.

    A child that is woken forks `further` ones for what it spawns itself. `files` are this process's alone.

    They are this process's own children, in its group, and end with it.
    """
    ours, theirs = socket_pair()
    for _ in range(number):
        if os.fork() == 0:
            ours.close()
            for file in files:
                os.close(file)
            _wait_and_run(theirs, further)
    theirs.close()
    spawn, left = multiprocessing.util.spawnv_passfds, [number]

    def spawn_or_wake(path: bytes, args: Sequence[str | bytes], passfds: Sequence[int]) -> int:
        words = [os.fsdecode(arg) for arg in args]
        # The resource tracker is started in this way too; it needs nothing that is imported.
        if left[0] == 0 or not any("spawn_main" in word for word in words):
            return int(spawn(path, args, passfds))
        left[0] -= 1
        return _wake(ours, words, sorted(map(int, passfds)))

    multiprocessing.util.spawnv_passfds = spawn_or_wake


def _wake(children: socket.socket, words: list[str], files: list[int]) -> int:
    """Let one waiting child run `python -c CODE ARGUMENTS`; returns its process id."""
    code = words.index("-c") + 1
    message = {
        "code": words[code],
        "argv": ["-c", *words[code + 1 :]],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": files,
    }
    send(children, message, files)
    return int(receive(children)[0]["pid"])


def _wait_and_run(parent: socket.socket, further: int) -> None:
    """In the child: wait, become what the message says, and end with its status."""
    try:
        message, files = receive(parent)
    except (EOFError, ConnectionError):
        os._exit(0)
    send(parent, {"pid": os.getpid()})
    parent.close()
    if further:
        prepare_children(further, files=files)
    place_files(files, message["files"])
    os.chdir(message["folder"])
    become(message["argv"], message["environment"])
    exec(compile(message["code"], "<string>", "exec"), vars(sys.modules["__main__"]))
    raise SystemExit(0)


def place_files(files: Sequence[int], numbers: Sequence[int]) -> None:
    """Give open files the numbers that they have in the parent, out of each other's way."""
    above = max([*files, *numbers], default=2) + 1
    safe = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(safe, numbers, strict=True):
        os.dup2(file, number, inheritable=False)
        os.close(file)


def become(argv: list[str], environment: dict[str, Any]) -> None:
    """Take a program's arguments and environment, and an empty `__main__`."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = argv
    sys.modules["__main__"] = ModuleType("__main__")
