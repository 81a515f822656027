"""Two seconds after a stream, SGLang ends what is left of it, and nothing else that has its id."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.entry.ended_streams import abort_own_alone

pytestmark = pytest.mark.sglang


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_seconds: float) -> None:
        return None

    monkeypatch.setattr(asyncio, "sleep", at_once)


def asked(rid: str | list[str], prompts: int = 1) -> Any:
    """A request as SGLang has read it, of one prompt or of several."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    ids: Any = [5, 6] if prompts == 1 else [[5, 6]] * prompts
    request = GenerateReqInput(input_ids=ids, rid=rid, stream=True)
    request.normalize_batch_and_arguments()
    return request


def manager_of(*living: Any) -> Any:
    """A tokenizer manager that has these requests; an abort leaves the id in `aborted`."""
    aborted: list[str] = []
    states = {one.rid: SimpleNamespace(obj=one) for one in living}
    return SimpleNamespace(rid_to_state=states, abort_request=aborted.append, aborted=aborted)


def stock() -> Callable[..., Any]:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    # Another test of this process may have installed the hooks.
    task: Callable[..., Any] = inspect.unwrap(TokenizerManager.create_abort_task)
    return task


def ended_behind(obj: Any, manager: Any) -> list[str]:
    asyncio.run(abort_own_alone(stock(), manager, obj)())
    return list(manager.aborted)


def test_what_a_client_left_is_ended() -> None:
    left = asked("a")
    assert ended_behind(left, manager_of(left, asked("b"))) == ["a"]


def test_a_stream_that_has_ended_ends_nothing() -> None:
    assert ended_behind(asked("a"), manager_of(asked("b"))) == []


def test_another_request_of_its_id_goes_on() -> None:
    refused, living = asked("a"), asked("a")
    assert ended_behind(refused, manager_of(living)) == []
    manager = manager_of(living)
    asyncio.run(stock()(manager, refused)())
    assert manager.aborted == ["a"], "SGLang asks for no owner any longer"


def test_of_a_batch_its_parts_are_ended() -> None:
    batch = asked(["a", "b"], prompts=2)
    assert ended_behind(batch, manager_of(batch[0], batch[1], asked("c"))) == ["a", "b"]
    again = asked(["a", "b"], prompts=2)
    assert ended_behind(again, manager_of(batch[0], again[1])) == ["b"]
