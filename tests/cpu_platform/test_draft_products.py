"""A drafter's products in bfloat16: near the plain ones, measured before they are taken, and never the target's."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ddtree_sglang.cpu_platform import dense_linear, draft_products
from ddtree_sglang.cpu_platform.names import DRAFTS_ENV
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.cpu_platform.test_dense_linear import Toy

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor multiplies no bfloat16"
    ),
]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Every weight is worth a look, and what is measured is given: seconds of the plain product, then the reduced."""
    given = SimpleNamespace(seconds=[2.0, 1.0], is_one_rank=True)

    def seconds(*forms: Any) -> list[float]:
        for form in forms:
            form()
        return list(given.seconds)

    monkeypatch.setattr(draft_products, "least_seconds", seconds)
    monkeypatch.setattr(draft_products, "LEAST_ELEMENTS", 1)
    monkeypatch.delenv(DRAFTS_ENV)
    monkeypatch.setattr(dense_linear, "_is_one_rank", lambda: given.is_one_rank)
    return given


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_a_reduced_product_is_near(rows: int, with_bias: bool) -> None:
    weight, x = torch.randn(96, 48), torch.randn(rows, 48)
    bias = torch.randn(96) if with_bias else None
    found = draft_products.reduced_linear(x, dense_linear.pack(weight.bfloat16()), bias)
    expected = nn.functional.linear(x, weight, bias)
    assert found.dtype is torch.float32
    assert (found - expected).abs().max() < 0.02 * expected.std() * 8
    assert not torch.equal(found, expected)


def test_a_drafters_layers_are_swapped_where_that_is_faster(
    measured: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    model = Toy(torch.float32)
    dense_linear.install(model)
    x = torch.randn(4, 16)
    before = [model.fc(x), model.up.quant_method.apply(model.up, x, None)]
    with caplog.at_level(logging.INFO):
        assert dense_linear.reduce_drafter(model) == 3
    assert dense_linear.forms(model) == ["bfloat16", "head packed"]
    after = [model.fc(x), model.up.quant_method.apply(model.up, x, None)]
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old, new)
        torch.testing.assert_close(old, new, atol=0.1, rtol=0.05)
    assert "3 float32 weights of 0.0 MB in bfloat16: 2000.00 ms for 8 rows, 1000.00 ms in bfloat16" in caplog.text


def test_what_is_hardly_faster_stays(measured: SimpleNamespace) -> None:
    measured.seconds = [1.02, 1.0]
    model = Toy(torch.float32)
    dense_linear.install(model)
    method = model.up.quant_method
    assert dense_linear.reduce_drafter(model) == 0
    assert model.up.quant_method is method


def test_what_is_slower_with_many_rows_stays(measured: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without instructions for bfloat16: it reads half as much, and works longer."""
    found = iter([[2.0, 1.0], [8.0, 9.0]])
    monkeypatch.setattr(draft_products, "least_seconds", lambda *_: next(found))
    model = Toy(torch.float32)
    dense_linear.install(model)
    assert dense_linear.reduce_drafter(model) == 0
    assert not list(found), "both were looked at"


def test_what_memory_has_no_room_for_stays(measured: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy(torch.float32)
    dense_linear.install(model)
    monkeypatch.setattr(draft_products.psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    assert dense_linear.reduce_drafter(model) == 0


def test_to_measure_draws_no_random_numbers(measured: SimpleNamespace) -> None:
    model = Toy(torch.float32)
    dense_linear.install(model)
    before = torch.get_rng_state()
    assert dense_linear.reduce_drafter(model) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_several_ranks_stay(measured: SimpleNamespace) -> None:
    """Each would measure for itself, and score pairs by itself."""
    measured.is_one_rank = False
    model = Toy(torch.float32)
    dense_linear.install(model)
    assert dense_linear.reduce_drafter(model) == 0
    head: Any = model.lm_head
    head.quant_method.prepare_drafts(head)
    x = torch.randn(4, 16)
    assert torch.equal(head.quant_method.draft_logits(head, x), head.quant_method.apply(head, x))


@pytest.mark.parametrize(("asked", "seconds"), [("model", [2.0, 1.0]), ("bfloat16", [1.0, 2.0]), (" ", [2.0, 1.0])])
def test_the_environment_may_name_one(
    asked: str, seconds: list[float], measured: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DRAFTS_ENV, asked)
    measured.seconds = seconds
    model = Toy(torch.float32)
    dense_linear.install(model)
    assert dense_linear.reduce_drafter(model) == (0 if asked == "model" else 3)


def test_another_dtype_is_refused(measured: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DRAFTS_ENV, "int8")
    model = Toy(torch.float32)
    dense_linear.install(model)
    with pytest.raises(DDTreeConfigError, match="must be bfloat16"):
        dense_linear.reduce_drafter(model)


def test_without_room_for_packed_weights_there_is_none_for_others(measured: SimpleNamespace) -> None:
    model = Toy(torch.float32)
    dense_linear.install(model, available_bytes=1000)
    assert dense_linear.reduce_drafter(model) == 0


def test_small_drafters_and_other_dtypes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DRAFTS_ENV)
    monkeypatch.setattr(dense_linear, "_is_one_rank", lambda: True)
    for dtype in (torch.float32, torch.bfloat16):
        model = Toy(dtype)
        dense_linear.install(model)
        assert dense_linear.reduce_drafter(model) == 0


def test_the_targets_own_logits_stay_whole(measured: SimpleNamespace) -> None:
    """The head is one for both: drafts multiply by the copy, the target by its own weight."""
    model = Toy(torch.float32)
    dense_linear.install(model)
    head: Any = model.lm_head
    x = torch.randn(4, 16)
    own = head.quant_method.apply(head, x)
    assert dense_linear.forms(model) == ["head packed", "packed"]
    head.quant_method.prepare_drafts(head)
    assert dense_linear.forms(model) == ["head packed, of drafts bfloat16", "packed"]
    assert torch.equal(head.quant_method.apply(head, x), own)
    drafts = head.quant_method.draft_logits(head, x)
    assert not torch.equal(drafts, own)
    torch.testing.assert_close(drafts, own, atol=0.2, rtol=0.05)


def test_a_head_is_measured_once(measured: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    measured.seconds = [1.0, 1.0]
    model = Toy(torch.float32)
    dense_linear.install(model)
    head: Any = model.lm_head
    head.quant_method.prepare_drafts(head)
    monkeypatch.setattr(draft_products, "is_reduced_faster", lambda *_: pytest.fail("measured twice"))
    head.quant_method.prepare_drafts(head)
    x = torch.randn(4, 16)
    assert torch.equal(head.quant_method.draft_logits(head, x), head.quant_method.apply(head, x))


def test_of_turns_the_fastest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour has made most of them slow; both forms take turns, so it hits both."""
    clock, played = [0.0], list[str]()
    monkeypatch.setattr(draft_products.time, "perf_counter", lambda: clock[0])

    def taking(name: str, *seconds: float) -> Any:
        left = list(seconds) + [9.0] * draft_products.TURNS

        def form() -> None:
            played.append(name)
            clock[0] += left.pop(0)

        return form

    assert draft_products.least_seconds(taking("a", 8, 3, 7), taking("b", 9, 9, 2)) == [3.0, 2.0]
    assert played == ["a", "b"] * draft_products.TURNS
