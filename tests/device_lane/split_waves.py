"""Waves whose answers end on the server that prefills them, or begin there in ways that rounds do not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

from deploy.local.client import ClientError, post
from tests.device_lane.asking import LaneServer
from tests.device_lane.context_waves import TRACKED_LEN
from tests.device_lane.pairs import EOS_TOKEN, TinyPair
from tests.device_lane.references import Asked
from tests.device_lane.scenes import WAVE_APART_S, Chooser, Sent, Wave
from tests.device_lane.split import SplitServer


def over_with_the_first_token(chooser: Chooser) -> list[Sent]:
    """Answers of one token, by the limit, a stop token and the end token, one of them a stream, beside longer ones."""

    def stopped(asked: Asked) -> Asked | None:
        first, *_ = chooser.reference.expect(asked).output_ids
        return None if first == EOS_TOKEN else replace(asked, stop_token_ids=(first,), ignore_eos=False)

    def ended(asked: Asked) -> Asked | None:
        asked = replace(asked, ignore_eos=False)
        return asked if chooser.reference.expect(asked).output_ids == (EOS_TOKEN,) else None

    return [
        Sent(chooser.find(6, 9)),
        Sent(chooser.find(5, 1), logprobs=True),
        Sent(chooser.find(7, 6, stopped), streamed=True),
        Sent(chooser.find(4, 6, ended)),
        Sent(chooser.find(8, 2), after_s=WAVE_APART_S / 2),
        # The last accepted tokens lie behind the limit.
        Sent(chooser.limited_inside_a_path(6, budget=2), after_s=WAVE_APART_S / 2),
    ]


def two_prompts_of(length: int) -> Wave:
    """One in each group, of so many tokens and of one more."""

    def begin(chooser: Chooser) -> list[Sent]:
        chooser.begun = [chooser.find(length + group, 6) for group in (0, 1)]
        return [Sent(one, group=group) for group, one in enumerate(chooser.begun)]

    return begin


def behind_both_prompts(chooser: Chooser) -> list[Sent]:
    """One in each group that begins with the prompt that it prefilled in the wave before.

    Of that text the prefilling server has no more. Of a longer prompt, state by state, it has as much as is tracked.
    """

    def behind(one: Asked) -> Asked:
        return chooser.find(3, 6, lambda asked: replace(asked, prompt=(*one.prompt, *asked.prompt)))

    return [
        Sent(behind(one), cached=min(len(one.prompt), TRACKED_LEN), group=group)
        for group, one in enumerate(chooser.begun)
    ]


def thinks(chooser: Chooser) -> list[Sent]:
    """Thoughts that the server ends, in the first round and in a later one, beside a grammar and a plain request."""
    return [
        Sent(chooser.changed_inside_a_path(8, 8, _thinking(3)), logprobs=True),
        Sent(chooser.changed_inside_a_path(9, 14, _thinking(6))),
        Sent(chooser.find(5, 10, lambda asked: replace(asked, pairs=True))),
        Sent(chooser.find(6, 7)),
    ]


def thinks_and_is_restored(chooser: Chooser) -> list[Sent]:
    """More than the pool has room for, all of whose thoughts end while one of them is retracted or soon after."""
    return [Sent(chooser.find(length, 14, _thinking(8), anywhere=True)) for length in (10, 9, 11, 12)]


def _thinking(num_tokens: int) -> Callable[[Asked], Asked]:
    return lambda asked: replace(asked, thoughts=num_tokens)


def drawn_and_streamed(chooser: Chooser) -> list[Sent]:
    """Draws that no seed fixes, one with what its tokens were drawn from, beside a stream."""
    return [
        Sent(chooser.drawn(7, 14, temperature=4.0, top_k=8), check="law", supports=True),
        Sent(chooser.find(6, 9), logprobs=True, streamed=True),
        Sent(chooser.drawn(9, 14, temperature=2.5, top_k=6), check="law"),
    ]


def refuse_several_answers(server: LaneServer, _pair: TinyPair) -> None:
    """They would meet in one room, and wait there for ever.

    Raises:
        ClientError: they are not refused so.
    """
    for one in (server, cast(SplitServer, server).prefilling):
        body = Asked((5, 6, 7)).body()
        body["sampling_params"]["n"] = 2
        meeting = {"bootstrap_host": "127.0.0.1", "bootstrap_port": 1, "bootstrap_room": 1}
        try:
            answer = post(one.url, "/generate", {**body, **meeting}, timeout_s=REFUSED_WITHIN_S)
        except ClientError as error:
            if "n must be 1" not in str(error):
                raise
        else:
            raise ClientError(f"two answers to one prompt must be refused, got {answer}")


def an_abort_before_the_keys_is_an_error(server: LaneServer, _pair: TinyPair) -> None:
    """Without a prefill a request waits for its keys; aborted there, it is answered by SGLang with a 500.

    So is plain decoding's (disaggregation/decode.py, `KVPoll.Failed` in both queues): a client that aborts cannot tell
    this from a lost transfer but by the message.

    Raises:
        ClientError: it is answered in another way.
    """
    body = {**Asked((5, 6, 7), 9).body(), **cast(SplitServer, server).meeting(), "rid": "not prefilled"}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server.url, "/generate", body, REFUSED_WITHIN_S)
        while not answer.done():
            time.sleep(0.5)
            post(server.url, "/abort_request", {"rid": body["rid"]})
    error = answer.exception()
    if error is None or not re.search(r"answered 500: .*Aborted by AbortReq", str(error)):
        raise ClientError(f"aborted before its keys came, it must end in a 500 that says so, got {error}") from error


REFUSED_WITHIN_S = 30.0
