"""The FA3 reference against dense attention, and every rule of its contract broken once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.device_lane import dense as batches
from tests.device_lane.dense import ancestors, causal, dense, indptr, paged, queries
from tests.device_lane.fa3_reference import (
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    get_scheduler_metadata,
    merge_state_v2,
)
from tests.device_lane.violations import LaneViolation

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def arguments(kv_lens: list[int], q_lens: list[int], page_size: int = 1, **more: Any) -> dict[str, Any]:
    """A valid call over a fresh pool."""
    batch = paged(kv_lens, page_size)
    return {
        "q": queries(sum(q_lens)),
        "k_cache": batch.keys,
        "v_cache": batch.values,
        "page_table": batch.pages,
        "cache_seqlens": batch.kv_lens,
        "cu_seqlens_q": indptr(q_lens),
        "max_seqlen_q": max(q_lens),
        "return_softmax_lse": True,
        **more,
    }


def expected(
    kv_lens: list[int], q_lens: list[int], page_size: int, masks: list[torch.Tensor], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention of the same batch, request by request: out [T, H, E] and lse [H, T]."""
    batch, q = paged(kv_lens, page_size), queries(sum(q_lens)).split(q_lens)
    parts = [dense(q[b], *batch.owned(b), masks[b], **options) for b in range(len(kv_lens))]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]).T


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(
    ("kv_lens", "q_lens"),
    [([5, 33, 17], [5, 7, 1]), ([40, 3], [1, 1]), ([3, 20], [5, 2]), ([16, 32], [16, 1])],
    ids=["chunked prefill", "decode", "more rows than keys", "page ends"],
)
def test_causal_attention_equals_dense(kv_lens: list[int], q_lens: list[int], page_size: int) -> None:
    out, lse = flash_attn_with_kvcache(**arguments(kv_lens, q_lens, page_size, causal=True))
    masks = [causal(rows, keys) for rows, keys in zip(q_lens, kv_lens, strict=True)]
    want, want_lse = expected(kv_lens, q_lens, page_size, masks)
    torch.testing.assert_close(out, want, **CLOSE)
    torch.testing.assert_close(lse, want_lse, **CLOSE)


def test_window_sinks_softcap_and_scale_equal_dense() -> None:
    kv_lens, q_lens = [9, 21], [4, 3]
    sinks = torch.tensor([0.5, -1.0, 0.0, 2.0])
    call = arguments(kv_lens, q_lens, softmax_scale=0.7, softcap=3.0, sinks=sinks, window_size=(3, 1))
    out, lse = flash_attn_with_kvcache(**call)
    masks = []
    for rows, keys in zip(q_lens, kv_lens, strict=True):
        distance = torch.arange(keys) - (torch.arange(rows)[:, None] + keys - rows)
        masks.append((distance >= -3) & (distance <= 1))
    want, want_lse = expected(kv_lens, q_lens, 1, masks, scale=0.7, softcap=3.0, sinks=sinks)
    torch.testing.assert_close(out, want, **CLOSE)
    torch.testing.assert_close(lse, want_lse, **CLOSE)


def test_latent_queries_are_scored_against_the_values_too() -> None:
    kv_lens, q_lens = [9, 21], [4, 3]
    batch, qv = paged(kv_lens, 1), queries(7, seed=4)
    out, lse = flash_attn_with_kvcache(**arguments(kv_lens, q_lens, softmax_scale=0.3, qv=qv))
    rows = torch.cat([queries(7), qv], dim=-1).split(q_lens)
    parts = []
    for request, (keys, values) in enumerate(map(batch.owned, range(2))):
        mask = torch.ones(q_lens[request], kv_lens[request], dtype=torch.bool)
        parts.append(dense(rows[request], torch.cat([keys, values], dim=-1), values, mask, scale=0.3))
    torch.testing.assert_close(out, torch.cat([part[0] for part in parts]), **CLOSE)
    torch.testing.assert_close(lse, torch.cat([part[1] for part in parts]).T, **CLOSE)


def test_causal_window_has_no_right_side() -> None:
    out, _ = flash_attn_with_kvcache(**arguments([12], [4], causal=True, window_size=(2, 5)))
    rows = causal(4, 12)
    want, _ = expected([12], [4], 1, [rows & ~rows.roll(-3, 1).tril(8 - 3)])
    torch.testing.assert_close(out, want, **CLOSE)


def test_tree_verify_is_prefix_and_expanded_page_table_merged() -> None:
    """What SGLang's FA3 backend does with a tree of more than one child per node."""
    #      0
    #     / \
    #    1   2
    #    |   |
    #    3   4
    tree, prefix_lens = ancestors([-1, 0, 0, 1, 2]), [6, 11]
    num_nodes = tree.shape[0]
    batch = paged([prefix + num_nodes for prefix in prefix_lens], 1)
    q = queries(2 * num_nodes)
    common: dict[str, Any] = {"q": q, "k_cache": batch.keys, "v_cache": batch.values, "return_softmax_lse": True}
    prefix_out, prefix_lse = flash_attn_with_kvcache(
        **common,
        page_table=batch.pages,
        cache_seqlens=torch.tensor(prefix_lens, dtype=torch.int32),
        cu_seqlens_q=indptr([num_nodes] * 2),
        max_seqlen_q=num_nodes,
    )
    expanded = torch.zeros(2 * num_nodes, num_nodes, dtype=torch.int32)
    for row in range(2 * num_nodes):
        nodes = tree[row % num_nodes].nonzero().flatten()
        expanded[row, : len(nodes)] = batch.slots(row // num_nodes)[prefix_lens[row // num_nodes] + nodes]
    tail_out, tail_lse = flash_attn_with_kvcache(
        **common,
        page_table=expanded,
        cache_seqlens=tree.sum(1).repeat(2).int(),
        cu_seqlens_q=indptr([1] * 2 * num_nodes),
        max_seqlen_q=1,
    )
    out, _ = merge_state_v2(prefix_out, prefix_lse.T.contiguous(), tail_out, tail_lse.T.contiguous())
    for request, prefix in enumerate(prefix_lens):
        mask = torch.cat([torch.ones(num_nodes, prefix, dtype=torch.bool), tree], dim=1)
        want, _ = dense(q.split(num_nodes)[request], *batch.owned(request), mask)
        torch.testing.assert_close(out.split(num_nodes)[request], want, **CLOSE)


def test_rows_without_keys_are_zero_and_drop_out_of_a_merge() -> None:
    out, lse = flash_attn_with_kvcache(**arguments([0, 4], [2, 2]))
    assert out[:2].count_nonzero() == 0
    assert (lse[:, :2] == -torch.inf).all()
    other = torch.ones_like(out)
    merged, merged_lse = merge_state_v2(out, lse.T.contiguous(), other, torch.zeros(4, batches.HEADS))
    torch.testing.assert_close(merged[:2], other[:2])
    torch.testing.assert_close(merged_lse[:2], torch.zeros(2, batches.HEADS))


def test_rows_of_no_request_are_not_written() -> None:
    call = arguments([4], [2])
    call["q"] = queries(3)
    out, _ = flash_attn_with_kvcache(**call)
    assert out[2].isnan().all()
    assert out[:2].isfinite().all()


def test_masked_poison_is_not_read() -> None:
    call = arguments([8], [1], window_size=(2, 0))
    for pool in ("k_cache", "v_cache"):
        call[pool][call["page_table"][0, 1].long()] = torch.nan
    assert flash_attn_with_kvcache(**call)[0].isfinite().all()


def test_padded_rows_read_the_padding_slot_whatever_it_holds() -> None:
    call = arguments([4, 3], [1, 1])
    call["page_table"][1] = 0
    call["k_cache"][0] = torch.nan
    out, _ = flash_attn_with_kvcache(**call)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_out_is_written_in_place_and_returned() -> None:
    call = arguments([4], [2], return_softmax_lse=False)
    out = torch.empty(2, batches.HEADS, batches.HEAD_SIZE)
    assert flash_attn_with_kvcache(**call, out=out) is out
    torch.testing.assert_close(out, flash_attn_with_kvcache(**call))


def test_eight_bit_cache_is_scaled_back() -> None:
    call = arguments([6], [2])
    eight = {name: call[name].nan_to_num().to(torch.float8_e4m3fn) for name in ("q", "k_cache", "v_cache")}
    scales = {"k_descale": torch.full((1, 2), 0.5), "v_descale": torch.full((1, 2), 2.0)}
    out, _ = flash_attn_with_kvcache(**{**call, **eight, **scales})
    plain = {name: tensor.float() for name, tensor in eight.items()}
    want, _ = flash_attn_with_kvcache(
        **{**call, "q": plain["q"], "k_cache": plain["k_cache"] * 0.5, "v_cache": plain["v_cache"] * 2.0}
    )
    torch.testing.assert_close(out.float(), want, rtol=0.02, atol=0.02)


def test_varlen_equals_dense() -> None:
    lens = [3, 6]
    q, k, v = queries(9), queries(9, seed=2)[:, :2], queries(9, seed=3)[:, :2]
    out = flash_attn_varlen_func(q, k, v, indptr(lens), indptr(lens), max_seqlen_q=6, max_seqlen_k=6, causal=True)
    parts = [
        dense(*(tensor.split(lens)[request] for tensor in (q, k, v)), causal(lens[request], lens[request]))[0]
        for request in range(2)
    ]
    torch.testing.assert_close(out, torch.cat(parts), **CLOSE)


def broken(**changes: Any) -> dict[str, Any]:
    """A call of two requests with some arguments changed; a callable is given the valid value."""
    call = arguments([6, 9], [1, 1], causal=True)
    for name, change in changes.items():
        call[name] = change(call[name]) if callable(change) else change
    return call


def with_holes(pool: torch.Tensor) -> torch.Tensor:
    """A pool in which some owned slots were never written."""
    return torch.where(pool > 1.5, torch.nan, pool)


def cell(row: int, column: int, value: int) -> Any:
    """Write one cell of a table."""

    def change(table: torch.Tensor) -> torch.Tensor:
        table[row, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("rule", "changes"),
    {
        "row past its end": ("end within the page table's row of 9", {"cache_seqlens": lambda lens: lens + 1}),
        "narrow table": ("end within the page table's row of 8", {"page_table": lambda table: table[:, :8]}),
        "missing row": ("a row for each", {"page_table": lambda table: table[:1]}),
        "page outside": ("slots lie in the pool", {"page_table": cell(1, 3, 1000)}),
        "negative page": ("slots lie in the pool", {"page_table": cell(0, 5, -1)}),
        "padding among": ("no padding slot", {"page_table": cell(1, 3, 0)}),
        "twice": ("each slot once", {"page_table": lambda table: cell(1, 3, int(table[1, 4]))(table)}),
        "unwritten": ("written by their owner", {"k_cache": with_holes}),
        "unwritten value": (
            "written by their owner",
            {"v_cache": with_holes},
        ),
        "not monotone": ("is monotone", {"cu_seqlens_q": torch.tensor([0, 2, 1], dtype=torch.int32)}),
        "not from 0": ("starts at 0", {"cu_seqlens_q": torch.tensor([1, 1, 2], dtype=torch.int32)}),
        "long batch": ("has 3 entries", {"cu_seqlens_q": torch.tensor([0, 1, 1, 2], dtype=torch.int32)}),
        "past q": ("ends within q", {"cu_seqlens_q": torch.tensor([0, 1, 3], dtype=torch.int32)}),
        "rows dropped": ("covers every request", {"cu_seqlens_q": torch.tensor([0, 0, 2], dtype=torch.int32)}),
        "lengths int64": ("cache_seqlens is int32", {"cache_seqlens": lambda lens: lens.long()}),
        "table int64": ("page_table is int32", {"page_table": lambda table: table.long()}),
        "indptr int64": ("cu_seqlens_q is int32", {"cu_seqlens_q": torch.tensor([0, 1, 2])}),
        "negative length": ("not negative", {"cache_seqlens": torch.tensor([-1, 9], dtype=torch.int32)}),
        "dtypes": ("one dtype", {"q": lambda q: q.bfloat16()}),
        "descale": ("8-bit", {"k_descale": torch.ones(2, 2)}),
        "sinks": ("one value for each query head", {"sinks": torch.zeros(2)}),
        "version": ("version 3", {"ver": 4}),
        "head size": ("head size of the keys", {"q": lambda q: q[..., :4]}),
        "head counts": ("multiple of KV heads", {"q": lambda q: q[:, :3]}),
        "pools": ("have one pool", {"v_cache": lambda pool: pool[:-1]}),
        "strides": ("last dimension is contiguous", {"q": lambda q: q.repeat_interleave(2, dim=2)[..., ::2]}),
        "no max": ("max_seqlen_q is given", {"max_seqlen_q": None}),
        "out": ("out is", {"out": torch.empty(1, batches.HEADS, batches.HEAD_SIZE)}),
    }.values(),
)
def test_broken_contract_is_a_violation(rule: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LaneViolation, match=rule):
        flash_attn_with_kvcache(**broken(**changes))


@pytest.mark.parametrize("descale", [torch.ones(1, 2), torch.tensor([[1.0, 1.0], [2.0, 1.0]])])
def test_descale_that_is_no_layers_is_a_violation(descale: torch.Tensor) -> None:
    call = broken()
    for name in ("q", "k_cache", "v_cache"):
        call[name] = call[name].nan_to_num().to(torch.float8_e4m3fn)
    with pytest.raises(LaneViolation, match="descale"):
        flash_attn_with_kvcache(**call, k_descale=descale)


@pytest.mark.parametrize(
    ("rule", "changes"),
    {
        "q": ("ends at the last row of q", {"q": queries(10)}),
        "keys": ("ends at the last key", {"cu_seqlens_k": indptr([3, 5])}),
        "no max": ("max_seqlen_k is given", {"max_seqlen_k": None}),
        "max": ("max_seqlen_k covers", {"max_seqlen_k": 5}),
    }.values(),
)
def test_broken_ragged_call_is_a_violation(rule: str, changes: dict[str, Any]) -> None:
    call: dict[str, Any] = {"q": queries(9), "k": queries(9)[:, :2], "v": queries(9)[:, :2], "max_seqlen_q": 6}
    call |= {"cu_seqlens_q": indptr([3, 6]), "cu_seqlens_k": indptr([3, 6]), "max_seqlen_k": 6}
    flash_attn_varlen_func(**call)
    with pytest.raises(LaneViolation, match=rule):
        flash_attn_varlen_func(**(call | changes))


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("cache_seqlens is int32", {"cache_seqlens": torch.tensor([6, 9])}),
        ("cache_seqlens has 2 entries", {"cache_seqlens": torch.tensor([6], dtype=torch.int32)}),
        ("max_seqlen_q covers", {"cu_seqlens_q": indptr([1, 2])}),
    ],
)
def test_schedule_from_broken_lengths_is_a_violation(rule: str, changes: dict[str, Any]) -> None:
    call = {"cache_seqlens": torch.tensor([6, 9], dtype=torch.int32), "cu_seqlens_q": indptr([1, 1])} | changes
    with pytest.raises(LaneViolation, match=rule):
        get_scheduler_metadata(2, 1, 64, 4, 2, 8, **call)


def test_argument_that_no_backend_passes_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="rotary_cos"):
        flash_attn_with_kvcache(**broken(rotary_cos=torch.zeros(1)))


def test_schedule_of_other_lengths_is_a_violation() -> None:
    call = broken()
    schedule = get_scheduler_metadata(2, 1, 64, 4, 2, 8, call["cache_seqlens"], cu_seqlens_q=call["cu_seqlens_q"])
    assert schedule.numel() == 17
    flash_attn_with_kvcache(**call, scheduler_metadata=schedule)
    call["cache_seqlens"][0] -= 1
    with pytest.raises(LaneViolation, match="lengths of now"):
        flash_attn_with_kvcache(**call, scheduler_metadata=schedule)
    with pytest.raises(LaneViolation, match="this batch size"):
        flash_attn_with_kvcache(**call, scheduler_metadata=schedule[:-4])


def test_merge_of_states_that_do_not_fit_is_a_violation() -> None:
    state, lse = torch.ones(3, 4, 8), torch.zeros(3, 4)
    with pytest.raises(LaneViolation, match="contiguous"):
        merge_state_v2(state, torch.zeros(4, 3).T, state, lse)
    with pytest.raises(LaneViolation, match="one shape"):
        merge_state_v2(state, lse, state[:2], lse[:2])
    with pytest.raises(LaneViolation, match="s_b is"):
        merge_state_v2(state, lse, state, lse.T.contiguous())
    with pytest.raises(LaneViolation, match="one dtype"):
        merge_state_v2(state, lse, state.bfloat16(), lse)
