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


def child(pipe: Connection) -> None:
    """The spawned process: one answer, then it ends with 7."""
    pipe.send(view())
    sys.exit(7)


def main() -> None:
    """Report on standard output; then end with 3, or stay."""
    from tests.preloaded import toy_state

    toy_state.STATE.append("changed by the server")
    os.environ["TOY_MARK"] = "set by the server"
    multiprocessing.set_start_method("spawn", force=True)
    children = []
    for _ in range(int(sys.argv[1])):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=child, args=(theirs,))
        process.start()
        theirs.close()
        answer = ours.recv()
        process.join()
        children.append({**answer, "known_pid": process.pid, "exit_code": process.exitcode})
    print(json.dumps({"server": view(), "children": children}), flush=True)
    if sys.argv[2] == "stay":
        time.sleep(600)
    sys.exit(3)


if __name__ == "__main__":
    main()
