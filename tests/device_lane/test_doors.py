"""A door is one node: a recorder sees the call and none of the operators inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.device_lane import doors
from tests.device_lane.violations import LaneViolation, require


@doors.kernel_door
def doubled_first(values: torch.Tensor, count: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Reads a length on the host, as a kernel would on the device."""
    out = torch.zeros_like(values)
    length = int(count.item())
    out[:length] = values[:length] * factor
    return out


class Seen(TorchDispatchMode):
    """Every operator that is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls() -> Iterator[list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]]]:
    """What the hook was told, in order."""
    told: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
    before, doors.on_call = doors.on_call, lambda *call: told.append(call)
    yield told
    doors.on_call = before


def test_door_hides_its_operators_from_a_recorder() -> None:
    with Seen() as seen:
        doubled_first(torch.ones(3), torch.tensor(2))
        torch.ones(1).add(1)
    # The operators of the arguments and of the line behind the door, and nothing of the door's own.
    assert not [name for name in seen.names if "item" in name or "mul" in name or "local_scalar" in name]
    assert [name for name in seen.names if "add" in name]


def test_replayed_door_reads_the_tensors_of_now_and_the_host_values_of_then(calls: list[Any]) -> None:
    values, count = torch.ones(3), torch.tensor(1)
    result = doubled_first(values, count, factor=3)
    (told,) = calls
    fn, args, kwargs, seen_result = told
    assert seen_result is result
    assert kwargs == {"factor": 3}
    count.fill_(2)
    with Seen() as seen:
        result.copy_(fn(*args, **kwargs))
    assert result.tolist() == [3.0, 3.0, 0.0]
    assert seen.names == ["aten.copy_.default"]
    assert len(calls) == 1


def test_door_inside_a_door_is_not_announced(calls: list[Any]) -> None:
    @doors.kernel_door
    def outer(values: torch.Tensor) -> torch.Tensor:
        assert doors.inside_door()
        return doubled_first(values, torch.tensor(1))

    outer(torch.ones(2))
    assert [told[0].__name__ for told in calls] == ["outer"]
    assert not doors.inside_door()


def test_violation_inside_a_door_leaves_the_door() -> None:
    @doors.kernel_door
    def broken() -> None:
        require(False, "lengths agree", [1, 2])

    with pytest.raises(LaneViolation, match=r"lengths agree; found: \[1, 2\]"):
        broken()
    assert not doors.inside_door()
