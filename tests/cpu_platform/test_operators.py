"""The lean operators against SGLang's own `forward_native` and against the kernel that one of them stands for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from torch.nn import functional

from ddtree_sglang.cpu_platform import forward_epoch, operators

pytestmark = pytest.mark.sglang

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 48, 6, 2, 8
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""float32: order of the sum. bfloat16: two roundings to 8 bits of values up to about 4."""


def norm(dtype: torch.dtype, **changes: object) -> SimpleNamespace:
    fields = {
        "hidden_size": HIDDEN,
        "weight": (torch.rand(HIDDEN) + 0.5).to(dtype),
        "variance_epsilon": 1e-5,
        "override_orig_dtype": None,
        "variance_size_override": None,
        "cast_x_before_out_mul": False,
        "fp32_residual": False,
    }
    return SimpleNamespace(**(fields | changes))


def norm_by_definition(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tokens", [1, 9])
def test_rms_norm_with_and_without_residual(dtype: torch.dtype, tokens: int) -> None:
    op, x, residual = norm(dtype), torch.randn(tokens, HIDDEN).to(dtype), torch.randn(tokens, HIDDEN).to(dtype)
    alone = operators.rms_norm(op, x)
    torch.testing.assert_close(alone.double(), norm_by_definition(x, op.weight), atol=TOLERANCE[dtype], rtol=0)
    normed, total = operators.rms_norm(op, x, residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(normed.double(), norm_by_definition(total, op.weight), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("field", ["fp32_residual", "cast_x_before_out_mul", "override_orig_dtype"])
def test_unusual_norms_go_back_to_the_engine(field: str) -> None:
    op = norm(torch.float32, **{field: True})
    op.forward_native = lambda *arguments: ("native", len(arguments))
    assert operators.rms_norm(op, torch.randn(2, HIDDEN)) == ("native", 4)


def test_silu_and_mul_leaves_its_input_alone() -> None:
    x = torch.randn(3, 2 * HIDDEN)
    before = x.clone()
    expected = functional.silu(x[:, :HIDDEN]) * x[:, HIDDEN:]
    torch.testing.assert_close(operators.silu_and_mul(SimpleNamespace(), x), expected)
    assert torch.equal(x, before)


def rotary(monkeypatch: pytest.MonkeyPatch, neox: bool = True) -> RotaryEmbedding:
    monkeypatch.setattr("sglang.srt.layers.rotary_embedding.base.publish_role", lambda: None)
    return RotaryEmbedding(HEAD_DIM, HEAD_DIM, 64, 10000, neox, torch.float32)


@pytest.mark.parametrize("fused_projection", [True, False])
def test_rotation_equals_the_engines(monkeypatch: pytest.MonkeyPatch, fused_projection: bool) -> None:
    op, positions = rotary(monkeypatch), torch.tensor([0, 5, 5, 63])
    forward_epoch.advance()
    qkv = torch.randn(4, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
    query, key, _ = qkv.split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], dim=-1)
    if not fused_projection:
        query, key = query.clone(), key.clone()
    before = qkv.clone()
    expected = op.forward_native(positions, query, key)
    actual = operators.rotary_embedding(op, positions, query, key)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert torch.equal(qkv, before)


def test_remembered_rotation_is_void_in_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """One positions buffer, refilled in place between passes: the second pass must not rotate as the first did."""
    op, positions = rotary(monkeypatch), torch.tensor([1, 2])
    query, key = torch.randn(2, HEADS * HEAD_DIM), torch.randn(2, KV_HEADS * HEAD_DIM)
    forward_epoch.advance()
    operators.rotary_embedding(op, positions, query, key)
    positions.copy_(torch.tensor([30, 31]))
    forward_epoch.advance()
    actual, _ = operators.rotary_embedding(op, positions, query, key)
    expected, _ = op.forward_native(positions, query, key)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_other_positions_in_the_same_pass_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    op = rotary(monkeypatch)
    query, key = torch.randn(2, HEADS * HEAD_DIM), torch.randn(2, KV_HEADS * HEAD_DIM)
    forward_epoch.advance()
    for positions in (torch.tensor([1, 2]), torch.tensor([7, 40])):
        actual, _ = operators.rotary_embedding(op, positions, query, key)
        expected, _ = op.forward_native(positions, query, key)
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_interleaved_rotation_goes_back_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    op, positions = rotary(monkeypatch, neox=False), torch.tensor([3, 9])
    query, key = torch.randn(2, HEADS * HEAD_DIM), torch.randn(2, KV_HEADS * HEAD_DIM)
    actual = operators.rotary_embedding(op, positions, query, key)
    for ours, theirs in zip(actual, op.forward_native(positions, query, key), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_fused_norm_and_rotation_of_the_drafter(dtype: torch.dtype) -> None:
    """Head by head from the definition; V must not move."""
    qkv = torch.randn(5, (HEADS + 2 * KV_HEADS) * HEAD_DIM).to(dtype)
    before, positions = qkv.clone(), torch.tensor([0, 1, 2, 40, 41])
    weights = [(torch.rand(HEAD_DIM) + 0.5).to(dtype) for _ in range(2)]
    angles = torch.outer(torch.arange(64.0), 1.0 / 10000 ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    cache = torch.cat((angles.cos(), angles.sin()), -1)
    operators.table_qk_norm_rope_(qkv, positions, *weights, cache, HEADS, KV_HEADS, HEAD_DIM, 1e-5)
    half = HEAD_DIM // 2
    for head in range(HEADS + KV_HEADS):
        part = before[:, head * HEAD_DIM : (head + 1) * HEAD_DIM]
        normed = norm_by_definition(part, weights[0 if head < HEADS else 1])
        cos, sin = angles[positions].cos().double(), angles[positions].sin().double()
        first, second = normed[:, :half], normed[:, half:]
        expected = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        actual = qkv[:, head * HEAD_DIM : (head + 1) * HEAD_DIM].double()
        torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=0)
    values = slice((HEADS + KV_HEADS) * HEAD_DIM, None)
    assert torch.equal(qkv[:, values], before[:, values])
