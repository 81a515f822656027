"""What rounds took, by events on a made-up device that the host runs ahead of, and by the host's clock."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from ddtree_sglang.engine.stages.round_records import Decision
from ddtree_sglang.engine.stages.round_times import MOST_AWAITED, DeviceTimes, LaunchedRound, RoundTimes, TimedRound
from tests.engine.stages.overlapped_rounds import DeviceEvent, Overlapped, timed_by_events, timed_by_the_host
from tests.engine.stages.served_rounds import running_request

pytestmark = pytest.mark.sglang

WIDTHS = (1, 2, 3, 5, 9, 17)
PLAIN, TREE = (LaunchedRound(1, 300.0, (1, 0), Decision(nodes, 1.0, 0.0, is_try=False)) for nodes in (1, 17))


def device_server(launching: float, scheduling: float = 0.0) -> tuple[Overlapped, DeviceTimes]:
    server = timed_by_events(
        WIDTHS, seconds_of=lambda _, nodes: nodes / 1000, launching=launching, scheduling=scheduling, noise=0.0
    )
    assert isinstance(server.budget.times, DeviceTimes)
    return server, server.budget.times


def play(
    server: Overlapped, times: RoundTimes, rounds: list[LaunchedRound], launching_of_trees: float | None = None
) -> list[TimedRound]:
    """Rounds in turn; those whose time became known."""
    known, launching = [], server.launching
    for one in rounds:
        known += times.begin()[0]
        server.launching = launching if one is PLAIN or launching_of_trees is None else launching_of_trees
        seconds = server.seconds_of(one.batch_size, one.decision.num_nodes)
        server.launch(seconds)
        times.launched(one)
        server.finish(seconds)
    return known


@pytest.mark.parametrize("launching", [0.0005, 0.002, 0.004, 0.03])
def test_a_round_takes_as_long_as_the_slower_one_of_host_and_device_takes_for_it(launching: float) -> None:
    """One plain round of 1 ms among trees of 17."""
    server, times = device_server(launching, scheduling=0.0)
    known = play(server, times, 6 * [TREE] + [PLAIN] + 5 * [TREE])
    # The first one of all lies behind something else.
    assert [one.round for one in known] == (5 * [TREE] + [PLAIN] + 5 * [TREE])[: len(known)]
    assert len(known) >= 9
    for one in known:
        assert one.seconds == pytest.approx(max(launching, one.round.decision.num_nodes / 1000))
        assert 1 <= one.rounds_ago <= 2


@pytest.mark.parametrize("launching", [0.0005, 0.004])
def test_around_a_prefill_rounds_take_what_they_take(launching: float) -> None:
    """Neither the prefill nor what the host does with its result is a round's time."""
    server, times = device_server(launching)
    play(server, times, 3 * [PLAIN])
    server.prefill(0.2, work=0.05)
    known = play(server, times, 6 * [PLAIN])
    assert len(known) >= 4
    assert [one.seconds for one in known] == pytest.approx(len(known) * [max(0.001, launching)])


@pytest.mark.parametrize(("timed_by", "is_right"), [(timed_by_events, True), (timed_by_the_host, False)])
def test_a_dear_round_is_its_own_where_the_host_is_slower(timed_by: Any, is_right: bool) -> None:
    """By the host's clock, which takes the device for the slower one, it is the round's before it."""
    server = timed_by(WIDTHS, seconds_of=lambda _, nodes: nodes / 1000, launching=0.02, noise=0.0)
    known = play(server, server.budget.times, 6 * [PLAIN] + [TREE] + 6 * [PLAIN], launching_of_trees=0.05)
    (dear,) = [one.round for one in known if one.seconds > 0.03]
    assert (dear is TREE) == is_right


def test_a_launch_that_waited_for_the_device_says_nothing_of_its_round() -> None:
    """As where a queue of launches is full, or a kernel is loaded."""
    server, times = device_server(0.0005)
    play(server, times, 6 * [PLAIN])
    times.begin()
    server.launch(0.5)
    times.launched(TREE)
    server.finish(0.5)
    times.begin()
    server.now += 0.4
    server.launch(0.001)
    times.launched(PLAIN)
    server.finish(0.001)
    first, second, *_ = play(server, times, 4 * [TREE])
    assert (first.round, second.round) == (TREE, PLAIN)
    assert (first.seconds, second.seconds) == pytest.approx((0.5, 0.001))


def test_the_round_before_something_else_is_no_sample_and_the_pause_is_told() -> None:
    server, times = device_server(0.002)
    assert len(play(server, times, 4 * [TREE])) == 1
    server.now += 5.0
    times.interrupt()
    timed, rested = times.begin()
    assert [one.seconds for one in timed] == pytest.approx([0.017]), "the third; nobody knows when the fourth ended"
    assert rested is not None
    assert rested > 5.0
    server.now += 5.0
    assert times.begin() == ([], None)


def test_a_round_that_was_never_launched_and_one_that_never_ends_are_no_samples() -> None:
    server, times = device_server(0.002)
    play(server, times, [TREE])
    times.begin()
    server.now += 1.0
    assert play(server, times, 3 * [TREE])[-1].seconds < 0.1
    server.device_free = float("inf")
    for _ in range(5 * MOST_AWAITED):
        times.begin()
        times.launched(PLAIN)
    assert len(times._starts) == MOST_AWAITED


def test_where_the_host_waits_in_a_round_its_launching_says_nothing() -> None:
    server = Overlapped(timed_by_events(WIDTHS, seconds_of=lambda *_: 0.0).budget, lambda *_: 0.001, launching=0.004)
    times = DeviceTimes(lambda: DeviceEvent(server), lambda: server.now, host_waits=True)
    times.begin()
    server.device_free = server.now + 1.0  # of what lies before
    times.begin()
    server.launch(0.001)
    times.launched(PLAIN)
    times.begin()
    server.now += 2.0
    (one,), _ = times.begin()
    assert one.seconds == pytest.approx(0.001)


def of_fixed(nodes: int, **options: Any) -> float:
    """Tokens per second of so many nodes in every round."""
    server = timed_by_the_host((1, nodes) if nodes > 1 else (1,), **options)
    reqs = [running_request() for _ in range(8)]
    for _ in range(200):
        server.budget.begin_fixed(reqs, [nodes] * 8, 300.0, nodes)
        seconds = server.seconds_of(8, nodes)
        if nodes > 1:
            server.tokens += int(server.accepted(server.drafted(8, nodes)).commit_lens.sum())
        else:
            server.tokens += 8
        server.launch(seconds)
        server.budget.end(None)
        server.finish(seconds)
    return server.rate


HOST_IS_SLOWER = {"launching": 0.004, "scheduling": 0.001}


def quick(requests: int, nodes: int) -> float:
    """A small model on a large GPU: no round takes longer than its launch."""
    return 0.0015 + (0.0005 if nodes > 1 else 0.0) + 0.00002 * nodes * requests


def mixed(requests: int, nodes: int) -> float:
    """Plain rounds wait for the host, trees for the device."""
    return 0.002 if nodes == 1 else 0.004 + 0.0003 * nodes * requests


def heavy(requests: int, nodes: int) -> float:
    """All rounds wait for the device."""
    return 0.010 + (0.003 if nodes > 1 else 0.0) + 0.0001 * nodes * requests


@pytest.mark.parametrize("seconds_of", [quick, mixed, heavy])
def test_a_controller_that_asks_the_device_is_near_the_best_of_fixed_widths(seconds_of: Any) -> None:
    options = {**HOST_IS_SLOWER, "seconds_of": seconds_of}
    best = max(of_fixed(nodes, **options) for nodes in WIDTHS)
    rates = []
    for seed in range(4):
        server = timed_by_events(WIDTHS, seed=seed, **options)
        reqs = [running_request() for _ in range(8)]
        server.rounds(300, reqs)
        server.tokens, server.started = 0, server.now
        rates.append(server.rounds(300, reqs).rate / best)
    assert fmean(rates) > 0.95
