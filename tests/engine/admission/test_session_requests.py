"""A request that begins its session anew finds it empty; SGLang's own session, with the hook before it."""

from __future__ import annotations

import inspect
from array import array
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission.session_requests import clear_before_replacing


class Made:
    """What a session makes of a request, in the place of SGLang's `Req`."""

    def __init__(self, rid: str, origin_input_ids: Any, **fields: Any) -> None:
        self.rid, self.origin_input_ids = rid, origin_input_ids
        self.finished_reason = self.to_finish = self.multimodal_inputs = None
        self.output_ids: Any = array("q")
        self.sampling_params = SimpleNamespace(max_new_tokens=1)
        self.origin_input_ids_unpadded = origin_input_ids

    def set_finish_with_abort(self, message: str) -> None:
        self.finished_reason = message

    def finished(self) -> bool:
        return self.finished_reason is not None

    def inherit_mm_token_counts(self, other: Any) -> None: ...


class Asked:
    """A tokenized request of a session; whatever else is read of it is None."""

    def __init__(self, own_rid: str, **session: Any) -> None:
        from sglang.srt.managers.io_struct import SessionParams

        self.rid, self.input_ids = own_rid, array("q", [1, 2])
        self.session_params = SessionParams(id="s", **session)

    def __getattr__(self, name: str) -> None:
        return None


def ask(session: Any, own_rid: str, has_hook: bool = True, **fields: Any) -> Any:
    """What stock's `create_req` makes, whether another test has installed the hook in this process or not."""
    asked = Asked(own_rid, **fields)
    if has_hook:
        clear_before_replacing(session, asked, None, 10)
    return inspect.unwrap(type(session).create_req)(session, asked, None, 10, req_factory=Made)


def make_session(streaming: bool = False) -> Any:
    from sglang.srt.session.session_controller import Session

    return Session(1000, "s", streaming=streaming)


def test_stock_raises_in_the_scheduler() -> None:
    session = make_session()
    ask(session, "a")
    with pytest.raises(RuntimeError, match="changed size during iteration"):
        ask(session, "b", has_hook=False, replace=True)


def test_a_session_that_is_begun_anew_ends_its_requests_and_has_the_new_one_alone() -> None:
    session = make_session()
    first = ask(session, "a")
    first.finished_reason = "length"
    second = ask(session, "b", rid="a")
    third = ask(session, "c", replace=True)
    assert list(session.req_nodes) == ["c"]
    assert (first.to_finish, second.to_finish is not None, third.to_finish) == (None, True, None)
    assert not third.finished()
    ask(session, "d", replace=True)
    assert list(session.req_nodes) == ["d"]


@pytest.mark.parametrize("fields", [{}, {"replace": False}, {"replace": True, "rid": "a"}])
def test_other_requests_find_the_session_as_it_was(fields: dict[str, Any]) -> None:
    session = make_session()
    ask(session, "a").finished_reason = "length"
    ask(session, "b", **fields)
    assert sorted(session.req_nodes) == ["a", "b"]


def test_a_streaming_session_refuses_by_itself() -> None:
    session = make_session(streaming=True)
    session.finish_req = None
    ask(session, "a")
    session._inflight = False
    session.req_nodes["a"] = SimpleNamespace(req=None)
    assert "do not support replace" in ask(session, "b", replace=True).finished_reason
    assert list(session.req_nodes) == ["a"]
