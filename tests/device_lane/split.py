"""Two servers of one pair that share requests out: one prefills, the other decodes, and is the one that is asked."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deploy.local.server_process import free_port
from tests.device_lane import host_cache
from tests.device_lane.asking import Lane, LaneServer
from tests.device_lane.pairs import TinyPair
from tests.device_lane.references import Asked

_TRANSFER = ("--disaggregation-transfer-backend", "mooncake_tcp", "--disaggregation-mode")
GROUPS = 2
"""Of a server under DP attention (group_catalogue.py)."""
# A retracted request's keys, the drafter's too, go to a pool on the host and come back. SGLang keeps room for 512 more
# tokens of each request that runs, which is most of a lane's pool.
_DECODES = (*_TRANSFER, "decode", *host_cache.COPIES, "--num-reserved-decode-tokens", "16")


@dataclass(frozen=True)
class SplitServer(LaneServer):
    """The decoding server, with the one that prefills for it."""

    prefilling: LaneServer
    port: int  # where the decoding server asks who prefills
    rooms: Iterator[int]

    def log(self) -> str:
        """Both servers'."""
        return self.prefilling.log() + super().log()

    def ask(self, asked: Asked, after_s: float = 0.0, **body: Any) -> dict[str, Any]:
        """Ask both, as a router does; the answer is the decoding server's."""
        return self._of_both(super().ask, asked, after_s, body)

    def stream(self, asked: Asked, after_s: float = 0.0, **body: Any) -> dict[str, Any]:
        """The decoding server's stream."""
        return self._of_both(super().stream, asked, after_s, body)

    def open_session(self, name: str) -> None:
        """On both."""
        self.prefilling.open_session(name)
        super().open_session(name)

    def close_session(self, name: str) -> None:
        """On both."""
        self.prefilling.close_session(name)
        super().close_session(name)

    def _of_both(
        self, ask: Callable[..., dict[str, Any]], asked: Asked, after_s: float, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        time.sleep(after_s)
        meeting = self.meeting(body.get("routed_dp_rank"))
        pool = ThreadPoolExecutor(1)
        try:
            prefilled = pool.submit(self.prefilling.ask, asked, 0.0, **body, **meeting)
            answer = ask(asked, 0.0, **body, **meeting)
            # Where a prompt's keys came from is told by the server that had them.
            answer["meta_info"] |= _hits(prefilled.result())
        finally:
            # If the decoding server is gone, the other one waits for it until it is stopped.
            pool.shutdown(wait=False)
        return answer

    def meeting(self, group: int | None = None) -> dict[str, Any]:
        """Where the two servers meet for one more request, as a router tells both.

        Under DP attention its room says which group prefills it: of a request without a group the decoding server
        chooses another by itself, in turn.
        """
        rooms = (room for room in self.rooms if group is None or room % GROUPS == group)
        return {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.port, "bootstrap_room": next(rooms)}

    def used_slots(self) -> int:
        """Of both."""
        return self.prefilling.used_slots() + super().used_slots()


def _hits(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer["meta_info"].items() if name.startswith("cached_tokens")}


@contextmanager
def serve_split(
    lane: Lane,
    prefill_flags: Sequence[str],
    decode_flags: Sequence[str],
    pair: TinyPair,
    backend: str,
    algorithm: str | None,
    budget: int | None,
    *flags: str,
    **options: Any,
) -> Iterator[SplitServer]:
    """Both servers, ready; arguments are those of `Lane.serve`, and flags of one. That which prefills has no graphs."""
    port = free_port()
    for_prefills = {**options, "captured": (), "log": lane.new_log("prefilling")}
    prefills = (*_TRANSFER, "prefill", "--disaggregation-bootstrap-port", str(port))
    with (
        lane.serve(pair, backend, algorithm, budget, *prefills, *flags, *prefill_flags, **for_prefills) as prefilling,
        lane.serve(pair, backend, algorithm, budget, *_DECODES, *flags, *decode_flags, **options) as decoding,
    ):
        yield SplitServer(decoding.process, decoding.report, prefilling, port, itertools.count(1))
