"""Embeddings for a prompt have the target's width, and a prefill of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission.embedding_prompts import check_embeddings, keep_embeddings_apart

INF = float("inf")


def reason(embeddings: Any) -> str | None:
    return check_embeddings(SimpleNamespace(input_embeds=embeddings), 2)


@pytest.mark.parametrize("embeddings", [None, [[1.0, -2.5]], [[1, 0], [3e38, -3e38]]])
def test_rows_of_the_targets_width_pass(embeddings: Any) -> None:
    assert reason(embeddings) is None


@pytest.mark.parametrize(
    ("embeddings", "named"),
    [
        ([], "got [0]"),
        ([[]], "got [1, 0]"),
        ([[1.0]], "got [1, 1]"),
        ([[1.0, 2.0, 3.0]], "got [1, 3]"),
        ([[[1.0, 2.0]]], "got [1, 1, 2]"),
        ([[1.0, 2.0], [1.0]], "rows of 2 numbers"),
        ([["a", "b"]], "rows of 2 numbers"),
        ([[None, {}]], "rows of 2 numbers"),
        (7, "got []"),
        ([[1.0, INF]], "finite"),
        ([[1.0, float("nan")]], "finite"),
        ([[1.0, 1e39]], "finite"),
        ([[1.0, 10**400]], "rows of 2 numbers"),
    ],
)
def test_others_are_named(embeddings: Any, named: str) -> None:
    assert named in str(reason(embeddings))


@pytest.mark.parametrize(
    ("chosen", "asked", "is_added"),
    [
        ([], None, True),
        ([], [[1.0]], True),
        ([None], None, True),
        ([[[1.0]]], [[2.0]], True),
        ([None], [[1.0]], False),
        ([[[1.0]]], None, False),
    ],
)
def test_a_prefill_is_of_one_kind(chosen: list[Any], asked: Any, is_added: bool) -> None:
    from sglang.srt.managers.schedule_policy import AddReqResult

    added: list[Any] = []
    adder = SimpleNamespace(can_run_list=[SimpleNamespace(input_embeds=one) for one in chosen])
    req = SimpleNamespace(input_embeds=asked)

    def original(adder: Any, req: Any, has_chunked_req: bool, *, truncation_align_size: int | None) -> Any:
        added.append(req)
        return AddReqResult.CONTINUE

    verdict = keep_embeddings_apart(original, adder, req, False, truncation_align_size=None)
    assert verdict is (AddReqResult.CONTINUE if is_added else AddReqResult.OTHER)
    assert added == [req] * is_added
