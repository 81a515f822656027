"""One replica's engine as a group that lives and dies together: the process that owns it, its ranks, its children.

A tensor-parallel group cannot lose a member, so the death of any rank ends all of them and this process; Ray Serve then
starts a new replica. Ending is by SIGKILL: a rank that waits for a dead or stopped peer reacts to nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workers.replicas.shared_memory import remove

logger = logging.getLogger(__name__)


class EngineProcess:
    """Watches the ranks of a started `RayEngine` and ends this process with all of them.

    Args:
        ranks: actor handles, as `install_rank_actors` makes them.
        until_a_rank_ends: blocks until any rank's event loop ends, however it ends.
        files: in shared memory, removed at the end; SGLang does not remove them.
        exit_process: ends this process; tests replace it.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        until_a_rank_ends: Callable[[], None],
        files: Sequence[Path] = (),
        exit_process: Callable[[int], Any] = os._exit,
    ) -> None:
        self._ranks = list(ranks)
        self._until_a_rank_ends = until_a_rank_ends
        self._files = list(files)
        self._exit_process = exit_process
        self._ending = threading.Lock()
        self._pids = self._ask_pids()
        threading.Thread(target=self._watch, name="rank-death-watch", daemon=True).start()

    def pings(self, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """Each rank's description of itself: pid, node, rank, number of forwards.

        Raises:
            ray.exceptions.RayError: a rank is dead, or gave no answer within `timeout_s` seconds.
        """
        import ray

        answers: list[dict[str, Any]] = ray.get([rank.ping.remote() for rank in self._ranks], timeout=timeout_s)
        return answers

    def end(self, reason: str) -> None:
        """End ranks, children and this process, in this order. Does nothing if that has begun already."""
        if not self._ending.acquire(blocking=False):
            return
        logger.error("ending this replica and its %d ranks: %s", len(self._ranks), reason)
        self._end_others()
        self._exit_process(1)

    def retire(self) -> None:
        """End ranks and children; the caller ends this process."""
        if self._ending.acquire(blocking=False):
            self._end_others()

    def end_ranks(self) -> None:
        """Kill every rank; SIGKILL also reaches ranks on this node that are stopped."""
        import ray

        for rank in self._ranks:
            # Fails for a rank that is gone already; the death of this process, its owner, ends the others anyway.
            with contextlib.suppress(Exception):
                ray.kill(rank)
        for pid in self._pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _end_others(self) -> None:
        self.end_ranks()
        _kill_children()
        remove(self._files)

    def _ask_pids(self) -> list[int]:
        """Process ids of the ranks on this node."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        return [int(ping["pid"]) for ping in self.pings(timeout_s=60.0) if ping["node_id"] == here]

    def _watch(self) -> None:
        self._until_a_rank_ends()
        self.end("a rank died")


def _kill_children() -> None:
    """Kill the processes that this one started (SGLang's detokenizer), apart from Python's resource tracker.

    The tracker ends by itself when its last client is gone, and then removes the semaphores of killed processes.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
