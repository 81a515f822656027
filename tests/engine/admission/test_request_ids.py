"""An abort meets the request that it names and those of its batch, wherever SGLang keeps them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission.request_ids import abort_no_other, check_id


class Living:
    """A request, as far as an abort looks at it."""

    def __init__(self, rid: str) -> None:
        self.rid = rid


def scheduler_of(waiting: list[str], compiling: list[str], running: list[str], chunked: str | None) -> Any:
    return SimpleNamespace(
        waiting_queue=[Living(rid) for rid in waiting],
        grammar_manager=SimpleNamespace(grammar_queue=[Living(rid) for rid in compiling]),
        chunked_req=None if chunked is None else Living(chunked),
        running=[Living(rid) for rid in running],
    )


def aborted_by(scheduler: Any, rid: str, abort_all: bool = False) -> list[str]:
    """Ids of the requests that stock's abort, which asks `startswith`, finds through the hook."""
    scheduler.collect_inflight_reqs = lambda: set(scheduler.running)
    everybody = [*scheduler.waiting_queue, *scheduler.grammar_manager.grammar_queue, *scheduler.running]
    if scheduler.chunked_req is not None:
        everybody.append(scheduler.chunked_req)
    ids = [req.rid for req in everybody]
    found: list[Any] = []

    def stock(scheduler: Any, abort: Any) -> None:
        found.extend(req for req in everybody if abort.abort_all or req.rid.startswith(abort.rid))

    abort_no_other(stock, scheduler, SimpleNamespace(rid=rid, abort_all=abort_all))
    assert [req.rid for req in everybody] == ids
    return sorted(req.rid for req in found)


@pytest.mark.parametrize("rid", ["a", "\x00"])
def test_only_the_one_that_is_named_ends(rid: str) -> None:
    others = [f"{rid}4", f"{rid}{rid}", "b", f"b{rid}", f"{rid}_x", f"{rid}_1x"]
    for place in range(3):
        queues = [list(others), [f"{rid}c"], [f"{rid}d"]]
        queues[place].append(rid)
        scheduler = scheduler_of(queues[0], queues[1], queues[2], chunked=f"{rid}e")
        assert aborted_by(scheduler, rid) == [rid]
    assert aborted_by(scheduler_of(others, [], [], chunked=rid), rid) == [rid]


def test_a_batch_ends_with_the_id_that_its_requests_were_given() -> None:
    scheduler = scheduler_of(["a_0", "a_1_2", "a_", "a_0b"], [], ["a_10"], None)
    assert aborted_by(scheduler, "a") == ["a_0", "a_10", "a_1_2"]


def test_who_aborts_all_aborts_all() -> None:
    assert aborted_by(scheduler_of(["a"], ["b"], ["c"], "d"), "", abort_all=True) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("place", range(4))
def test_an_id_is_one_requests_where_several_processes_give_them(place: int) -> None:
    queues: list[list[str]] = [["b"], ["c"], ["d"], []]
    queues[place].append("a")
    scheduler = scheduler_of(queues[0], queues[1], queues[2], chunked=queues[3][0] if queues[3] else None)
    scheduler.collect_inflight_reqs = lambda: set(scheduler.running)
    several = SimpleNamespace(rid="a", http_worker_ipc="ipc://worker")
    assert "must be no other request's, got 'a'" in str(check_id(scheduler, several))
    assert check_id(scheduler, SimpleNamespace(rid="aa", http_worker_ipc="ipc://worker")) is None
    # A single process has refused it already.
    assert check_id(scheduler, SimpleNamespace(rid="a", http_worker_ipc=None)) is None


def test_an_error_leaves_ids_as_they_were() -> None:
    scheduler = scheduler_of(["ab"], [], [], None)
    scheduler.collect_inflight_reqs = set

    def stock(scheduler: Any, abort: Any) -> None:
        raise KeyError(abort.rid)

    with pytest.raises(KeyError):
        abort_no_other(stock, scheduler, SimpleNamespace(rid="a", abort_all=False))
    assert scheduler.waiting_queue[0].rid == "ab"


class Letters:
    """A tokenizer of one letter per token."""

    is_fast = True

    def batch_decode(self, texts: list[list[int]], **_more: Any) -> list[str]:
        return ["".join(map(chr, ids)) for ids in texts]


def texts_of(batch: list[tuple[str, str, bool]]) -> list[str]:
    """What SGLang's detokenizer makes of a batch of requests: an id, tokens by letters, and whether it ends."""
    from sglang.srt.managers.detokenizer_manager import DetokenizerManager

    manager = object.__new__(DetokenizerManager)
    manager.tokenizer, manager.vocab_size, manager.decode_status = Letters(), None, {}
    manager.disable_tokenizer_batch_decode = False
    ids, texts, ends = zip(*batch, strict=True)
    several = SimpleNamespace(
        rids=ids,
        decoded_texts=[""] * len(ids),
        decode_ids=[[*map(ord, text)] for text in texts],
        read_offsets=[0] * len(ids),
        finished_reasons=[{"type": "length"} if end else None for end in ends],
        no_stop_trim=[False] * len(ids),
        skip_special_tokens=[True] * len(ids),
        spaces_between_special_tokens=[True] * len(ids),
    )
    found: list[str] = manager._decode_batch_token_id_output(several)
    return found


@pytest.mark.sglang
def test_sglangs_detokenizer_makes_one_text_of_two_requests_of_one_id() -> None:
    """What the refusal is for: the second one gets the first one's text before its own, or the process ends."""
    assert texts_of([("a", "xy", False), ("b", "uv", False)]) == ["xy", "uv"]
    assert "uv" not in texts_of([("a", "xy", False), ("a", "uv", False)])
    with pytest.raises(RuntimeError, match="Decode status not found for request a"):
        texts_of([("a", "xy", True), ("a", "uv", False)])
