"""What a CPU makes of quantized weights: their values, whatever the scales' shape, and a refusal where it has none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.exceptions import DDTreeConfigError
from tests.support.quantize import BLOCK, fp8, fp8_blocks, int8

pytestmark = pytest.mark.sglang

WIDTHS = [64, 16, 32]


def layer(stored: list[dict[str, torch.Tensor]], dtype: torch.dtype = torch.float32) -> Any:
    """A layer of several parts, loaded as SGLang loads them: their weights and scales one below the other."""
    made: Any = torch.nn.Module()
    for name in stored[0]:
        tensor = torch.cat([one[name] for one in stored])
        setattr(made, name, torch.nn.Parameter(tensor, requires_grad=False))
    made.logical_widths = [len(one["weight"]) for one in stored]
    made.params_dtype = dtype
    return made


@pytest.mark.parametrize("make", [fp8, fp8_blocks, int8])
@pytest.mark.parametrize("columns", [48, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_become_their_values(make: Any, columns: int, dtype: torch.dtype) -> None:
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

    from ddtree_sglang.cpu_platform.quantized import make_plain

    torch.manual_seed(0)
    parts = [make(torch.randn(width, columns) * (index + 1)) for index, width in enumerate(WIDTHS)]
    loaded = layer([stored for stored, _ in parts], dtype)
    make_plain(loaded, [BLOCK, BLOCK] if make is fp8_blocks else None)
    assert torch.equal(loaded.weight, torch.cat([values for _, values in parts]).to(dtype))
    assert type(loaded.quant_method) is UnquantizedLinearMethod
    assert [name for name, _ in loaded.named_parameters()] == ["weight"]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float(torch.finfo(torch.float32).min)])
def test_a_scale_that_was_not_loaded_is_an_error(scale: float) -> None:
    from ddtree_sglang.cpu_platform.quantized import make_plain

    stored, _ = int8(torch.randn(4, 8))
    stored["weight_scale"][2] = scale
    with pytest.raises(DDTreeConfigError, match="positive scale for each weight, got none for one of 4 x 8"):
        make_plain(layer([stored]))


@pytest.mark.parametrize("name", ["awq", "gptq", "compressed-tensors", "modelopt_fp4"])
def test_other_quantizations_are_refused_by_the_loader(name: str) -> None:
    from ddtree_sglang.cpu_platform.quantized import quantization_config

    with pytest.raises(DDTreeConfigError, match=f"those of fp8 and w8a8_int8, got {name}; use another checkpoint"):
        quantization_config(name)


@pytest.mark.parametrize(
    ("stored", "asked", "refused"),
    [
        (None, None, None),
        (None, "unquant", None),
        ("fp8", None, None),
        ("w8a8_int8", "w8a8_int8", None),
        ("awq", None, "awq"),
        (None, "fp8", "plain weights to be made fp8"),
    ],
)
def test_what_cannot_be_served_is_refused_at_start(
    stored: str | None, asked: str | None, refused: str | None, tmp_path: Path
) -> None:
    from ddtree_sglang.cpu_platform.server_defaults import _check_quantization

    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": stored and {"quant_method": stored}}))
    models = [(str(tmp_path), asked, None, None), ("org/model", None, str(tmp_path), asked)]
    for path, quantization, draft, of_draft in models:
        arguments = SimpleNamespace(
            model_path=path,
            quantization=quantization,
            speculative_draft_model_path=draft,
            speculative_draft_model_quantization=of_draft,
        )
        if refused is None:
            _check_quantization(arguments)
            continue
        with pytest.raises(DDTreeConfigError, match=f"those of fp8 and w8a8_int8, got {refused} for"):
            _check_quantization(arguments)


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("role", ["target", "drafter"])
def test_what_modelopts_own_file_says_is_refused_at_start(role: str, is_flat: bool, tmp_path: Path) -> None:
    """Not after the weights have been read for, by the loader in another process."""
    from ddtree_sglang.cpu_platform.server_defaults import _check_quantization

    said = {"quant_algo": "FP8"}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said if is_flat else {"quantization": said}))
    arguments = SimpleNamespace(
        model_path=str(tmp_path) if role == "target" else "org/model",
        quantization=None,
        speculative_draft_model_path=str(tmp_path) if role == "drafter" else None,
        speculative_draft_model_quantization=None,
    )
    with pytest.raises(DDTreeConfigError, match=r"those of fp8 and w8a8_int8, got FP8 of hf_quant_config\.json for"):
        _check_quantization(arguments)
    for silent in (False, [], ""):
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": silent}))
        _check_quantization(arguments)
    (tmp_path / "config.json").write_text("{}")
    for text in ("{}", "[]", "{"):
        (tmp_path / "hf_quant_config.json").write_text(text)
        _check_quantization(arguments)
