"""FlashAttention 3 as `sgl_kernel` offers it, in torch: the contract of its docstrings, checked.

The kernels check dtypes and shapes and trust every value. Here a page table that ends before the keys do, a page
outside the pool, a row that no request owns and a schedule made for other lengths are LaneViolation. Signatures are
those of `sgl_kernel/flash_attn.py` and `sgl_kernel/attention.py` of sglang-kernel 0.4.10. float32 is taken too: the
kernels take 16 and 8 bits only, the lane compares tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tests.device_lane.doors import kernel_door
from tests.device_lane.paged_attention import (
    Attended,
    Requests,
    Scores,
    attend,
    merged,
    require_indptr,
    require_slots,
    window,
)
from tests.device_lane.violations import require

FP8 = (torch.float8_e4m3fn,)


@kernel_door
def flash_attn_with_kvcache(  # the kernel's own signature
    q: torch.Tensor,  # [T, H, D]
    k_cache: torch.Tensor,  # [pages, page size, G, D]
    v_cache: torch.Tensor,  # [pages, page size, G, E]
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    qv: torch.Tensor | None = None,  # [T, H, E], scored against the values
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: torch.Tensor | int | None = None,  # [B] int32
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,  # [B, pages of a row] int32
    cu_seqlens_q: torch.Tensor | None = None,  # [B + 1] int32
    cu_seqlens_k_new: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: torch.Tensor | None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,  # [B, G]
    v_descale: torch.Tensor | None = None,  # [B, G]
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    attention_chunk: int | None = None,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: torch.Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    only_qv: bool = False,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sinks: torch.Tensor | None = None,
    score_mod: Any = None,
    aux_tensors: Any = None,
    ver: int = 3,
    out: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Rows of a batch of requests over a paged KV cache, in the form that SGLang uses: page table and `cu_seqlens_q`.

    `cu_seqlens_k_new` belongs to `k` and is not read without it. `num_splits`, `pack_gqa` and `sm_margin` change speed
    alone. Rows behind `cu_seqlens_q[B]` are not written by the kernel; they are NaN here.

    Returns:
        [T, H, E], and with `return_softmax_lse` the log-sum-exp [H, T] float32; a row with no key gives 0 and -inf.

    Raises:
        LaneViolation: an argument breaks the contract.
        NotImplementedError: an argument that SGLang's dense attention does not use.
    """
    _refuse(k=k, v=v, rotary_cos=rotary_cos, rotary_sin=rotary_sin, cache_batch_idx=cache_batch_idx)
    _refuse(cache_leftpad=cache_leftpad, rotary_seqlens=rotary_seqlens, score_mod=score_mod, aux_tensors=aux_tensors)
    _refuse(attention_chunk=attention_chunk or None, only_qv=only_qv or None, q_descale=q_descale)
    if page_table is None or cu_seqlens_q is None or not isinstance(cache_seqlens, torch.Tensor):
        raise NotImplementedError("the lane's FA3 has page_table, cu_seqlens_q and cache_seqlens as tensors")
    require(ver == 3, "the FA3 kernel is called as version 3", ver)
    _check_caches(q, k_cache, v_cache)
    kv_lens = _lengths(cache_seqlens, page_table)
    starts = _query_starts(cu_seqlens_q, kv_lens.numel(), q, max_seqlen_q)
    left, right = (window_size[0], 0) if causal else (window_size[0], window_size[1])
    allowed = window(starts.diff(), kv_lens, left, right)
    slots = _slots(page_table, kv_lens, k_cache.shape[0], k_cache.shape[1], allowed.any(dim=1))
    _check_schedule(scheduler_metadata, kv_lens)
    keys = _descaled(k_cache.flatten(0, 1), k_descale, kv_lens.numel())
    values = _descaled(v_cache.flatten(0, 1), v_descale, kv_lens.numel())
    requests = Requests(starts[:-1], starts.diff(), slots, allowed, k_cache.shape[1])
    # The kernel answers 8-bit queries in bfloat16.
    rows = q.bfloat16() if q.dtype in FP8 else q
    scores = _scores(q, softmax_scale, softcap, sinks)
    if qv is not None:
        # Latent attention: the values are the other part of the keys, and this is the other part of the queries.
        require(softmax_scale is not None, "softmax_scale is given with qv", softmax_scale)
        require(qv.shape == (*q.shape[:2], v_cache.shape[-1]), "qv is [rows, heads, head size of values]", qv.shape)
        rows, keys = torch.cat([rows, qv], dim=-1), torch.cat([keys, values], dim=-1)
    result = attend(rows, keys, values, requests, scores)
    return _returned(result, out, return_softmax_lse)


@kernel_door
def flash_attn_varlen_func(  # the kernel's own signature
    q: torch.Tensor,  # [T, H, D]
    k: torch.Tensor,  # [total keys, G, D]
    v: torch.Tensor,  # [total keys, G, E]
    cu_seqlens_q: torch.Tensor,  # [B + 1] int32
    cu_seqlens_k: torch.Tensor,  # [B + 1] int32
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: torch.Tensor | None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: Sequence[int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    only_qv: bool = False,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sinks: torch.Tensor | None = None,
    score_mod: Any = None,
    aux_tensors: Any = None,
    ver: int = 3,
    out: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Rows of a batch over keys and values that lie one request behind the other, with no pool.

    Raises:
        LaneViolation: an argument breaks the contract.
        NotImplementedError: an argument that SGLang's dense attention does not use.
    """
    _refuse(seqused_q=seqused_q, seqused_k=seqused_k, page_table=page_table, qv=qv, q_descale=q_descale)
    _refuse(k_descale=k_descale, v_descale=v_descale, score_mod=score_mod, aux_tensors=aux_tensors)
    _refuse(attention_chunk=attention_chunk or None, only_qv=only_qv or None)
    require(max_seqlen_k is not None, "max_seqlen_k is given", max_seqlen_k)
    _check_caches(q, k, v)
    batch_size = cu_seqlens_q.numel() - 1
    starts = _query_starts(cu_seqlens_q, batch_size, q, max_seqlen_q)
    require(int(starts[-1]) == q.shape[0], "cu_seqlens_q ends at the last row of q", (int(starts[-1]), q.shape[0]))
    kv_starts = require_indptr(cu_seqlens_k, batch_size, "cu_seqlens_k")
    num_more = k.shape[0] - int(kv_starts[-1])
    require(0 <= num_more <= _padded_keys(), "cu_seqlens_k ends at the last key", (int(kv_starts[-1]), k.shape[0]))
    kv_lens = kv_starts.diff()
    require(int(kv_lens.max()) <= int(max_seqlen_k or 0), "max_seqlen_k covers every request", kv_lens.tolist())
    left, right = (window_size[0], 0) if causal else (window_size[0], window_size[1])
    allowed = window(starts.diff(), kv_lens, left, right)
    offsets = torch.arange(allowed.shape[2])
    slots = torch.where(offsets < kv_lens[:, None], kv_starts[:-1, None] + offsets, 0)
    requests = Requests(starts[:-1], starts.diff(), slots, allowed, padding=0)
    return _returned(attend(q, k, v, requests, _scores(q, softmax_scale, softcap, sinks)), out, return_softmax_lse)


def _padded_keys() -> int:
    """Rows that nobody reads: groups of several ranks pad keys, and not queries, to a multiple of their ranks."""
    from sglang.srt.runtime_context import get_flags, get_parallel

    return int(get_parallel().attn_tp_size) - 1 if get_flags().dp.enabled else 0


@kernel_door
def get_scheduler_metadata(  # the kernel's own signature
    batch_size: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads: int,
    num_heads_k: int,
    headdim: int,
    cache_seqlens: torch.Tensor,  # [B] int32
    qkv_dtype: torch.dtype = torch.bfloat16,
    headdim_v: int | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    cu_seqlens_k_new: torch.Tensor | None = None,
    seqused_q: torch.Tensor | None = None,
    leftpad_k: torch.Tensor | None = None,
    page_size: int | None = None,
    max_seqlen_k_new: int = 0,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    attention_chunk: int = 0,
    has_softcap: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> torch.Tensor:
    """The tile schedule of a decode batch, made once for all layers; here it holds the lengths that it was made for.

    Returns:
        [1 + 4 * B'] int32, B' = B rounded up to a multiple of 4, the size that FA3 gives a causal decode batch: one
        semaphore, then the lengths.

    Raises:
        LaneViolation: the number or the dtype of the lengths is wrong.
    """
    require(cache_seqlens.dtype == torch.int32, "cache_seqlens is int32", cache_seqlens.dtype)
    require(cache_seqlens.shape == (batch_size,), f"cache_seqlens has {batch_size} entries", tuple(cache_seqlens.shape))
    if cu_seqlens_q is not None:
        starts = require_indptr(cu_seqlens_q, batch_size, "cu_seqlens_q")
        require(int(starts.diff().max()) <= max_seqlen_q, "max_seqlen_q covers every request", starts.tolist())
    metadata = torch.zeros(1 + 4 * (-(-batch_size // 4) * 4), dtype=torch.int32)
    metadata[1 : 1 + batch_size] = cache_seqlens
    return metadata


@kernel_door
def merge_state_v2(
    v_a: torch.Tensor,  # [T, H, E]
    s_a: torch.Tensor,  # [T, H], natural logarithm
    v_b: torch.Tensor,  # [T, H, E]
    s_b: torch.Tensor,  # [T, H]
    v_merged: torch.Tensor | None = None,
    s_merged: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two disjoint sets of keys from the attention over each; NaN where both are empty, as the kernel.

    Raises:
        LaneViolation: shapes or dtypes differ, or a tensor is not contiguous.
    """
    require(v_a.shape == v_b.shape, "both states have one shape", (tuple(v_a.shape), tuple(v_b.shape)))
    require(v_a.dtype == v_b.dtype, "both states have one dtype", (v_a.dtype, v_b.dtype))
    for name, lse in (("s_a", s_a), ("s_b", s_b)):
        require(lse.shape == v_a.shape[:2], f"{name} is [rows, heads] of the state", tuple(lse.shape))
    strides = [tensor.stride() for tensor in (v_a, s_a, v_b, s_b)]
    require(all(tensor.is_contiguous() for tensor in (v_a, s_a, v_b, s_b)), "states are contiguous", strides)
    out, lse = merged(v_a, s_a, v_b, s_b)
    return _into(v_merged, out), _into(s_merged, lse)


def strict_page_table_builder(build: Callable[..., None]) -> Callable[..., None]:
    """SGLang's `build_trtllm_mha_page_table` with the checks that its kernel lacks.

    The kernel masks its stores by the length alone: behind the width of a row it stores into the next row, and behind
    the last row into foreign memory. Cells behind a length keep what the last batch left; they are -1 here, so reading
    one is a slot outside the pool.
    """

    @kernel_door
    @functools.wraps(build)
    def checked(
        req_to_token: torch.Tensor,  # [rows, most tokens of a request] int32
        req_pool_indices: torch.Tensor,  # [B]
        cache_seqlens: torch.Tensor,  # [B] int32
        page_table: torch.Tensor,  # [B, pages of a row] int32, written
        page_size: int,
        swa_page_table: torch.Tensor | None = None,
        full_to_swa: torch.Tensor | None = None,
    ) -> None:
        lens = cache_seqlens.tolist()
        longest = max(lens, default=0)
        width = page_table.shape[1] * page_size
        require(longest <= width, f"page table stores end within their row of {width} tokens", lens)
        row = req_to_token.shape[1]
        require(longest <= row, f"page table loads end within a request's row of {row} tokens", lens)
        for table in (page_table, swa_page_table):
            if table is not None:
                table.fill_(-1)
        build(req_to_token, req_pool_indices, cache_seqlens, page_table, page_size, swa_page_table, full_to_swa)

    return checked


def _refuse(**arguments: object) -> None:
    given = sorted(name for name, value in arguments.items() if value is not None)
    if given:
        raise NotImplementedError(f"the lane's FA3 has no {', '.join(given)}: SGLang's dense attention passes none")


def _check_caches(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    require(q.dtype == k.dtype == v.dtype, "q, keys and values have one dtype", (q.dtype, k.dtype, v.dtype))
    require(q.dim() == 3 and q.shape[-1] == k.shape[-1], "q is [rows, heads, head size of the keys]", tuple(q.shape))
    require(q.shape[1] % k.shape[-2] == 0, "query heads are a multiple of KV heads", (q.shape[1], k.shape[-2]))
    require(k.shape[:-1] == v.shape[:-1], "keys and values have one pool", (tuple(k.shape), tuple(v.shape)))
    require(
        q.stride(-1) == k.stride(-1) == v.stride(-1) == 1,
        "the last dimension is contiguous",
        (q.stride(), k.stride(), v.stride()),
    )


def _lengths(cache_seqlens: torch.Tensor, page_table: torch.Tensor) -> torch.Tensor:
    """[B] int64."""
    require(cache_seqlens.dtype == torch.int32, "cache_seqlens is int32", cache_seqlens.dtype)
    require(page_table.dtype == torch.int32, "page_table is int32", page_table.dtype)
    require(
        cache_seqlens.shape == page_table.shape[:1],
        "page_table has a row for each of cache_seqlens",
        (tuple(cache_seqlens.shape), tuple(page_table.shape)),
    )
    lens = cache_seqlens.long().cpu()
    require(bool((lens >= 0).all()), "cache_seqlens are not negative", lens.tolist())
    return lens


def _query_starts(
    cu_seqlens_q: torch.Tensor, batch_size: int, q: torch.Tensor, max_seqlen_q: int | None
) -> torch.Tensor:
    """[B + 1] int64."""
    starts = require_indptr(cu_seqlens_q, batch_size, "cu_seqlens_q")
    require(int(starts[-1]) <= q.shape[0], "cu_seqlens_q ends within q", (int(starts[-1]), q.shape[0]))
    require(max_seqlen_q is not None, "max_seqlen_q is given with cu_seqlens_q", max_seqlen_q)
    longest = int(starts.diff().max()) if batch_size else 0
    # The grid has ceil(max_seqlen_q / tile) tiles: rows behind them are never computed.
    require(longest <= int(max_seqlen_q or 0), "max_seqlen_q covers every request", (max_seqlen_q, longest))
    return starts


def _slots(
    page_table: torch.Tensor, kv_lens: torch.Tensor, num_pages: int, page_size: int, attended: torch.Tensor
) -> torch.Tensor:
    """[B, K] int64, 0 behind the end of a request. Of keys that no row attends to, `attended` [B, K], any may be 0."""
    width = page_table.shape[1] * page_size
    require(
        bool((kv_lens <= width).all()),
        f"cache_seqlens end within the page table's row of {width} tokens",
        kv_lens.tolist(),
    )
    token = torch.arange(int(kv_lens.max()) if kv_lens.numel() else 0)
    pages = page_table.long().cpu()[:, token // page_size]
    used = token < kv_lens[:, None]
    slots = torch.where(used, pages * page_size + token % page_size, 0)
    require_slots(slots, kv_lens, num_pages * page_size, page_size, attended)
    return slots


def _check_schedule(metadata: torch.Tensor | None, kv_lens: torch.Tensor) -> None:
    if metadata is None:
        return
    rounded = -(-kv_lens.numel() // 4) * 4
    require(metadata.numel() == 1 + 4 * rounded, "the schedule is one of this batch size", metadata.numel())
    made_for = metadata[1 : 1 + kv_lens.numel()].long()
    require(
        bool((made_for == kv_lens).all()),
        "the schedule was made for the lengths of now",
        (made_for.tolist(), kv_lens.tolist()),
    )


def _descaled(pool: torch.Tensor, descale: torch.Tensor | None, batch_size: int) -> torch.Tensor:
    if descale is None:
        return pool
    require(pool.dtype in FP8, "a descale belongs to 8-bit keys and values", pool.dtype)
    require(descale.shape == (batch_size, pool.shape[1]), "a descale is [requests, KV heads]", tuple(descale.shape))
    require(bool((descale == descale[:1]).all()), "SGLang gives every request the layer's descale", descale.tolist())
    return pool.float() * descale[0, None, :, None]


def _scores(q: torch.Tensor, scale: float | None, softcap: float, sinks: torch.Tensor | None) -> Scores:
    if sinks is not None:
        require(sinks.shape == q.shape[1:2], "sinks has one value for each query head", tuple(sinks.shape))
    return Scores(scale if scale is not None else q.shape[-1] ** -0.5, softcap, sinks)


def _returned(
    result: Attended, out: torch.Tensor | None, return_softmax_lse: bool
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    written = _into(out, result.out)
    return (written, result.lse.T.contiguous()) if return_softmax_lse else written


def _into(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    if out is None:
        return result
    require(
        out.shape == result.shape and out.dtype == result.dtype,
        f"out is {tuple(result.shape)} of {result.dtype}",
        (tuple(out.shape), out.dtype),
    )
    return out.copy_(result)
