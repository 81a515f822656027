"""What only a server without a refusal is asked: requests that it would answer with a 400."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

from deploy.local.client import ClientError, post
from deploy.local.server_process import free_port
from tests.device_lane.asking import LaneServer
from tests.device_lane.context_waves import TRACKED_LEN, turn
from tests.device_lane.new_weights import NORM
from tests.device_lane.pairs import TinyPair
from tests.device_lane.references import Asked
from tests.device_lane.scenes import Chooser, Sent
from tests.device_lane.split import SplitServer

PATIENCE_S = 60.0
"""What a request is waited for that nobody answers; others take a few seconds."""
_OF_ONE_S = 20.0
"""The same of a server that has nothing else to do, whose answers take one."""


Ask = Callable[[LaneServer, TinyPair], None]


def asking(sampling: dict[str, Any] | None = None, **fields: Any) -> Ask:
    """Before the scene's own requests, one with these fields and parameters of sampling."""

    def before(server: LaneServer, _pair: TinyPair) -> None:
        body = Asked((5, 6, 7)).body()
        body["sampling_params"] |= sampling or {}
        post(server.url, "/generate", {**body, **fields}, timeout_s=PATIENCE_S)

    return before


def refused_one_after_the_other(*asks: Ask) -> Ask:
    """All of these, each of which has to be refused; then one that is answered.

    Raises:
        ClientError: with what each was refused by; or the server does not answer any more.
    """

    def before(server: LaneServer, pair: TinyPair) -> None:
        found = []
        for ask in asks:
            try:
                ask(server, pair)
            except ClientError as error:
                found.append(str(error))
        post(server.url, "/generate", Asked((5, 6, 7)).body(), timeout_s=PATIENCE_S)
        raise ClientError("\n".join(found))

    return before


def asking_for_less_than_tokens(server: LaneServer, _pair: TinyPair) -> None:
    """One and a half, of an endpoint that has no schema of what it takes."""
    body = {"model": "lane", "prompt": "w5 w6", "stream": False, "options": {"num_predict": 1.5}}
    post(server.url, "/api/generate", body, timeout_s=PATIENCE_S)


def long_side_by_side(chooser: Chooser) -> list[Sent]:
    """Four that are all there for most of their rounds, whenever each of them arrives, so that these are narrow ones.

    The first of a batch is right at any width; what is wrong with the others shows in a token some rounds later.
    """
    return [Sent(chooser.find(length, 20), check="tokens") for length in (5, 6, 4, 7)]


def asking_as_a_probe(server: LaneServer, _pair: TinyPair) -> None:
    """By a name that SGLang's probes have, beside one that keeps the scheduler busy."""
    body = Asked((5, 6, 7), 60).body()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(post, server.url, "/generate", body, PATIENCE_S)
        time.sleep(1.0)
        post(server.url, "/generate", {**body, "rid": "HEALTH_CHECK_of_mine"}, timeout_s=_OF_ONE_S)
        other.result()


def sleeping_without_end(server: LaneServer, pair: TinyPair) -> None:
    """Before each forward, for longer than a clock has."""
    post(server.url, "/slow_down", {"forward_sleep_time": 1e12}, timeout_s=PATIENCE_S)
    asking()(server, pair)


def receiving_weights_without_shapes(server: LaneServer, _pair: TinyPair) -> None:
    """In a group of this server alone, a weight of whose size nothing is said.

    Raises:
        ClientError: it is refused, or is said to have come.
    """
    group = {"master_address": "127.0.0.1", "master_port": free_port(), "rank_offset": 0, "world_size": 1}
    post(server.url, "/init_weights_update_group", {**group, "group_name": "alone", "backend": "gloo"})
    post(server.url, "/begin_weight_update", {})
    weight = {"names": [NORM], "dtypes": ["float32"], "shapes": [], "group_name": "alone"}
    try:
        answer = post(server.url, "/update_weights_from_distributed", weight, timeout_s=PATIENCE_S)
    finally:
        post(server.url, "/end_weight_update", {})
    raise ClientError(f"of a weight that was not sent the server says {answer}")


def joining_a_group_that_is_full(server: LaneServer, _pair: TinyPair) -> None:
    """As a rank that it has no place for."""
    group = {"master_address": "127.0.0.1", "master_port": free_port(), "rank_offset": 2, "world_size": 2}
    post(server.url, "/init_weights_update_group", {**group, "backend": "gloo"}, timeout_s=_OF_ONE_S)


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
    meeting = split.meeting()
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
