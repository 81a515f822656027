"""Rules of FlashInfer's modules that its own wrappers cannot break, called without a wrapper."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.device_lane.dense import HEAD_SIZE, HEADS, KV_HEADS, causal, dense, indptr, paged, queries
from tests.device_lane.flashinfer_reference import CAUSAL, CUSTOM, decode_module, merge_state, prefill_module
from tests.device_lane.violations import LaneViolation

PLAN = {
    "qo": indptr([2, 3]),
    "kv": indptr([6, 9]),
    "kv_lens": torch.tensor([6, 9], dtype=torch.int32),
    "max_rows": 5,
    "num_kv_heads": KV_HEADS,
    "page_size": 1,
    "for_graphs": False,
}


def compiled(**changes: Any) -> SimpleNamespace:
    """A module of float32, with no window and no soft cap."""
    key = {"head_size": HEAD_SIZE, "positions": 0} | changes
    size = key["head_size"]
    floats = (torch.float32,) * 3
    return prefill_module("fa2", *floats, torch.int32, size, size, key["positions"], False, False, False)


def plan(module: SimpleNamespace, workspace: torch.Tensor, **changes: Any) -> list[int]:
    """Plan two requests of 2 and 3 rows over 6 and 9 keys."""
    own = PLAN | changes
    shape = (own["max_rows"], 2, HEADS, own["num_kv_heads"], own["page_size"], own["for_graphs"])
    buffers = (torch.empty(0), workspace, torch.empty(0))
    return module.plan(*buffers, own["qo"], own["kv"], own["kv_lens"], *shape, HEAD_SIZE, HEAD_SIZE, False, -1)


def options(mask_mode: int, layout: int, mask: torch.Tensor | None, starts: torch.Tensor | None) -> tuple[Any, ...]:
    """The arguments from the mask's mode to the softmax scale."""
    return (mask_mode, layout, -1, False, mask, starts, None, None, None, None, 0.0, HEAD_SIZE**-0.5)


def run(kind: str = "paged", planned: dict[str, Any] | None = None, **changes: Any) -> torch.Tensor:
    """Plan and run; arguments of the plan and of the run may be changed."""
    batch, workspace = paged([6, 9], 1), torch.zeros(4096, dtype=torch.uint8)
    own: dict[str, Any] = {"module": compiled(), "q": queries(5), "mode": CAUSAL, "layout": 0, "mask": None}
    own |= {"starts": None, "last": torch.ones(2, dtype=torch.int32)} | changes
    info = plan(own["module"], workspace, **(planned or {}))
    out = torch.zeros_like(own["q"])
    front = (torch.empty(0), workspace, info, own["q"])
    back = options(own["mode"], own["layout"], own["mask"], own["starts"])
    if kind == "paged":
        indices = torch.cat([batch.pages[0, :6], batch.pages[1, :9]])
        pools = own.get("pools", (batch.keys, batch.values))
        own["module"].paged_run(*front, *pools, indptr([2, 3]), indptr([6, 9]), indices, own["last"], out, None, *back)
        return out
    keys = [torch.cat([batch.owned(b)[part] for b in range(2)]) for part in range(2)]
    rows = own.get("keys", 15)
    own["module"].ragged_run(*front, *(pool[:rows] for pool in keys), indptr([2, 3]), indptr([6, 9]), out, None, *back)
    return out


@pytest.mark.parametrize("kind", ["paged", "ragged"])
def test_unbroken_calls_equal_dense(kind: str) -> None:
    batch = paged([6, 9], 1)
    parts = [
        dense(rows, *batch.owned(b), causal(len(rows), int(batch.kv_lens[b])))[0]
        for b, rows in enumerate(queries(5).split([2, 3]))
    ]
    torch.testing.assert_close(run(kind), torch.cat(parts), rtol=1e-5, atol=1e-5)


UNREAD = torch.zeros(8, dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["paged", "ragged"])
@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("are laid out as", {"layout": 1}),
        ("a custom mask is read", {"mask": UNREAD}),
        ("has its bits and its indptr", {"mode": CUSTOM, "mask": UNREAD}),
        ("qo_indptr ends at q", {"q": queries(6)}),
        ("head sizes are", {"module": compiled(head_size=4)}),
        ("rotates before attention", {"module": compiled(positions=1)}),
    ],
)
def test_broken_run_is_a_violation(kind: str, rule: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LaneViolation, match=rule):
        run(kind, **changes)


def test_rows_behind_a_graphs_batch_stay_as_they_are() -> None:
    out = run(planned={"max_rows": 6, "for_graphs": True}, q=queries(6))
    assert out[:5].count_nonzero() == 5 * HEADS * HEAD_SIZE
    assert out[5].count_nonzero() == 0


def test_arrays_that_do_not_fit_the_plan_are_a_violation() -> None:
    with pytest.raises(LaneViolation, match="kv_indptr ends within the keys"):
        run("ragged", keys=14)
    with pytest.raises(LaneViolation, match="has an entry for each request"):
        run(last=torch.ones(3, dtype=torch.int32))
    with pytest.raises(LaneViolation, match="KV heads are the plan's"):
        run(planned={"num_kv_heads": 4})


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("kv_lens has 2 entries", {"kv_lens": torch.tensor([6], dtype=torch.int32)}),
        ("rows fit the 4", {"max_rows": 4}),
        ("multiple of KV heads", {"num_kv_heads": 3}),
        ("lengths fill the plan's pages", {"kv_lens": torch.tensor([6, 10], dtype=torch.int32)}),
        ("is monotone", {"kv": torch.tensor([0, 6, 5], dtype=torch.int32)}),
        ("is int32", {"qo": torch.tensor([0, 2, 5])}),
    ],
)
def test_broken_plan_is_a_violation(rule: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LaneViolation, match=rule):
        run(planned=changes)


def test_decode_in_another_layout_is_a_violation() -> None:
    module = decode_module(*(torch.float32,) * 3, torch.int32, HEAD_SIZE, HEAD_SIZE, 0, False, False)
    arguments: list[Any] = [None] * 19
    arguments[11] = 1
    with pytest.raises(LaneViolation, match="are laid out as"):
        module.run(*arguments)


def test_merge_of_states_that_do_not_fit_is_a_violation() -> None:
    state, lse = torch.ones(3, 4, 8), torch.zeros(3, 4)
    out = (torch.empty_like(state), torch.empty_like(lse))
    with pytest.raises(LaneViolation, match="one shape"):
        merge_state(state, lse, state[:2], lse[:2], *out)
    with pytest.raises(LaneViolation, match="one dtype"):
        merge_state(state, lse, state.bfloat16(), lse, *out)
    with pytest.raises(LaneViolation, match="an lse is"):
        merge_state(state, lse, state, lse[:2], *out)


def test_backend_that_the_lane_has_not_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="not trtllm-gen"):
        prefill_module("trtllm-gen")
    with pytest.raises(NotImplementedError, match="no mask mode 3"):
        run(mode=3)
