"""Ask a server so that it measures: batches of each size, each width as often as its table needs it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ddtree_sglang.calibration.table import CostTable, CostTableError
from ddtree_sglang.cost_batches import KEY, Batches
from ddtree_sglang.viewer.top import Server

TIMEOUT_S = 600.0
MOST_ASKED = 6
"""Batches asked for one cell before what it has is left as it is."""


@dataclass(frozen=True)
class Plan:
    """What is measured: numbers of requests, nodes of each, rounds of each cell, words of a prompt."""

    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    rounds: int
    words: int

    def cells(self) -> Iterator[tuple[int, int, int]]:
        """(requests, nodes, rounds): in two passes, there and back, so that a machine that changes hits all alike."""
        for size in self.sizes:
            for widths, rounds in ((self.widths, -(-self.rounds // 2)), (self.widths[::-1], self.rounds // 2)):
                yield from ((size, width, rounds) for width in widths if rounds)


@dataclass(frozen=True)
class Offer:
    """What the server says that it can do."""

    nodes: tuple[int, ...]
    max_running: int
    table: dict[str, Any]
    facts: dict[str, Any]


def offer_of(server: Server) -> Offer:
    """What can be measured there.

    Raises:
        CostTableError: the server keeps no table, or several.
        NoServer: there is none.
    """
    info = server.info()
    states = [state for state in info.get("internal_states") or [] if isinstance(state, dict)]
    if len(states) > 1:
        raise CostTableError(
            f"{server.url} must be one server, whose rounds are asked for one by one, got {len(states)} that share "
            "requests out (--dp-size); calibrate one that was started without it."
        )
    table = next((state[KEY] for state in states if isinstance(state.get(KEY), dict)), None)
    if table is None:
        raise CostTableError(
            f"{server.url} must measure its rounds, got none of its costs; start it with "
            "--speculative-algorithm DDTREE --speculative-ddtree-policy adaptive."
        )
    running = states[0].get("effective_max_running_requests_per_dp") or info.get("max_running_requests") or 1
    names = ("model_path", "dtype", "attention_backend", "tp_size", "speculative_draft_model_path", "version")
    facts = {name: info[name] for name in names if info.get(name) is not None}
    return Offer(tuple(map(int, table["nodes"])), int(running), table, facts)


def table_of(server: Server) -> CostTable:
    """The server's table as it is now."""
    offer = offer_of(server)
    return CostTable.of({**offer.table, "facts": offer.facts}, server.url)


class Asker:
    """Asks one server for batches whose rounds have a certain width."""

    def __init__(self, server: Server, words: int, key: str | None = None) -> None:
        self._server, self._batches = server, Batches(words)
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def measure(self, size: int, width: int, rounds: int) -> int:
        """Rounds of `size` requests and `width` nodes that were asked for: `rounds`, or fewer after MOST_ASKED tries.

        Raises:
            CostTableError: the server refuses, or breaks off.
        """
        done = 0
        for _ in range(MOST_ASKED):
            if done >= rounds:
                break
            answers = self._post("/generate", self._batches.body(size, width, rounds - done))
            done += self._batches.rounds_of(width, answers)
        return done

    def _post(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        request = urllib.request.Request(self._server.url + path, json.dumps(body).encode(), self._headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                found = json.loads(response.read())
        except urllib.error.HTTPError as error:
            told = error.read().decode("utf-8", "replace")[:300]
            raise CostTableError(f"{self._server.url}{path} must answer, got {error.code}: {told}.") from error
        except (OSError, ValueError) as error:
            raise CostTableError(f"{self._server.url}{path} must answer, got: {error}; look at its log.") from error
        return list(found)


def calibrate(asker: Asker, plan: Plan, say: Callable[[str], None]) -> None:
    """Have every cell of the plan measured."""
    for size, width, rounds in plan.cells():
        done = asker.measure(size, width, rounds)
        short = "" if done >= rounds else f" of {rounds}: the server takes fewer requests at once, or others use it"
        say(f"{size} request{'s' if size > 1 else ''}, {width} node{'s' if width > 1 else ''}: {done} rounds{short}")
