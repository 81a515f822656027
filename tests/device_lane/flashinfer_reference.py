"""FlashInfer's compiled modules in torch: what its Python calls once it has planned, packed and copied.

FlashInfer's own wrappers run unmodified above: they copy a plan into buffers, pack masks and choose the mode of a mask.
Below them a kernel has three sources: tensors on the device, numbers frozen at the call, and the workspace that the
last `plan` wrote from lengths on the *host*. Nothing there compares them. Here the workspace holds the planned lengths,
and a run, replayed in a graph or not, demands that they are the device's.

Signatures are those of `get_batch_prefill_module` and `get_batch_decode_module` of flashinfer 0.7.2, behind the module
itself. float32 is taken too: FlashInfer takes 16 and 8 bits only, the lane compares tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from tests.device_lane.doors import kernel_door
from tests.device_lane.flashinfer_masks import packbits, segment_packbits, unpacked_mask
from tests.device_lane.flashinfer_plan import (
    Plan,
    plan_decode,
    plan_prefill,
    read_plan,
    require_kv_lens,
    require_query_lens,
)
from tests.device_lane.paged_attention import Requests, Scores, attend, merged, require_indptr, require_slots, window
from tests.device_lane.violations import require

NON_CAUSAL, CAUSAL, CUSTOM = 0, 1, 2  # flashinfer.utils.MaskMode
NHD = 0  # flashinfer.utils.TensorLayout
# Where `sinks` is among the arguments of paged_run behind `sm_scale`; the installer checks it.
SINKS = 17


@dataclass(frozen=True)
class ModuleKey:
    """What FlashInfer compiles a module for: the arguments of `get_batch_prefill_module` behind the backend's name."""

    q_data_type: torch.dtype
    kv_data_type: torch.dtype
    o_data_type: torch.dtype
    index_type: torch.dtype
    head_dim_qk: int
    head_dim_vo: int
    pos_encoding_mode: int
    use_sliding_window: bool
    use_logits_soft_cap: bool
    use_fp16_qk_reduction: bool = False

    def check(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """Dtypes and head sizes are compiled in."""
        dtypes = (q.dtype, k.dtype, v.dtype, out.dtype)
        compiled = (self.q_data_type, self.kv_data_type, self.kv_data_type, self.o_data_type)
        require(dtypes == compiled, f"q, keys, values and out are {compiled}", dtypes)
        sizes = (q.shape[-1], k.shape[-1], v.shape[-1])
        compiled_sizes = (self.head_dim_qk, self.head_dim_qk, self.head_dim_vo)
        require(sizes == compiled_sizes, f"head sizes are {compiled_sizes}", sizes)
        require(self.pos_encoding_mode == 0, "SGLang rotates before attention", self.pos_encoding_mode)

    def check_options(self, window_left: int, logits_soft_cap: float) -> None:
        """A window or a soft cap that was not compiled in is not applied."""
        require(
            self.use_sliding_window == (window_left >= 0),
            f"the window is of a module compiled with window={self.use_sliding_window}",
            window_left,
        )
        require(
            self.use_logits_soft_cap or not logits_soft_cap > 0,
            "a soft cap runs in a module compiled with one",
            logits_soft_cap,
        )


@kernel_door
def paged_run(
    compiled: ModuleKey,
    float_workspace_buffer: torch.Tensor,
    int_workspace_buffer: torch.Tensor,
    plan_info_vec: list[int],
    q: torch.Tensor,  # [T, H, D]
    paged_k_cache: torch.Tensor,  # [pages, page size, G, D]
    paged_v_cache: torch.Tensor,  # [pages, page size, G, E]
    qo_indptr: torch.Tensor,  # [B + 1] int32
    paged_kv_indptr: torch.Tensor,  # [B + 1] int32, in pages
    paged_kv_indices: torch.Tensor,  # [at least paged_kv_indptr[B]] int32
    paged_kv_last_page_len: torch.Tensor,  # [B] int32
    o: torch.Tensor,  # [T, H, E], written
    maybe_lse: torch.Tensor | None,  # [T, H] float32, base 2, written
    mask_mode: int,
    layout: int,
    window_left: int,
    enable_pdl: bool,
    maybe_custom_mask: torch.Tensor | None,  # packed bits, uint8
    maybe_mask_indptr: torch.Tensor | None,  # [B + 1] int32, in bytes
    maybe_alibi_slopes: torch.Tensor | None,
    maybe_prefix_len_ptr: torch.Tensor | None,
    maybe_token_pos_in_items_ptr: torch.Tensor | None,
    maybe_max_item_len_ptr: torch.Tensor | None,
    logits_soft_cap: float,
    sm_scale: float,
    *rest: Any,
) -> None:
    """Rows of a batch over a paged pool.

    Raises:
        LaneViolation: an array is inconsistent, or the host planned for another batch.
    """
    require(layout == NHD, "pools are laid out as [pages, page size, heads, head size]", layout)
    compiled.check(q, paged_k_cache, paged_v_cache, o)
    compiled.check_options(window_left, logits_soft_cap)
    plan = read_plan(int_workspace_buffer, plan_info_vec)
    slots, kv_lens = paged_slots(
        plan, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, paged_k_cache.shape[:2]
    )
    rows = _Rows(q, o, maybe_lse, qo_indptr, plan)
    allowed = _allowed(plan, rows.q_lens, kv_lens, mask_mode, window_left, maybe_custom_mask, maybe_mask_indptr)
    requests = Requests(rows.starts[:-1], rows.q_lens, slots, allowed, plan.page_size)
    pools = (paged_k_cache.flatten(0, 1), paged_v_cache.flatten(0, 1))
    rows.attend(*pools, requests, Scores(sm_scale, logits_soft_cap, rest[SINKS] if len(rest) > SINKS else None))


@kernel_door
def ragged_run(
    compiled: ModuleKey,
    float_workspace_buffer: torch.Tensor,
    int_workspace_buffer: torch.Tensor,
    plan_info_vec: list[int],
    q: torch.Tensor,  # [T, H, D]
    k: torch.Tensor,  # [keys, G, D]
    v: torch.Tensor,  # [keys, G, E]
    qo_indptr: torch.Tensor,  # [B + 1] int32
    kv_indptr: torch.Tensor,  # [B + 1] int32
    o: torch.Tensor,  # [T, H, E], written
    maybe_lse: torch.Tensor | None,  # [T, H] float32, base 2, written
    mask_mode: int,
    layout: int,
    window_left: int,
    enable_pdl: bool,
    maybe_custom_mask: torch.Tensor | None,
    maybe_mask_indptr: torch.Tensor | None,
    maybe_alibi_slopes: torch.Tensor | None,
    maybe_prefix_len_ptr: torch.Tensor | None,
    maybe_token_pos_in_items_ptr: torch.Tensor | None,
    maybe_max_item_len_ptr: torch.Tensor | None,
    logits_soft_cap: float,
    sm_scale: float,
    *rest: Any,
) -> None:
    """Rows of a batch over keys and values that lie one request behind the other.

    Raises:
        LaneViolation: as `paged_run`.
    """
    require(layout == NHD, "keys are laid out as [keys, heads, head size]", layout)
    compiled.check(q, k, v, o)
    compiled.check_options(window_left, logits_soft_cap)
    plan = read_plan(int_workspace_buffer, plan_info_vec)
    kv_starts = require_indptr(kv_indptr, plan.kv_lens.numel(), "kv_indptr")
    kv_lens = kv_starts.diff()
    require(int(kv_starts[-1]) <= k.shape[0], "kv_indptr ends within the keys", (int(kv_starts[-1]), k.shape[0]))
    require_kv_lens(kv_lens, plan)
    rows = _Rows(q, o, maybe_lse, qo_indptr, plan)
    allowed = _allowed(plan, rows.q_lens, kv_lens, mask_mode, window_left, maybe_custom_mask, maybe_mask_indptr)
    key = torch.arange(allowed.shape[2])
    slots = torch.where(key < kv_lens[:, None], kv_starts[:-1, None] + key, 0)
    requests = Requests(rows.starts[:-1], rows.q_lens, slots, allowed, padding=0)
    rows.attend(k, v, requests, Scores(sm_scale, logits_soft_cap))


@kernel_door
def decode_run(
    compiled: ModuleKey,
    float_workspace_buffer: torch.Tensor,
    int_workspace_buffer: torch.Tensor,
    plan_info_vec: list[int],
    q: torch.Tensor,  # [B, H, D]
    paged_k_cache: torch.Tensor,  # [pages, page size, G, D]
    paged_v_cache: torch.Tensor,  # [pages, page size, G, E]
    paged_kv_indptr: torch.Tensor,  # [B + 1] int32, in pages
    paged_kv_indices: torch.Tensor,  # [at least paged_kv_indptr[B]] int32
    paged_kv_last_page_len: torch.Tensor,  # [B] int32
    o: torch.Tensor,  # [B, H, E], written
    maybe_lse: torch.Tensor | None,  # [B, H] float32, base 2, written
    kv_layout_code: int,
    window_left: int,
    enable_pdl: bool,
    alibi_slopes: torch.Tensor | None,
    logits_soft_cap: float,
    sm_scale: float,
    rope_scale: float,
    rope_theta: float,
) -> None:
    """One row per request over all its keys.

    Raises:
        LaneViolation: as `paged_run`.
    """
    require(kv_layout_code == NHD, "pools are laid out as [pages, page size, heads, head size]", kv_layout_code)
    compiled.check(q, paged_k_cache, paged_v_cache, o)
    compiled.check_options(window_left, logits_soft_cap)
    plan = read_plan(int_workspace_buffer, plan_info_vec)
    slots, kv_lens = paged_slots(
        plan,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        paged_k_cache.shape[:2],
        planned_pages=True,
    )
    rows = _Rows(q, o, maybe_lse, torch.arange(q.shape[0] + 1, dtype=torch.int32), plan)
    allowed = window(rows.q_lens, kv_lens, window_left, -1)
    requests = Requests(rows.starts[:-1], rows.q_lens, slots, allowed, plan.page_size)
    pools = (paged_k_cache.flatten(0, 1), paged_v_cache.flatten(0, 1))
    rows.attend(*pools, requests, Scores(sm_scale, logits_soft_cap))


@functools.cache
def prefill_module(backend: str, *key: Any) -> SimpleNamespace:
    """In the place of `flashinfer.prefill.get_batch_prefill_module`."""
    if backend not in ("fa2", "fa3"):
        raise NotImplementedError(f"the lane has FlashInfer's fa2 and fa3, not {backend}")
    compiled = ModuleKey(*key)
    return SimpleNamespace(
        plan=plan_prefill,
        workspace_size=None,
        paged_run=functools.partial(paged_run, compiled),
        ragged_run=functools.partial(ragged_run, compiled),
    )


@functools.cache
def decode_module(*key: Any) -> SimpleNamespace:
    """In the place of `flashinfer.decode.get_batch_decode_module`."""
    return SimpleNamespace(plan=plan_decode, workspace_size=None, run=functools.partial(decode_run, ModuleKey(*key)))


class _Rows:
    """The query side of a run: checked against the plan, and written where the batch has rows."""

    def __init__(
        self, q: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None, qo_indptr: torch.Tensor, plan: Plan
    ) -> None:
        self.starts = require_indptr(qo_indptr, plan.q_lens.numel(), "qo_indptr")
        self.q_lens = self.starts.diff()
        require_query_lens(self.q_lens, plan)
        last = int(self.starts[-1])
        require(
            last == q.shape[0] or (plan.for_graphs and last < q.shape[0]), "qo_indptr ends at q", (last, q.shape[0])
        )
        require(q.shape[1] == plan.num_qo_heads, "query heads are the plan's", (q.shape[1], plan.num_qo_heads))
        self.q, self.out, self.lse, self.num_kv_heads = q, out, lse, plan.num_kv_heads

    def attend(self, keys: torch.Tensor, values: torch.Tensor, requests: Requests, scores: Scores) -> None:
        """Write the rows of the batch; rows behind them stay as they are."""
        require(keys.shape[1] == self.num_kv_heads, "KV heads are the plan's", (keys.shape[1], self.num_kv_heads))
        rows = slice(0, int(self.starts[-1]))
        result = attend(self.q, keys, values, requests, scores)
        self.out[rows] = result.out[rows].to(self.out.dtype)
        if self.lse is not None:
            self.lse[rows] = result.lse[rows] / math.log(2)


def paged_slots(
    plan: Plan,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    last_page_len: torch.Tensor,
    pool: Sequence[int],  # pages, page size
    planned_pages: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots [B, K] int64 and lengths [B] int64 that the device's arrays say, which are those of the plan.

    Raises:
        LaneViolation: the arrays are inconsistent, name slots outside the pool, or differ from the host's lengths.
    """
    num_pages, page_size = pool
    require(page_size == plan.page_size, "the pool's page size is the plan's", (page_size, plan.page_size))
    starts = require_indptr(kv_indptr, plan.kv_lens.numel(), "paged_kv_indptr")
    require(kv_indices.dtype == torch.int32, "paged_kv_indices is int32", kv_indices.dtype)
    have = kv_indices.numel()
    require(int(starts[-1]) <= have, "paged_kv_indptr ends within paged_kv_indices", (int(starts[-1]), have))
    pages = starts.diff()
    last = last_page_len.long().cpu()
    require(last.shape == pages.shape, "paged_kv_last_page_len has an entry for each request", tuple(last.shape))
    full = bool(((last >= 1) & (last <= page_size)).all())
    require(full, f"paged_kv_last_page_len is 1 to {page_size}", last.tolist())
    kv_lens = torch.where(pages == 0, 0, (pages - 1) * page_size + last)
    require_kv_lens(pages if planned_pages else kv_lens, plan)
    token = torch.arange(int(kv_lens.max()) if kv_lens.numel() else 0)
    used = token < kv_lens[:, None]
    cells = torch.where(used, starts[:-1, None] + token // page_size, 0)
    slots = torch.where(used, kv_indices.long()[cells] * page_size + token % page_size, 0) if have else cells
    require_slots(slots, kv_lens, num_pages * page_size, page_size)
    return slots, kv_lens


def _allowed(
    plan: Plan,
    q_lens: torch.Tensor,
    kv_lens: torch.Tensor,
    mask_mode: int,
    window_left: int,
    mask: torch.Tensor | None,
    mask_indptr: torch.Tensor | None,
) -> torch.Tensor:
    """[B, Q, K] bool. A custom mask takes the place of causality; a window holds in every mode."""
    if mask_mode not in (NON_CAUSAL, CAUSAL, CUSTOM):
        raise NotImplementedError(f"the lane has no mask mode {mask_mode}: multi-item scoring")
    allowed = window(q_lens, kv_lens, window_left, 0 if mask_mode == CAUSAL else -1)
    if mask_mode != CUSTOM:
        require(mask is None, "a custom mask is read", f"mask mode {mask_mode}")
        return allowed
    # A causal plan gives no work to the keys above the diagonal, so a mask could not bring them back.
    require(not plan.causal, "a plan with a custom mask is not causal", plan.causal)
    require(mask is not None and mask_indptr is not None, "a custom mask has its bits and its indptr", mask_indptr)
    assert mask is not None  # for mypy
    assert mask_indptr is not None
    return allowed & unpacked_mask(mask, mask_indptr, q_lens, kv_lens, allowed.shape)


@kernel_door
def merge_state(
    v_a: torch.Tensor,  # [T, H, E]
    s_a: torch.Tensor,  # [T, H] float32, base 2
    v_b: torch.Tensor,
    s_b: torch.Tensor,
    v_merged: torch.Tensor,
    s_merged: torch.Tensor,
) -> None:
    """Attention over two disjoint sets of keys from that over each.

    Raises:
        LaneViolation: the two states differ in shape or dtype.
    """
    require(v_a.shape == v_b.shape, "both states have one shape", (tuple(v_a.shape), tuple(v_b.shape)))
    require(v_a.dtype == v_b.dtype, "both states have one dtype", (v_a.dtype, v_b.dtype))
    require(s_a.shape == s_b.shape == v_a.shape[:2], "an lse is [rows, heads]", (tuple(s_a.shape), tuple(s_b.shape)))
    out, lse = merged(v_a, s_a * math.log(2), v_b, s_b * math.log(2))
    v_merged.copy_(out)
    s_merged.copy_(lse / math.log(2))


@kernel_door
def merge_states(
    v: torch.Tensor,  # [T, states, H, E]
    s: torch.Tensor,  # [T, states, H] float32, base 2
    v_merged: torch.Tensor,
    s_merged: torch.Tensor,
) -> None:
    """As `merge_state`, of any number of states."""
    out, lse = v[:, 0], s[:, 0] * math.log(2)
    for state in range(1, v.shape[1]):
        out, lse = merged(out, lse, v[:, state], s[:, state] * math.log(2))
    v_merged.copy_(out)
    s_merged.copy_(lse / math.log(2))


def quantization_module() -> SimpleNamespace:
    """In the place of `flashinfer.quantization.packbits.get_quantization_module`."""
    return SimpleNamespace(packbits=packbits, segment_packbits=segment_packbits)


def cascade_module() -> SimpleNamespace:
    """In the place of `flashinfer.cascade.get_cascade_module`."""
    return SimpleNamespace(merge_state=merge_state, merge_states=merge_states)
