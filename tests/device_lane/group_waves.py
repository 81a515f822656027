"""Waves for servers under DP attention: which of two groups attends for a request is part of it.

Groups have unequal loads, and one is idle while the other one decodes.
"""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import more_than_the_pool
from tests.device_lane.request_waves import of_every_kind
from tests.device_lane.scenes import WAVE_APART_S, Chooser, Sent, Wave


def unequal_groups(chooser: Chooser) -> list[Sent]:
    """Three requests in the first group, which end apart, and one in the second, at once: batches are padded."""
    first = [Sent(chooser.find(length, tokens), group=0) for length, tokens in ((4, 9), (6, 12), (11, 26))]
    return [*first, Sent(chooser.find(5, 20), group=1)]


def the_second_group_alone(chooser: Chooser) -> list[Sent]:
    """Two requests, while the first group is idle from the first round to the last."""
    return [Sent(chooser.find(length, tokens), group=1) for length, tokens in ((7, 9), (4, 5))]


def ten_in_two_groups(chooser: Chooser) -> list[Sent]:
    """Six requests in one group and four in the other, which end one after the other."""
    return [Sent(chooser.find(4 + index, 5 + index), check="tokens", group=int(index % 5 > 2)) for index in range(10)]


def every_kind_in_groups(chooser: Chooser) -> list[Sent]:
    """Requests that ask for different things, in both groups; one of them is aborted in the middle."""
    sent = in_both_groups(of_every_kind)(chooser)
    cut = Sent(chooser.find(5, 40), check="prefix", aborted=True, group=1)
    return [*sent, cut]


def mixed_in_one_group(chooser: Chooser) -> list[Sent]:
    """The first group's requests take part in each other's chunks, while one of the second decodes; then it has a
    prompt of several chunks, too."""
    sizes = ((4, 20, 0), (21, 6, 0), (37, 9, 0), (6, 24, 1), (30, 5, 1))
    asked = [(chooser.find(length, tokens, anywhere=True), group) for length, tokens, group in sizes]
    sent = [Sent(one, check="steps", group=group) for one, group in asked]
    return [*sent[:-1], replace(sent[-1], after_s=WAVE_APART_S / 3)]


def in_group(group: int, wave: Wave) -> Wave:
    """All its requests in this group."""

    def placed(chooser: Chooser) -> list[Sent]:
        return [replace(one, group=group) for one in wave(chooser)]

    return placed


def in_both_groups(wave: Wave) -> Wave:
    """Its requests in turn in the first group and in the second."""

    def shared(chooser: Chooser) -> list[Sent]:
        return [replace(one, group=index % 2) for index, one in enumerate(wave(chooser))]

    return shared


def more_than_a_groups_pool(chooser: Chooser) -> list[Sent]:
    """Requests that do not fit their group's pool together, so that one is retracted, beside one in the other group."""
    sent = [replace(one, check="tokens", group=0) for one in more_than_the_pool(chooser)]
    return [*sent, Sent(chooser.find(5, 16), check="tokens", group=1)]
