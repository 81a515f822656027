"""Products of any layout against float64, and what installing them changes in a model: speed only."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
from torch import nn

from ddtree_sglang.cpu_platform import dense_linear

pytestmark = pytest.mark.sglang

TOLERANCE = 1e-4
"""Sums of 48 products of order one in float32, in another order than float64's."""


@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 9, 33])
def test_product_equals_float64(columns_first: bool, with_bias: bool, rows: int) -> None:
    weight = torch.randn(96, 48)
    bias = torch.randn(96) if with_bias else None
    x = torch.randn(rows, 48)
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    stored = weight.t().contiguous().t() if columns_first else weight
    actual = dense_linear.dense_linear(x, stored, bias)
    assert actual.shape == (rows, 96)
    torch.testing.assert_close(actual.double(), expected, atol=TOLERANCE, rtol=0)


def test_strided_input_is_read_correctly() -> None:
    wide, weight = torch.randn(5, 200), torch.randn(96, 48)
    x = wide[:, 10:58]
    expected = x.double() @ weight.double().t()
    for stored in (weight, weight.t().contiguous().t()):
        for rows in (slice(0, 1), slice(None)):
            actual = dense_linear.dense_linear(x[rows], stored)
            torch.testing.assert_close(actual.double(), expected[rows], atol=TOLERANCE, rtol=0)


def test_bfloat16_is_left_to_torch() -> None:
    x, weight = torch.randn(3, 48).bfloat16(), torch.randn(96, 48).bfloat16()
    assert torch.equal(dense_linear.dense_linear(x, weight), nn.functional.linear(x, weight))


class Toy(nn.Module):
    """One widening and one narrowing layer and an embedding, with the engine's methods."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down, self.embedding = nn.Module(), nn.Module(), nn.Module()
        for module, shape, method in (
            (self.up, (64, 16), UnquantizedLinearMethod()),
            (self.down, (16, 64), UnquantizedLinearMethod()),
            (self.embedding, (100, 16), UnquantizedEmbeddingMethod()),
        ):
            module.weight = nn.Parameter(torch.randn(shape).to(dtype), requires_grad=False)
            module.quant_method = method


def test_install_changes_layouts_and_no_values() -> None:
    model = Toy(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert dense_linear.install(model) == 3
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.up.weight.stride(0) == 1
    assert model.down.weight.is_contiguous()
    assert model.embedding.weight.is_contiguous()
    x = torch.randn(4, 16)
    hidden = model.up.quant_method.apply(model.up, x)
    torch.testing.assert_close(hidden, x @ before["up.weight"].t(), atol=TOLERANCE, rtol=0)
    rows = model.embedding.quant_method.embedding(model.embedding, torch.tensor([3, 99]))
    assert torch.equal(rows, before["embedding.weight"][[3, 99]])


def test_new_weights_can_still_be_copied_in() -> None:
    model = Toy(torch.float32)
    dense_linear.install(model)
    fresh = torch.randn(64, 16)
    model.up.weight.data.copy_(fresh)
    x = torch.randn(1, 16)
    torch.testing.assert_close(model.up.quant_method.apply(model.up, x), x @ fresh.t(), atol=TOLERANCE, rtol=0)


def test_other_dtypes_keep_the_engines_methods() -> None:
    model = Toy(torch.bfloat16)
    assert dense_linear.install(model) == 0
    assert type(model.up.quant_method) is UnquantizedLinearMethod
