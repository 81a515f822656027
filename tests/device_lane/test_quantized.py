"""The lane's products for quantized weights: values of SGLang's own kernel for AWQ, and those of rounded rows."""

from __future__ import annotations

import pytest
import torch

from tests.device_lane.quantized import awq_dequantize, int8_scaled_mm, per_token_quant_int8, round_activations
from tests.support import quantize


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


def test_products_of_integers_are_those_of_the_rounded_values() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 48, generator=generator), torch.randn(32, 48, generator=generator)
    stored, values = quantize.int8(weight)
    rows, scales = per_token_quant_int8(x)
    found = int8_scaled_mm(rows, stored["weight"].T, scales, stored["weight_scale"], torch.float32)
    layer = torch.nn.Sequential()
    layer.q_proj = torch.nn.Linear(48, 32, bias=False)
    layer.q_proj.weight.data.copy_(values)
    plain = layer.q_proj(x)
    round_activations(layer)
    torch.testing.assert_close(found, layer.q_proj(x))
    assert not torch.allclose(found, plain)
