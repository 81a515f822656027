"""Groups for weights: what no group can be made of is a 400, in the process that tokenizes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.entry import weight_groups
from ddtree_sglang.engine.entry.weight_groups import check_received, check_receivers, check_senders

RECEIVERS = {"group_name": "g", "backend": "nccl", "rank_offset": 1, "world_size": 3, "master_port": 29500}
SENDERS = {"group_name": "g", "backend": "nccl", "ports": "29500,29501"}
RECEIVED = {"names": ["a"], "dtypes": ["bfloat16"], "shapes": [[2, 3]], "group_name": "g"}


async def sent(manager: Any, obj: Any, *args: Any) -> str:
    return "sent"


@pytest.fixture(autouse=True)
def _two_ranks_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_groups, "is_active", lambda: False)
    monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: SimpleNamespace(tp_size=2))


@pytest.mark.parametrize(
    ("hook", "body"),
    [
        (check_receivers, RECEIVERS),
        (check_receivers, {**RECEIVERS, "rank_offset": 0, "world_size": 2, "backend": "cpu:gloo,cuda:nccl"}),
        (check_senders, SENDERS),
        (check_senders, {"group_name": "g", "ports": "1, 65535"}),
        (check_received, RECEIVED),
        (check_received, {**RECEIVED, "shapes": [[]]}),
        (check_received, {**RECEIVED, "names": [], "dtypes": [], "shapes": []}),
    ],
)
def test_what_a_group_can_be_made_of_is_sent(hook: Any, body: dict[str, Any]) -> None:
    assert asyncio.run(hook(sent, None, SimpleNamespace(**body))) == "sent"


@pytest.mark.parametrize(
    ("hook", "body", "named"),
    [
        (check_receivers, {**RECEIVERS, "group_name": ""}, "group_name must not be empty"),
        (check_receivers, {**RECEIVERS, "backend": "carrier"}, "backend must be among"),
        (check_receivers, {**RECEIVERS, "world_size": 2}, "rank_offset 1 and world_size 2"),
        (check_receivers, {**RECEIVERS, "rank_offset": -1}, "rank_offset -1"),
        (check_receivers, {**RECEIVERS, "master_port": 0}, "master_port must be from 1 to 65535, got 0"),
        (check_receivers, {**RECEIVERS, "master_port": 70000}, "got 70000"),
        (check_senders, {**SENDERS, "group_name": ""}, "group_name must not be empty"),
        (check_senders, {**SENDERS, "ports": "29500"}, "one for each of 2 tensor-parallel ranks, got '29500'"),
        (check_senders, {**SENDERS, "ports": "29500,x"}, "each of ports must be"),
        (check_received, {**RECEIVED, "shapes": []}, "equally many, got 1, 1 and 0"),
        (check_received, {**RECEIVED, "dtypes": ["Tensor"]}, "torch's, such as bfloat16, got 'Tensor'"),
        (check_received, {**RECEIVED, "dtypes": ["no such"]}, "got 'no such'"),
        (check_received, {**RECEIVED, "shapes": [[2, -1]]}, r"no negative size, got \[2, -1\]"),
    ],
)
def test_what_no_group_can_be_made_of_is_not_sent(hook: Any, body: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        hook(sent, None, SimpleNamespace(**body))


@pytest.mark.parametrize(("hook", "body"), [(check_receivers, RECEIVERS), (check_senders, SENDERS)])
def test_a_cpu_joins_no_group(hook: Any, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_groups, "is_active", lambda: True)
    with pytest.raises(ValueError, match="takes no new weights"):
        hook(sent, None, SimpleNamespace(**body))
