"""Which group of a prefilling server has a request: its room says so, as SGLang reads it."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.device_lane.split import GROUPS, SplitServer


@pytest.fixture
def server() -> SplitServer:
    """None that runs: who asks it meets somewhere all the same."""
    nobody: Any = None
    return SplitServer(nobody, Path(), nobody, 7, itertools.count(1))


@pytest.mark.parametrize("groups", [(0, 0, 1, 1, 0), (None, None, None), (1, None, 1, 0, None)])
def test_a_room_leads_to_the_group_that_is_asked_for(
    server: SplitServer, groups: tuple[int | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.managers import data_parallel_controller
    from sglang.srt.managers.data_parallel_controller import DataParallelController

    chosen: list[int] = []
    monkeypatch.setattr(data_parallel_controller, "sock_send", lambda worker, _request: chosen.append(worker))
    controller = SimpleNamespace(workers=[*range(GROUPS)], maybe_external_dp_rank_routing=lambda _request: False)
    meetings = [server.meeting(group) for group in groups]
    for meeting in meetings:
        request: Any = SimpleNamespace(bootstrap_room=meeting["bootstrap_room"])
        DataParallelController.follow_bootstrap_room_scheduler(controller, request)
    assert len({meeting["bootstrap_room"] for meeting in meetings}) == len(groups)
    assert all(group in (None, one) for group, one in zip(groups, chosen, strict=True))


def test_of_two_requests_without_a_group_the_other_groups_cache_is_asked(server: SplitServer) -> None:
    first, second = (server.meeting()["bootstrap_room"] % GROUPS for _ in range(2))
    assert first != second
