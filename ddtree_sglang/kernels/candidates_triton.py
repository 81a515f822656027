"""The K best tokens of each row of logits and the row's log-partition, in one pass over the logits of the LM head.

Two launches (`candidates_kernels`). The first streams the vocabulary once, in the head's own dtype: it cuts a row into
groups of some consecutive tokens and keeps each group's largest logit, and for each chunk of many groups the
log-sum-exp. The second has one program per row. The K best tokens lie in the K best groups: a group that is not among
them has K groups before it, each with a token that comes before all of its own. So it picks the K groups whose maxima
are largest, reads those again, and picks the K best tokens of them.

Groups are consecutive tokens so that a tie between two groups' maxima is broken by the group's number as a tie between
tokens is by their ids. The order is total, whatever the sizes of chunks and shards: raw logit descending, then id
ascending; NaN ranks as -inf. Scale and softcap never change the order of two logits, at most they make them equal.

Under tensor parallelism the second launch packs a shard's K best and its log-partition into one row of 32-bit words,
for one all-gather, and a third merges the gathered rows. Oracle: `core.candidates.rank_logits`; parity in
tests/kernels, under Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton

from ddtree_sglang.core.candidates import DraftCandidates, LogitTransform
from ddtree_sglang.kernels.candidates_kernels import merge_kernel, scan_kernel, select_kernel
from ddtree_sglang.kernels.compile_case import Argument, CompileCase

MAX_TOP_K = 256
MAX_GROUPS = 8192
"""Groups of a row, all of whose maxima a program of the second launch holds in registers."""

_TILE_BYTES = 4096
"""What a program of the first launch reads at a time: two loads of 16 bytes for each of its 128 threads."""
_PROGRAMS = 8192
"""Programs of the first launch where there are more tiles than that: some seven times what an H100 or H200 holds at
once, so that the last ones leave it idle for little of the time."""
_SCAN_WARPS, _MERGE_WARPS = 4, 4
_SELECT_WARPS = 8
_KEYS_PER_THREAD = 8
"""In the second launch, if it has that many warps; with more warps ptxas leaves each thread too few registers."""

# Bits of a float32 key that a logit of this dtype can differ in: all, or those above the zeros that widening appends.
_KEY_BITS = {torch.float32: 32, torch.float16: 19, torch.bfloat16: 16}


@dataclass(frozen=True)
class _Cut:
    """How R rows of a shard are cut. What is compiled does not depend on R, so that no batch compiles anything anew."""

    group: int  # tokens of a group
    num_groups: int  # of a row, at least 1
    tile: int  # tokens of a tile
    tiles_per_chunk: int
    num_chunks: int  # of a row
    scan_constants: dict[str, int | bool]
    select_constants: dict[str, int | bool]
    select_warps: int  # so that each thread holds few enough keys

    @classmethod
    def of(cls, num_rows: int, vocab_size: int, top_k: int, dtype: torch.dtype, has_softcap: bool) -> _Cut:
        """Group sizes that make the second launch's two picks about equally large."""
        padded_top_k = max(16, triton.next_power_of_2(top_k))
        group = 128 if padded_top_k <= 16 else 64 if padded_top_k <= 64 else 32
        tile = _TILE_BYTES // dtype.itemsize
        num_tiles = max(1, triton.cdiv(vocab_size, tile))
        num_groups = max(1, triton.cdiv(vocab_size, group))
        padded_groups = max(16, triton.next_power_of_2(num_groups))
        every_group = num_groups <= top_k
        keys = max(padded_top_k * group, 0 if every_group else padded_groups)
        tiles_per_chunk = min(num_tiles, max(1, num_rows * num_tiles // _PROGRAMS))
        return cls(
            group=group,
            num_groups=num_groups,
            tile=tile,
            tiles_per_chunk=tiles_per_chunk,
            num_chunks=triton.cdiv(num_tiles, tiles_per_chunk),
            scan_constants={"HAS_SOFTCAP": has_softcap, "GROUP": group, "TILE": tile},
            select_constants={
                "HAS_SOFTCAP": has_softcap,
                "EVERY_GROUP": every_group,
                "GROUP": group,
                "GROUPS": padded_groups,
                "CHUNKS": triton.next_power_of_2(num_tiles),
                "TOP_K": padded_top_k,
                "BITS": _KEY_BITS[dtype],
            },
            select_warps=min(_SELECT_WARPS, max(4, keys // (32 * _KEYS_PER_THREAD))),
        )


def _check(logits: torch.Tensor, top_k: int) -> None:
    """Refuse what the kernels are not made for: shapes, dtypes, strides and sizes, never values."""
    if logits.dim() != 2 or logits.dtype not in _KEY_BITS or (logits.shape[1] > 1 and logits.stride(1) != 1):
        raise ValueError(
            "logits must be [rows, V] in float32, float16 or bfloat16 with tokens side by side, got "
            f"{tuple(logits.shape)} {logits.dtype} with strides {logits.stride()}; pass the LM head's own output"
        )
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"the Triton ranking takes 1 to {MAX_TOP_K} candidates, got {top_k}; use core.rank_logits")
    cut = _Cut.of(1, logits.shape[1], top_k, logits.dtype, has_softcap=False)
    if cut.num_groups > MAX_GROUPS:
        raise ValueError(
            f"the Triton ranking takes up to {MAX_GROUPS * cut.group} tokens with {top_k} candidates, got "
            f"{logits.shape[1]}; use core.rank_logits or more tensor-parallel ranks"
        )


def _empty_candidates(num_rows: int, top_k: int, device: torch.device) -> DraftCandidates:
    return DraftCandidates(
        torch.empty(num_rows, top_k, dtype=torch.int64, device=device), torch.empty(num_rows, top_k, device=device)
    )


def _check_out(out: DraftCandidates, num_rows: int, top_k: int) -> None:
    """The kernels write `[rows, K]` from the first element on, whatever the shape says."""
    for name, tensor, dtype in (("ids", out.topk_ids, torch.int64), ("logprobs", out.topk_logprobs, torch.float32)):
        if tensor.dtype != dtype or tensor.numel() != num_rows * top_k or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {num_rows} contiguous rows of {top_k} {dtype}, got {tuple(tensor.shape)} "
                f"{tensor.dtype}; allocate them as [rows, K]"
            )


def _launch(
    logits: torch.Tensor,
    top_k: int,
    transform: LogitTransform,
    vocab_start: int,
    outputs: tuple[torch.Tensor, torch.Tensor],
    is_shard: bool,
) -> None:
    (num_rows, vocab_size), device = logits.shape, logits.device
    softcap = transform.softcap
    cut = _Cut.of(num_rows, vocab_size, top_k, logits.dtype, softcap is not None)
    group_max = torch.empty(num_rows, cut.num_groups, device=device)
    chunk_lse = torch.empty(num_rows, cut.num_chunks, device=device)
    padded_top_k = cut.select_constants["TOP_K"]
    scan_kernel[(cut.num_chunks, num_rows)](
        logits,
        group_max,
        chunk_lse,
        logits.stride(0),
        vocab_size,
        cut.num_groups,
        cut.tiles_per_chunk,
        transform.scale,
        softcap or 1.0,
        **cut.scan_constants,
        num_warps=_SCAN_WARPS,
    )
    select_kernel[(num_rows,)](
        logits,
        group_max,
        chunk_lse,
        torch.empty(num_rows, padded_top_k, dtype=torch.int32, device=device),
        torch.empty(num_rows, padded_top_k, dtype=torch.int32, device=device),
        *outputs,
        logits.stride(0),
        vocab_size,
        vocab_start,
        cut.num_groups,
        cut.num_chunks,
        top_k,
        transform.scale,
        softcap or 1.0,
        IS_SHARD=is_shard,
        **cut.select_constants,
        num_warps=cut.select_warps,
    )


def rank_logits_triton(
    logits: torch.Tensor,  # [rows, V] float32, float16 or bfloat16; rows may lie further apart than V
    top_k: int,  # K
    transform: LogitTransform,
    out: DraftCandidates | None = None,
) -> DraftCandidates:
    """`core.candidates.rank_logits` in two launches, without a float32 copy of the logits.

    Args:
        out: where to write, `rows * K` contiguous values each, for a caller that needs results to keep their place.

    Raises:
        ValueError: a shape, dtype or stride is wrong, K is above 256, or V above what registers hold.
    """
    _check(logits, top_k)
    num_rows = logits.shape[0]
    if out is None:
        out = _empty_candidates(num_rows, top_k, logits.device)
    _check_out(out, num_rows, top_k)
    if num_rows:
        _launch(logits, top_k, transform, 0, (out.topk_ids, out.topk_logprobs), is_shard=False)
    return out


def rank_shard_triton(
    logits: torch.Tensor,  # [rows, V_local], as `rank_logits_triton` takes them
    top_k: int,  # K
    transform: LogitTransform,
    vocab_start: int,  # id of the shard's first token
) -> torch.Tensor:
    """A shard's part, ready for one all-gather: `[rows, 2 K + 1]` int32.

    A row holds K raw logits as float32 bits, K ids of the whole vocabulary, and the shard's log-partition as float32
    bits. A shard of fewer than K tokens, or of none, fills up with -inf and the id 2^31 - 1.

    Raises:
        ValueError: as `rank_logits_triton`.
    """
    _check(logits, top_k)
    packed = torch.empty(logits.shape[0], 2 * top_k + 1, dtype=torch.int32, device=logits.device)
    if logits.shape[0]:
        _launch(logits, top_k, transform, vocab_start, (packed, packed), is_shard=True)
    return packed


def merge_shards_triton(
    packed: torch.Tensor,  # [ranks, rows, 2 K + 1] int32, what `rank_shard_triton` gave on each rank
    transform: LogitTransform,
    out: DraftCandidates | None = None,
) -> DraftCandidates:
    """The candidates of the whole vocabulary in one launch, in the order that a single rank gives.

    Raises:
        ValueError: a shape or dtype is wrong.
    """
    if packed.dim() != 3 or packed.dtype != torch.int32 or packed.shape[2] % 2 == 0 or not packed.is_contiguous():
        raise ValueError(
            f"packed must be contiguous [ranks, rows, 2 K + 1] int32, got {tuple(packed.shape)} {packed.dtype}; gather "
            "what rank_shard_triton returns along a new first dimension"
        )
    num_ranks, num_rows, top_k = packed.shape[0], packed.shape[1], packed.shape[2] // 2
    if out is None:
        out = _empty_candidates(num_rows, top_k, packed.device)
    _check_out(out, num_rows, top_k)
    if num_rows:
        merge_kernel[(num_rows,)](
            packed,
            out.topk_ids,
            out.topk_logprobs,
            num_ranks,
            top_k,
            transform.scale,
            transform.softcap or 1.0,
            HAS_SOFTCAP=transform.softcap is not None,
            RANKS=triton.next_power_of_2(num_ranks),
            TOP_K=max(16, triton.next_power_of_2(top_k)),
            num_warps=_MERGE_WARPS,
        )
    return out


_VOCAB_SIZE, _ROWS = 151_936, 480
"""Of the cases below: Qwen3's vocabulary, 32 requests with 15 drafted positions each."""


def compile_cases() -> Iterator[CompileCase]:
    """The smallest, a usual and the largest K in each dtype, and what costs registers: caps, shards, odd sizes."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for top_k in (16, 64, 256):
        for dtype, softcap, is_shard in (
            (bf16, False, False),
            (bf16, False, True),
            (fp16, False, False),
            (fp32, True, False),
        ):
            yield _select_case(_VOCAB_SIZE, top_k, dtype, softcap, is_shard)
            if not is_shard:
                yield _scan_case(_VOCAB_SIZE, top_k, dtype, softcap)
    yield _scan_case(_VOCAB_SIZE + 1, 64, bf16, softcap=False)
    yield _scan_case(_VOCAB_SIZE, 64, bf16, softcap=True)
    yield _select_case(_VOCAB_SIZE + 1, 64, bf16, softcap=True, is_shard=False)
    yield _select_case(2048, 64, bf16, softcap=False, is_shard=False)  # no more groups than K
    for num_ranks, top_k in ((2, 16), (2, 64), (8, 64), (8, 256)):
        for softcap in (False, True):
            yield _merge_case(num_ranks, top_k, softcap)


def _scan_case(vocab_size: int, top_k: int, dtype: torch.dtype, softcap: bool) -> CompileCase:
    cut = _Cut.of(_ROWS, vocab_size, top_k, dtype, softcap)
    arguments: dict[str, Argument] = {
        "logits": dtype,
        **dict.fromkeys(("group_max", "chunk_lse"), torch.float32),
        "row_stride": vocab_size,
        "vocab_size": vocab_size,
        "num_groups": cut.num_groups,
        "tiles_per_chunk": cut.tiles_per_chunk,
        **dict.fromkeys(("scale", "softcap"), 1.0),
    }
    return CompileCase(scan_kernel, arguments, cut.scan_constants, num_warps=_SCAN_WARPS)


def _select_case(vocab_size: int, top_k: int, dtype: torch.dtype, softcap: bool, is_shard: bool) -> CompileCase:
    cut = _Cut.of(_ROWS, vocab_size, top_k, dtype, softcap)
    arguments: dict[str, Argument] = {
        "logits": dtype,
        **dict.fromkeys(("group_max", "chunk_lse"), torch.float32),
        **dict.fromkeys(("picked", "winners"), torch.int32),
        "ids": torch.int32 if is_shard else torch.int64,
        "logprobs": torch.int32 if is_shard else torch.float32,
        "row_stride": vocab_size,
        "vocab_size": vocab_size,
        "vocab_start": 0,
        "num_groups": cut.num_groups,
        "num_chunks": cut.num_chunks,
        "top_k": top_k,
        **dict.fromkeys(("scale", "softcap"), 1.0),
    }
    constants = {"IS_SHARD": is_shard, **cut.select_constants}
    return CompileCase(select_kernel, arguments, constants, num_warps=cut.select_warps)


def _merge_case(num_ranks: int, top_k: int, softcap: bool) -> CompileCase:
    arguments: dict[str, Argument] = {
        "packed": torch.int32,
        "ids": torch.int64,
        "logprobs": torch.float32,
        "num_ranks": num_ranks,
        "top_k": top_k,
        **dict.fromkeys(("scale", "softcap"), 1.0),
    }
    constants = {"HAS_SOFTCAP": softcap, "RANKS": num_ranks, "TOP_K": top_k}
    return CompileCase(merge_kernel, arguments, constants, num_warps=_MERGE_WARPS)
