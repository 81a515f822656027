"""A wave of requests with penalties and minimum lengths."""

from __future__ import annotations

from tests.core.plain_penalties import Asked as Penalties
from tests.device_lane.scenes import WAVE_APART_S, Chooser, Sent


def penalized(chooser: Chooser) -> list[Sent]:
    """All penalties beside none; one ends and one joins while others run; one goes through the sampler."""
    return [
        Sent(chooser.penalized(4, 12, Penalties(0.6, 0.4, 1.3, 10)), logprobs=True),
        Sent(chooser.penalized(6, 6, Penalties(frequency=0.8))),
        Sent(chooser.find(5, 10)),
        Sent(chooser.penalized(5, 8, Penalties(presence=0.9), top_k=1), logprobs=True),
        Sent(chooser.penalized(7, 9, Penalties(-0.3, 0.2, 1.2)), after_s=WAVE_APART_S),
    ]
