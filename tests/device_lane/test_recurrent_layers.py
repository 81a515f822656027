"""The stand-in for a prefill of gated delta nets, against Hugging Face's form in chunks."""

from __future__ import annotations

import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from tests.device_lane.recurrent_layers import CHUNK, chunk_gated_delta_rule

KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM = 1, 2, 8, 16
LENGTHS, SLOTS = (5, CHUNK + 7, 1, 2 * CHUNK), (3, 0, 4, 1)


def by_chunks(rows: list[torch.Tensor], state: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `[length, HV, V]` and the state `[HV, V, K]` behind the first `length` tokens of one request."""
    q, k, v, g, beta = (row[None, :length] for row in rows)
    per_key = VALUE_HEADS // KEY_HEADS
    outputs, last = torch_chunk_gated_delta_rule(
        q.repeat_interleave(per_key, dim=2),
        k.repeat_interleave(per_key, dim=2),
        v,
        g=g,
        beta=beta,
        initial_state=state.transpose(-1, -2)[None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return outputs[0], last[0].transpose(-1, -2)


def test_prefill_is_the_gated_delta_rule_and_hands_out_the_states_that_chunks_begin_with() -> None:
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    q, k = drawn(1, total, KEY_HEADS, KEY_DIM), drawn(1, total, KEY_HEADS, KEY_DIM)
    v, g = drawn(1, total, VALUE_HEADS, VALUE_DIM), -drawn(1, total, VALUE_HEADS).exp()
    beta = drawn(1, total, VALUE_HEADS).sigmoid()
    before = drawn(6, VALUE_HEADS, VALUE_DIM, KEY_DIM)
    states = before.clone()
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    outputs, nothing, chunk_states = chunk_gated_delta_rule(
        q,
        k,
        v,
        g,
        beta,
        initial_state=states,
        initial_state_indices=torch.tensor(SLOTS),
        cu_seqlens=ends,
        use_qk_l2norm_in_kernel=True,
    )
    assert nothing is None
    begun = iter(chunk_states[0])
    for slot, length, start in zip(SLOTS, LENGTHS, ends.tolist(), strict=False):
        rows = [one[0, start : start + length] for one in (q, k, v, g, beta)]
        expected, last = by_chunks(rows, before[slot], length)
        torch.testing.assert_close(outputs[0, start : start + length], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states[slot], last, atol=1e-4, rtol=1e-4)
        for begin in range(0, length, CHUNK):
            state = by_chunks(rows, before[slot], begin)[1] if begin else before[slot]
            torch.testing.assert_close(next(begun), state, atol=1e-4, rtol=1e-4)
    assert next(begun, None) is None
    untouched = [slot for slot in range(len(before)) if slot not in SLOTS]
    assert torch.equal(states[untouched], before[untouched])
