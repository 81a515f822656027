"""Waves for servers under DP attention: which of two groups attends for a request is part of it.

Groups have unequal loads, and each is idle at a time when the other one decodes.
"""

from __future__ import annotations

from tests.device_lane.scenes import WAVE_APART_S, Chooser, Sent


def unequal_groups(chooser: Chooser) -> list[Sent]:
    """Three requests in the first group, which end apart; one in the second, which comes later and stays longer."""
    first = [Sent(chooser.find(length, tokens), group=0) for length, tokens in ((4, 9), (6, 12), (11, 14))]
    return [*first, Sent(chooser.find(5, 20), group=1, after_s=WAVE_APART_S / 2)]
