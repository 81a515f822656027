"""What only a server without a refusal is asked: requests that it would answer with a 400."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

from deploy.local.client import post
from tests.device_lane.asking import LaneServer
from tests.device_lane.context_waves import TRACKED_LEN, turn
from tests.device_lane.pairs import TinyPair
from tests.device_lane.references import Asked
from tests.device_lane.scenes import Chooser, Sent
from tests.device_lane.split import SplitServer

PATIENCE_S = 60.0
"""What a request is waited for that nobody answers; others take a few seconds."""


def asking(sampling: dict[str, Any] | None = None, **fields: Any) -> Callable[[LaneServer, TinyPair], None]:
    """Before the scene's own requests, one with these fields and parameters of sampling."""

    def before(server: LaneServer, _pair: TinyPair) -> None:
        body = Asked((5, 6, 7)).body()
        body["sampling_params"] |= sampling or {}
        post(server.url, "/generate", {**body, **fields}, timeout_s=PATIENCE_S)

    return before


def asking_both_groups(server: LaneServer, _pair: TinyPair) -> None:
    """Requests to two groups at once, unequally many."""

    def ask(index: int) -> None:
        body = Asked((5, 6, 7 + index), 12).body() | {"routed_dp_rank": int(index > 1)}
        post(server.url, "/generate", body, timeout_s=PATIENCE_S)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, range(3)))


def asking_for_two_answers(server: LaneServer, _pair: TinyPair) -> None:
    """Two answers to one prompt, of both servers that share requests out, as a router asks."""
    body = Asked((5, 6, 7)).body()
    body["sampling_params"]["n"] = 2
    split = cast(SplitServer, server)
    meeting = {"bootstrap_host": "127.0.0.1", "bootstrap_port": split.port, "bootstrap_room": next(split.rooms)}
    with ThreadPoolExecutor(1) as pool:
        prefilled = pool.submit(post, split.prefilling.url, "/generate", {**body, **meeting}, PATIENCE_S)
        post(split.url, "/generate", {**body, **meeting}, PATIENCE_S)
        prefilled.result()


def mixed_within_a_page(chooser: Chooser) -> list[Sent]:
    """One takes part in the chunks of a prompt of several, of which the cache gets states."""
    chooser.passed = chooser.find(204, 5)
    running = chooser.find(5, 40, anywhere=True)
    return [Sent(running, check="steps"), Sent(chooser.passed, check="steps", after_s=1.0)]


def go_on_behind_that_page(chooser: Chooser) -> list[Sent]:
    """Three that begin with that prompt as far as a state is kept."""
    assert chooser.passed is not None
    text = chooser.passed.prompt[: 3 * TRACKED_LEN + 1]

    def longer(asked: Asked) -> Asked:
        return replace(asked, prompt=(*text, *asked.prompt))

    return [Sent(chooser.find(length, 7, longer), check="tokens") for length in (1, 2, 3)]


def turns_that_end_inside_a_path(chooser: Chooser) -> list[Sent]:
    """Two sessions begin, one of them with an answer that a stop token ends: the next round is in flight by then."""
    chooser.sessions["ended"] = asked = chooser.ending_inside_a_path(6)
    ended = Sent(asked, session="ended", is_first_turn=True, num_sent=len(asked.prompt))
    return [ended, turn(chooser, "long", 5, 9)]


def turns_behind_those(chooser: Chooser) -> list[Sent]:
    """They go on."""
    return [turn(chooser, "ended", 3, 7), turn(chooser, "long", 6, 5)]
