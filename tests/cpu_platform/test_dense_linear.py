"""Products with and without packed weights against float64, and what installing them changes in a model."""

from __future__ import annotations

import logging

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
from sglang.srt.model_executor.model_runner_components.weight_updater import _unsupported_derived_weight_cache_error
from torch import nn

from ddtree_sglang.cpu_platform import dense_linear
from ddtree_sglang.cpu_platform.platform import DDTreeCpuPlatform

pytestmark = pytest.mark.sglang

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Sums of 48 products of order one, in another order than float64's; bfloat16 rounds the sum to 8 bits."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 9, 33, 200])
def test_product_equals_float64(dtype: torch.dtype, is_packed: bool, with_bias: bool, rows: int) -> None:
    weight = torch.randn(96, 48).to(dtype)
    bias = torch.randn(96).to(dtype) if with_bias else None
    x = torch.randn(rows, 48).to(dtype)
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    actual = dense_linear.dense_linear(x, weight, bias, dense_linear.pack(weight) if is_packed else None)
    assert actual.shape == (rows, 96)
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.double(), expected, atol=TOLERANCES[dtype], rtol=0)


@pytest.mark.parametrize("is_packed", [False, True])
def test_strided_input_is_read_correctly(is_packed: bool) -> None:
    wide, weight = torch.randn(5, 200), torch.randn(96, 48)
    packed = dense_linear.pack(weight) if is_packed else None
    x = wide[:, 10:58]
    expected = x.double() @ weight.double().t()
    for rows in (slice(0, 1), slice(None)):
        actual = dense_linear.dense_linear(x[rows], weight, None, packed)
        torch.testing.assert_close(actual.double(), expected[rows], atol=TOLERANCES[torch.float32], rtol=0)


def test_an_input_of_another_dtype_is_left_to_torch() -> None:
    weight = torch.randn(96, 48)
    with pytest.raises(RuntimeError, match="dtype"):
        dense_linear.dense_linear(torch.randn(3, 48).bfloat16(), weight, None, dense_linear.pack(weight))


class Toy(nn.Module):
    """Two linear layers of the engine's, one of torch's, an embedding and a head."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16, bias=False)
        self.up, self.down, self.embedding, self.lm_head = nn.Module(), nn.Module(), nn.Module(), nn.Module()
        for module, shape, method in (
            (self.up, (64, 16), UnquantizedLinearMethod()),
            (self.down, (16, 64), UnquantizedLinearMethod()),
            (self.embedding, (100, 16), UnquantizedEmbeddingMethod()),
            (self.lm_head, (100, 16), UnquantizedEmbeddingMethod()),
        ):
            module.weight = nn.Parameter(torch.randn(shape), requires_grad=False)
            module.quant_method = method
        self.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("available_bytes", [None, 1000])
def test_install_changes_products_and_no_values(dtype: torch.dtype, available_bytes: int | None) -> None:
    model = Toy(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert dense_linear.install(model, available_bytes) == (4 if available_bytes is None else 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    x = torch.randn(4, 16).to(dtype)
    results = {
        "up": model.up.quant_method.apply(model.up, x),
        "fc": model.fc(x),
        "lm_head": model.lm_head.quant_method.apply(model.lm_head, x),
    }
    for name, actual in results.items():
        expected = x.double() @ before[f"{name}.weight"].double().t()
        torch.testing.assert_close(actual.double(), expected, atol=TOLERANCES[dtype], rtol=0)
    assert type(model.up.quant_method) is dense_linear.CpuLinearMethod
    assert type(model.embedding.quant_method) is UnquantizedEmbeddingMethod
    rows = model.embedding.quant_method.embedding(model.embedding, torch.tensor([3, 99]))
    assert torch.equal(rows, before["embedding.weight"][[3, 99]])


def test_a_tied_head_is_packed_and_still_looks_up() -> None:
    model = Toy(torch.float32)
    model.lm_head = model.embedding
    assert dense_linear.install(model) == 4
    x = torch.randn(2, 16)
    logits = model.lm_head.quant_method.apply(model.lm_head, x)
    torch.testing.assert_close(logits, x @ model.embedding.weight.t(), atol=1e-4, rtol=0)
    rows = model.embedding.quant_method.embedding(model.embedding, torch.tensor([7]))
    assert torch.equal(rows[0], model.embedding.weight[7])


def test_packed_models_refuse_online_updates_which_would_not_reach_the_copies() -> None:
    model = Toy(torch.float32)
    assert _unsupported_derived_weight_cache_error(model) is None
    dense_linear.install(model)
    assert _unsupported_derived_weight_cache_error(model) == dense_linear.UPDATE_REFUSAL


def test_without_room_for_copies_weights_stay_plain_and_updates_work(caplog: pytest.LogCaptureFixture) -> None:
    model = Toy(torch.float32)
    with caplog.at_level(logging.WARNING):
        assert dense_linear.install(model, available_bytes=1000) == 0
    assert "they stay plain" in caplog.text
    assert _unsupported_derived_weight_cache_error(model) is None
    fresh = torch.randn(64, 16)
    model.up.weight.data.copy_(fresh)
    x = torch.randn(1, 16)
    torch.testing.assert_close(model.up.quant_method.apply(model.up, x), x @ fresh.t(), atol=1e-4, rtol=0)


def test_other_dtypes_keep_the_engines_methods() -> None:
    model = Toy(torch.float16)
    assert dense_linear.install(model) == 0
    assert type(model.up.quant_method) is UnquantizedLinearMethod


@pytest.mark.parametrize("has_instructions", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_float32", [True, False])
def test_a_head_asked_for_in_float32_gives_sglangs_logits(
    in_float32: bool, dtype: torch.dtype, has_instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang takes our method for a quantised one, whose logits it does not widen."""
    monkeypatch.setattr(dense_linear, "_has_bfloat16_instructions", lambda: has_instructions)
    monkeypatch.setattr(dense_linear, "_is_one_rank", lambda: True)
    monkeypatch.setattr(dense_linear, "least_rows", lambda weights, packed: 1)
    model, processor = Toy(dtype), LogitsProcessor.__new__(LogitsProcessor)
    nn.Module.__init__(processor)
    processor.use_fp32_lm_head, processor.use_fp32_lm_head_output = in_float32, False
    processor.rl_on_policy_target, processor.config = None, None
    model.logits_processor = processor
    dense_linear.install(model)
    x = torch.randn(4, 16).to(dtype)
    logits = processor._compute_lm_head(x, model.lm_head)
    assert logits.dtype is (torch.float32 if in_float32 else dtype)
    tolerance = TOLERANCES[logits.dtype]
    expected = x.double() @ model.lm_head.weight.double().t()
    torch.testing.assert_close(logits.double(), expected, atol=tolerance, rtol=0)
    is_ours = isinstance(model.lm_head.quant_method, dense_linear.CpuEmbeddingMethod)
    assert is_ours is not (in_float32 and dtype is torch.bfloat16)


@pytest.mark.parametrize(("available_bytes", "form"), [(None, "packed"), (1000, "plain")])
def test_forms_say_whether_weights_were_packed(available_bytes: int | None, form: str) -> None:
    """Costs of rounds are kept by them; torch's own layers count, and what is only looked up does not."""
    model = Toy(torch.float32)
    assert dense_linear.forms(model) == []
    dense_linear.install(model, available_bytes)
    assert dense_linear.forms(model) == DDTreeCpuPlatform().product_forms(model) == [f"head {form}", form]
    assert dense_linear.forms(nn.Sequential(model.fc)) == [form]
