"""Products of bfloat16 weights where the processor has no instructions for it: values, and when they are taken."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional

from ddtree_sglang.cpu_platform import dense_linear, widened_products
from ddtree_sglang.cpu_platform.packed_products import pack
from tests.cpu_platform.test_dense_linear import Toy

pytestmark = pytest.mark.sglang


@pytest.fixture
def no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_linear, "_packed_dtypes", lambda: {torch.float32})
    monkeypatch.setattr(dense_linear, "_has_bfloat16_instructions", lambda: False)
    monkeypatch.setattr(dense_linear, "_is_one_rank", lambda: True)


def faster_from(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A processor on which float32 is the faster of the two from so many rows on."""
    monkeypatch.setattr(
        widened_products, "_seconds", lambda _weights, _packed, asked: (1.0, 0.5 if asked >= rows else 2.0)
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 9, 40])
def test_a_widened_product_is_rounded_once(with_bias: bool, rows: int) -> None:
    weight, x = torch.randn(96, 48).bfloat16(), torch.randn(rows, 48).bfloat16()
    bias = torch.randn(96).bfloat16() if with_bias else None
    actual = widened_products.widened_linear(x, pack(weight.float()), bias)
    assert actual.dtype is torch.bfloat16
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    # Half a unit in bfloat16's last place, and what the sum itself is off.
    assert ((actual.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


@pytest.mark.usefixtures("no_instructions")
def test_products_of_some_rows_and_more_are_widened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faster_from(monkeypatch, 4)
    caplog.set_level(logging.INFO)
    model = Toy(torch.bfloat16)
    assert dense_linear.install(model) == 4
    assert "in float32 from 4 rows on" in caplog.text
    assert dense_linear.forms(model) == ["float32 from 4 rows", "head float32 from 4 rows"]
    assert model._derived_weight_cache_error == dense_linear.UPDATE_REFUSAL
    taken: list[int] = []
    widened = widened_products.widened_linear

    def seen(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        taken.append(len(x))
        return widened(x, packed, bias)

    monkeypatch.setattr(dense_linear, "widened_linear", seen)
    for rows in (1, 3, 4, 9):
        x = torch.randn(rows, 16).bfloat16()
        for layer in (model.up, model.lm_head):
            result = layer.quant_method.apply(layer, x)
            expected = functional.linear(x, layer.weight)
            torch.testing.assert_close(result.float(), expected.float(), atol=0.1, rtol=0.02)
            assert result.dtype is torch.bfloat16
        torch.testing.assert_close(
            model.fc(x).float(), functional.linear(x, model.fc.weight).float(), atol=0.1, rtol=0.02
        )
    assert taken == [4, 4, 4, 9, 9, 9]


@pytest.mark.usefixtures("no_instructions")
def test_where_float32_is_not_faster_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    faster_from(monkeypatch, 10)
    model = Toy(torch.bfloat16)
    before = {name: type(module.quant_method) for name, module in model.named_children() if name != "fc"}
    assert dense_linear.install(model) == 0
    assert dense_linear.forms(model) == []
    assert {name: type(module.quant_method) for name, module in model.named_children() if name != "fc"} == before


@pytest.mark.usefixtures("no_instructions")
@pytest.mark.parametrize("lacks", ["memory", "one rank", "bfloat16 weights"])
def test_nothing_is_widened_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacks: str
) -> None:
    faster_from(monkeypatch, 1)
    monkeypatch.setattr(dense_linear, "_is_one_rank", lambda: lacks != "one rank")
    model = Toy(torch.float32 if lacks == "bfloat16 weights" else torch.bfloat16)
    dense_linear.install(model, 1000 if lacks == "memory" else None)
    kinds = {type(module.quant_method) for name, module in model.named_children() if name != "fc"}
    assert not kinds & {dense_linear.WidenedLinearMethod, dense_linear.WidenedEmbeddingMethod}
    assert ("float32 copies of bfloat16 weights would take" in caplog.text) == (lacks == "memory")


def test_the_first_weights_stand_for_all_once_they_fill_a_cache() -> None:
    large = torch.empty(widened_products.MEASURED_ELEMENTS // 2, 1, device="meta")
    assert widened_products.measured([large] * 9) == 2
    assert widened_products.measured([large[:10]] * 3) == 3


def test_both_forms_are_timed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    weights = [torch.randn(64, 64).bfloat16() for _ in range(2)]
    rows = widened_products.least_rows(weights, [pack(one.float()) for one in weights])
    assert rows is None or rows in widened_products.ROWS
    assert "2 bfloat16 weights" in caplog.text


@pytest.mark.parametrize(("has_avx512_bf16", "has_amx"), [(False, False), (True, False), (False, True)])
def test_avx512_alone_has_no_instructions(
    monkeypatch: pytest.MonkeyPatch, has_avx512_bf16: bool, has_amx: bool
) -> None:
    """oneDNN takes bfloat16 on any AVX-512; what it cannot pack it cannot multiply either way."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    takes = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert dense_linear._has_bfloat16_instructions() == (takes and (has_avx512_bf16 or has_amx))
