"""Ask a server so that it measures: batches of each size, each width as often as its table needs it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ddtree_sglang.calibration.table import CostTable, CostTableError
from ddtree_sglang.viewer.top import Server

KEY = "ddtree_costs"
"""Of `internal_states` in `/server_info`; `ddtree_sglang/engine/cost_report.py` puts it there."""
TIMEOUT_S = 600.0
MOST_ASKED = 6
"""Batches asked for one cell before what it has is left as it is."""
MOST_TOKENS = 256
"""Of one answer."""
FIRST_GUESS = 2.5
"""Tokens of a drafted round before the first answer."""
WORDS = ("river", "stone", "winter", "paper", "garden", "engine", "music", "window", "copper", "letter", "forest")


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
        self._server, self._words = server, words
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._tokens_per_round: dict[int, float] = {1: 1.0}
        self._asked = 0

    def measure(self, size: int, width: int, rounds: int) -> int:
        """Rounds of `size` requests and `width` nodes that were asked for: `rounds`, or fewer after MOST_ASKED tries.

        Raises:
            CostTableError: the server refuses, or breaks off.
        """
        done = 0
        for _ in range(MOST_ASKED):
            if done >= rounds:
                break
            a_round = self._tokens_per_round.get(width, FIRST_GUESS)
            # One more: what begins with a prefill is no round's time.
            tokens = min(2 + round((rounds - done + 1) * a_round), MOST_TOKENS)
            whole, tokens_made, rounds_made = self._ask(size, width, tokens)
            self._tokens_per_round[width] = max(1.0, tokens_made / max(rounds_made, 1))
            done += max(whole - 1, 0)
        return done

    def _ask(self, size: int, width: int, tokens: int) -> tuple[int, int, int]:
        """Rounds that the whole batch was in, then tokens and rounds of all."""
        asked = {
            "text": [self._prompt() for _ in range(size)],
            "sampling_params": {
                "temperature": 0.0,
                "max_new_tokens": tokens,
                "ignore_eos": True,
                "custom_params": {"ddtree": {"budget": width - 1, "adapt": False}},
            },
        }
        metas = [answer["meta_info"] for answer in self._post("/generate", asked)]
        made = [(int(meta["completion_tokens"]) - 1, int(meta.get("spec_verify_ct") or 0)) for meta in metas]
        rounds = [verified or decoded for decoded, verified in made]
        return min(rounds), sum(decoded for decoded, _ in made), sum(rounds)

    def _prompt(self) -> str:
        """Another text each time, so that no cache has it."""
        self._asked += 1
        words = (WORDS[(self._asked * 7 + place * (1 + self._asked % 5)) % len(WORDS)] for place in range(self._words))
        return f"{self._asked}: " + " ".join(words) + ". A short story with these words:"

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


def sizes_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... and the most."""
    doubled: Sequence[int] = [2**power for power in range(most.bit_length()) if 2**power < most]
    return (*doubled, most)
