"""The lane's products for quantized weights: values of SGLang's own kernel for AWQ, and those of rounded rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.device_lane.quantized import (
    awq_dequantize,
    block_fp8_linear,
    gptq_linear,
    per_token_quant_fp8,
    per_token_quant_int8,
    round_activations,
    scaled_mm,
)
from tests.support import quantize
from tests.support.quantize import BLOCK, FORMS, How


@pytest.mark.parametrize(("rows", "columns"), [(16, 8), (48, 32), (32, 48)])
def test_weights_of_awq_are_what_the_engines_own_kernel_reads(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Triton kernel, interpreted, which SGLang uses on AMD's GPUs; it knows groups of 32."""
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("runs in Triton's interpreter: TRITON_INTERPRET=1")
    from sglang.kernels.ops.quantization.awq_triton import awq_dequantize_triton

    monkeypatch.setattr(quantize, "BLOCK", 32)
    weight = torch.randn(2 * columns, 2 * rows, generator=torch.Generator().manual_seed(rows))
    weight = weight if weight.shape[1] % 32 == 0 else weight.repeat(1, 2)
    stored, values = quantize.awq(weight)
    given = stored["qweight"], stored["scales"].float(), stored["qzeros"]
    found = awq_dequantize(*given)
    assert torch.equal(found, values.T)
    assert torch.equal(found, awq_dequantize_triton(*given))
    assert 0 < float((values - weight).abs().max()) < 0.3


@pytest.mark.parametrize(
    ("how", "round_rows"), [("w8a8_int8", per_token_quant_int8), ("fp8", per_token_quant_fp8), ("fp8-blocks", None)]
)
def test_products_are_those_of_the_rounded_values(how: How, round_rows: Callable[..., Any] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 48, generator=generator), torch.randn(32, 48, generator=generator)
    stored, values = FORMS[how][0](weight)
    if round_rows is None:
        found = block_fp8_linear(x, stored["weight"], (BLOCK, BLOCK), stored["weight_scale_inv"])
    else:
        rows, scales = round_rows(x)
        by_channel = stored["weight_scale"].expand(32, 1) if how == "fp8" else stored["weight_scale"]
        found = scaled_mm(rows, stored["weight"].T, scales, by_channel, torch.float32)
    layer = torch.nn.Sequential()
    layer.q_proj = torch.nn.Linear(48, 32, bias=False)
    layer.q_proj.weight.data.copy_(values)
    plain = layer.q_proj(x)
    round_activations(layer, how)
    torch.testing.assert_close(found, layer.q_proj(x))
    assert not torch.allclose(found, plain, rtol=1e-3)


def test_weights_of_gptq_are_what_their_layout_says() -> None:
    """Input i of an output is in bits 4 (i mod 8) of the int32 of row i / 8, eight above its value."""
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    stored, values = quantize.gptq(weight)
    for output, row in ((0, 0), (3, 9), (7, 15)):
        packed = int(stored["qweight"][row // 8, output]) & 0xFFFFFFFF
        value = ((packed >> 4 * (row % 8)) & 0xF) - 8
        assert values[output, row] == value * float(stored["scales"][0, output])
    empty = torch.empty(0)
    found = gptq_linear(torch.eye(16), stored["qweight"], stored["scales"], *[empty] * 4, None, 8, 16, True)
    assert torch.equal(found, values.T)
    assert 0 < float((values - weight).abs().max()) < 0.3


def test_rows_are_rounded_as_the_formats_say() -> None:
    """A row's largest becomes the format's largest; what lies between two values goes to the nearer, halves to even."""
    floats, scales = per_token_quant_fp8(torch.tensor([[8.0, -4.0, 0.0, 1.0], [448.0, 17.0, 19.0, -447.0]]))
    assert floats.float().tolist() == [[448.0, -224.0, 0.0, 56.0], [448.0, 16.0, 20.0, -448.0]]
    assert scales[:, 0].tolist() == pytest.approx([8 / 448, 1.0])
    integers, scales = per_token_quant_int8(torch.tensor([[254.0, -127.0, 0.0, 20.0, 3.0]]))
    assert integers.tolist() == [[127, -64, 0, 10, 2]]
    assert scales.tolist() == [[2.0]]
    # Each block has a scale of its own: 17 is rounded beside 448, and not beside itself.
    row = torch.zeros(1, 2 * BLOCK)
    row[0, 0], row[0, 1], row[0, BLOCK] = 448.0, 17.0, 17.0
    values = torch.eye(2 * BLOCK)
    ones = torch.ones(2, 2)
    found = block_fp8_linear(row, values.to(torch.float8_e4m3fn), (BLOCK, BLOCK), ones)
    assert found[0, [0, 1, BLOCK]].tolist() == pytest.approx([448.0, 16.0, 17.0])
