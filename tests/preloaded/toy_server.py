"""A program in the engine's shape: changes its own state, starts a process by `spawn`, and reports what both see."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any


def view() -> dict[str, Any]:
    """What a process knows of itself."""
    from tests.preloaded import toy_state

    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgrp(),
        "argv": sys.argv[1:],
        "mark": os.environ.get("TOY_MARK"),
        "state": list(toy_state.STATE),
        "imported_by": toy_state.IMPORTED_BY,
    }


def child(pipe: Connection, is_controller: bool) -> None:
    """The spawned process: one answer, then it ends with 7. A controller starts another one, and reports on it."""
    pipe.send({**view(), "children": [start(is_controller=False)] if is_controller else []})
    sys.exit(7)


def start(is_controller: bool) -> dict[str, Any]:
    """Start a process, and say what it answers and how it ends."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=child, args=(theirs, is_controller))
    process.start()
    theirs.close()
    answer = ours.recv()
    process.join()
    return {**answer, "known_pid": process.pid, "exit_code": process.exitcode}


def main() -> None:
    """Report on standard output; then end with 3, or stay."""
    from tests.preloaded import toy_state

    toy_state.STATE.append("changed by the server")
    os.environ["TOY_MARK"] = "set by the server"
    multiprocessing.set_start_method("spawn", force=True)
    is_controller = "--enable-dp-attention" in sys.argv
    children = [start(is_controller) for _ in range(int(sys.argv[1]))]
    print(json.dumps({"server": view(), "children": children}), flush=True)
    if sys.argv[2] == "stay":
        time.sleep(600)
    sys.exit(3)


if __name__ == "__main__":
    main()
