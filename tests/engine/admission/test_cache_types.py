"""Which types of a KV cache a tree is refused on: those that a verify would read otherwise than plain decoding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.admission.cache_types import check_cache_type
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.test_target_checks import named, target

pytestmark = pytest.mark.sglang

FP8, BF16, FP32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
TRITON, FA3, FLASHINFER = "TritonAttnBackend", "FlashAttentionBackend", "FlashInferAttnBackend"


class RadixAttention(torch.nn.Module):
    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.k_scale_float, self.v_scale_float = None if scale is None else 1.0, scale


def check(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    kept: torch.dtype,
    dtype: torch.dtype,
    scale: float | None = None,
    arch: str = "MHA",
    is_deterministic: bool = False,
) -> None:
    settings = SimpleNamespace(deterministic=SimpleNamespace(enable_deterministic_inference=is_deterministic))
    monkeypatch.setattr("sglang.srt.runtime_context.get_exec", lambda: settings)
    runner: Any = SimpleNamespace(
        model_config=target(arch),
        model=torch.nn.Sequential(RadixAttention(None), RadixAttention(scale)),
        kv_cache_dtype=kept,
        dtype=dtype,
    )
    check_cache_type(runner, [named(backend)])


@pytest.mark.parametrize("scale", [None, 1.0])
def test_the_models_own_type_is_served(scale: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of an FP8 checkpoint have scales of one, whether the cache has a type of its own or not."""
    for backend in (TRITON, FA3, FLASHINFER, "DDTreeCpuAttnBackend"):
        check(monkeypatch, backend, BF16, BF16, scale)


@pytest.mark.parametrize(("kept", "dtype"), [(FP8, BF16), (torch.float8_e5m2, BF16), (BF16, FP32), (BF16, torch.half)])
def test_another_type_is_refused_where_a_verify_reads_its_own_rows(
    kept: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = f"got {str(kept)[6:]} for a model in {str(dtype)[6:]}"
    with pytest.raises(DDTreeConfigError, match=f"{found}; set --attention-backend flashinfer, or change"):
        check(monkeypatch, TRITON, kept, dtype)
    more = " and --kv-cache-dtype fp8_e4m3" if kept == torch.float8_e5m2 else ""
    with pytest.raises(DDTreeConfigError, match=f"{found}; set --attention-backend fa3{more}, or change"):
        check(monkeypatch, TRITON, kept, dtype, arch="MLA")
    check(monkeypatch, TRITON, kept, dtype, is_deterministic=True)
    check(monkeypatch, FLASHINFER, kept, dtype, scale=0.5)
    check(monkeypatch, FA3, kept, dtype)


def test_scales_of_a_checkpoint_are_refused_where_they_would_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton multiplies what it reads from the cache by them, and not a verify's own rows."""
    with pytest.raises(DDTreeConfigError, match=r"got scales of 0.5 to 1.0 from the checkpoint; set"):
        check(monkeypatch, TRITON, BF16, BF16, scale=0.5)
    check(monkeypatch, TRITON, BF16, BF16, scale=0.5, is_deterministic=True)
    check(monkeypatch, FA3, BF16, BF16, scale=0.5)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_scales_of_an_fp8_cache_are_refused_on_fa3(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of one: SGLang expands them to a shape that a tree's nodes have not."""
    with pytest.raises(DDTreeConfigError, match="got float8_e4m3fn with those of a quantized checkpoint; set"):
        check(monkeypatch, FA3, FP8, BF16, scale=scale)
    # Latent rows are wider than 256, and get none.
    check(monkeypatch, FA3, FP8, BF16, scale=scale, arch="MLA")
