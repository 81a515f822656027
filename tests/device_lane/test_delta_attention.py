"""Kimi-K3's plain-torch layer and the stand-in for its prefill, each against Hugging Face's form of KDA."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus
from transformers.models.glm5_next.modeling_glm5_next import Glm5NextTextLinearAttention
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention

from tests.device_lane.delta_attention import CHUNK, chunk_kda
from tests.device_lane.kimi_k3 import DeltaAttention

HEADS, HEAD_DIM, HIDDEN = 2, 16, 32
LENGTHS, SLOTS = (5, CHUNK + 7, 1, 2 * CHUNK), (3, 0, 4, 1)
TRACKED = (-1, 1, -1, 1)
"""Of each request, the chunk before which the prefix cache's state is."""


@pytest.mark.parametrize("bound", [None, -5.0])
def test_layer_is_hugging_faces(bound: float | None) -> None:
    """Its output gate is of full rank there and of lower rank here, so both get a product of two matrices."""
    torch.manual_seed(0)
    asked = {"num_heads": HEADS, "head_dim": HEAD_DIM, "short_conv_kernel_size": 4, "gate_lower_bound": bound}
    mine = DeltaAttention(SimpleNamespace(linear_attn_config=asked, hidden_size=HIDDEN, rms_norm_eps=1e-6))
    fields = {"hidden_size": HIDDEN, "hidden_act": "silu", "rms_norm_eps": 1e-6, "layer_types": ["linear_attention"]}
    fields |= {"linear_num_heads": HEADS, "linear_head_dim": HEAD_DIM, "linear_conv_kernel_dim": 4}
    other: Any = Glm5NextTextLinearAttention(SimpleNamespace(**fields, linear_lower_bound=bound), 0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(std=0.5)
        mine.g_proj.weight.copy_(other.g_b_proj.weight @ other.g_a_proj.weight)
        for part in ("q", "k", "v"):
            getattr(mine, f"{part}_proj").weight.copy_(getattr(other, f"{part}_proj").weight)
        for part, weight in zip(("q", "k", "v"), other.conv1d.weight.chunk(3), strict=True):
            getattr(mine, f"{part}_conv1d").weight.copy_(weight)
        for name in ("b_proj.weight", "o_norm.weight", "o_proj.weight"):
            mine.get_parameter(name).copy_(other.get_parameter(name))
        for name in ("f_a_proj.weight", "f_b_proj.weight", "A_log", "dt_bias"):
            mine.get_parameter(name).copy_(other.forget_gate.get_parameter(name))
        x = torch.randn(3, CHUNK + 9, HIDDEN)
        torch.testing.assert_close(mine(x), other(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bound", [None, -5.0])
def test_prefill_is_kda_and_hands_out_the_states_that_chunks_begin_with(bound: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    q, k, v, raw = (drawn(1, total, HEADS, HEAD_DIM) for _ in range(4))
    beta, rates, bias = drawn(1, total, HEADS), drawn(HEADS), drawn(HEADS * HEAD_DIM)
    before = drawn(6, HEADS, HEAD_DIM, HEAD_DIM)
    states, tracked = before.clone(), torch.full((len(LENGTHS), HEADS, HEAD_DIM, HEAD_DIM), torch.nan)
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    made = chunk_kda(
        q,
        k,
        v,
        raw,
        beta,
        initial_state=states,
        initial_state_indices=torch.tensor(SLOTS),
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=ends,
        A_log=rates.view(1, 1, -1, 1),
        dt_bias=bias,
        lower_bound=bound,
        output_intermediate_states=True,
        track_state=tracked,
        track_chunk_idx=torch.tensor(TRACKED),
        beta_is_raw=True,
    )
    assert isinstance(made, tuple)
    outputs, chunk_states = made
    raised = raw + bias.view(HEADS, HEAD_DIM)
    rate = rates.exp()[:, None]
    g = -rate * softplus(raised) if bound is None else bound * torch.sigmoid(rate * raised)
    begun = iter(chunk_states[0])
    for index, (start, end) in enumerate(pairwise(ends.tolist())):

        def other(length: int, start: int = start, slot: int = SLOTS[index]) -> tuple[torch.Tensor, torch.Tensor]:
            rows = [one[:, start : start + length] for one in (q, k, v, g, beta.sigmoid())]
            first = before[slot][None].transpose(-1, -2)
            out, last = recurrent_kimi_delta_attention(*rows, first, True, use_qk_l2norm_in_kernel=True)
            return out[0], last[0].transpose(-1, -2)

        expected, last = other(end - start)
        torch.testing.assert_close(outputs[0, start:end], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states[SLOTS[index]], last, atol=1e-4, rtol=1e-4)
        for chunk, begin in enumerate(range(0, end - start, CHUNK)):
            state = other(begin)[1]
            torch.testing.assert_close(next(begun), state, atol=1e-4, rtol=1e-4)
            if chunk == TRACKED[index]:
                torch.testing.assert_close(tracked[index], state, atol=1e-4, rtol=1e-4)
    assert next(begun, None) is None
    assert [not bool(one.isnan().any()) for one in tracked] == [chunk >= 0 for chunk in TRACKED]
    untouched = [slot for slot in range(len(before)) if slot not in SLOTS]
    assert torch.equal(states[untouched], before[untouched])


def test_chunks_made_here_are_those_of_the_kernel() -> None:
    from sglang.kernels.ops.attention.fla.chunk_delta_h import CHUNK_SIZE

    assert CHUNK_SIZE == CHUNK
