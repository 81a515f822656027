"""The kernels of `candidates_triton`: scan a vocabulary in groups, select a row's best tokens, merge shards.

A token's key orders as core does: an int32 in the order of float32 logits, NaN as -inf, then the id turned around.
Selecting finds the K-th largest key bit by bit, counting the keys that reach a threshold; only the winners are sorted.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
# A finite stand-in for infinite maxima, so that no infinity is subtracted from itself.
_HUGE: tl.constexpr = tl.constexpr(3.0e38)
_MAX_ID: tl.constexpr = tl.constexpr(2**31 - 1)
_NOTHING: tl.constexpr = tl.constexpr(-(2**63))


@triton.jit
def _transformed(logits, scale, softcap, HAS_SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Raw logits in float32 as the checkpoint means them: scaled, then capped."""
    values = logits * scale
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)); an infinite or vanishing exponential gives 1 and -1.
        values = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(values * (2.0 * _LOG2_E / softcap))))
    return values


@triton.jit
def _finite(values):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(values, -_HUGE), _HUGE)


@triton.jit
def _ordered(logits):  # type: ignore[no-untyped-def]
    """int32 keys in the order of float32 logits: NaN as -inf, both zeros equal; -2^31 is below every key."""
    logits = tl.where(logits == logits, logits, float("-inf"))
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _packed(ordered, tokens):  # type: ignore[no-untyped-def]
    """int64 keys, larger for what comes earlier: the logit's key, then the id, turned around."""
    return (ordered.to(tl.int64) << 32) | (tokens ^ _MAX_ID).to(tl.int64)


@triton.jit
def _unpacked(keys):  # type: ignore[no-untyped-def]
    """Bits of the float32 logits, and ids; of `_NOTHING`, whatever."""
    ordered = (keys >> 32).to(tl.int32)
    return ordered ^ ((ordered >> 31) & 0x7FFFFFFF), (keys & _MAX_ID).to(tl.int32) ^ _MAX_ID


@triton.jit
def _kth_largest(keys, count, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest threshold that at least `count` of the signed keys of so many bits reach; -2^(BITS - 1) for none."""
    # The highest bit of a signed number is set for negative ones: the first step goes up to 0.
    threshold = tl.where(tl.sum((keys >= 0).to(tl.int32), axis=0) >= count, 0, -(2 ** (BITS - 1)))
    step = threshold * 0 + (1 << (BITS - 2))
    for _ in range(BITS - 1):
        reached = tl.sum((keys >= threshold + step).to(tl.int32), axis=0)
        threshold = tl.where(reached >= count, threshold + step, threshold)
        step = step >> 1
    return threshold


@triton.jit
def _places(keys, threshold, count):  # type: ignore[no-untyped-def]
    """Which keys are the `count` largest, the first among equals, and the place of each in the order they stand."""
    above, equal = (keys > threshold).to(tl.int32), (keys == threshold).to(tl.int32)
    # Both are counted by one scan, 16 bits each: there are at most 2^15 keys.
    both = (above << 16) | equal
    before = tl.cumsum(both, axis=0) - both
    above_before, equal_before = before >> 16, before & 0xFFFF
    room = count - tl.sum(above, axis=0)
    taken = (above > 0) | ((equal > 0) & (equal_before < room))
    return taken, above_before + tl.minimum(equal_before, room)


@triton.jit
def _log_sum_exp2(values):  # type: ignore[no-untyped-def]
    """log2 of the sum of 2^values; NaN where one is NaN, -inf where all are -inf."""
    largest = _finite(tl.max(tl.where(values == values, values, float("-inf")), axis=0))
    return largest + tl.log2(tl.sum(tl.exp2(values - largest), axis=0))


@triton.jit
def _smaller(a, b):  # type: ignore[no-untyped-def]
    return tl.minimum(a, b)


@triton.jit
def _load_tile(row_logits, tokens, start, end, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile from `start`, -inf behind `end`."""
    # Two loads, because only the one without a mask is a vector load whatever the vocabulary's size.
    if start + TILE <= end:
        tile = tl.load(row_logits + start + tokens)
    else:
        tile = tl.load(row_logits + start + tokens, mask=start + tokens < end, other=float("-inf"))
    return tile


@triton.jit(do_not_specialize=["tiles_per_chunk"])
def scan_kernel(  # type: ignore[no-untyped-def]
    logits,  # [R, V] of the head's dtype, rows `row_stride` apart
    group_max,  # [R, groups] float32, raw
    chunk_lse,  # [R, chunks] float32, of transformed logits, base 2
    row_stride,
    vocab_size,
    num_groups,
    tiles_per_chunk,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,  # tokens of a group
    TILE: tl.constexpr,  # tokens of a tile, a multiple of GROUP
):
    GROUPS: tl.constexpr = TILE // GROUP
    chunk, row = tl.program_id(0), tl.program_id(1)
    groups = tl.arange(0, GROUPS)
    tokens = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    row_logits = logits + row.to(tl.int64) * row_stride
    row_max = group_max + row.to(tl.int64) * num_groups
    # Each group of the tile keeps a maximum of its own, and each token a sum, so that no step waits for other lanes.
    largest = tl.full([GROUPS], -_HUGE, tl.float32)
    sums = tl.zeros([GROUPS, GROUP], tl.float32)
    begin = chunk * tiles_per_chunk * TILE
    end = tl.minimum(begin + tiles_per_chunk * TILE, vocab_size)
    tile = _load_tile(row_logits, tokens, begin, end, TILE)
    for start in range(begin, end, TILE):
        raw = tile.to(tl.float32)
        # The next tile is under way while this one is worked on; behind the chunk's end nothing is read.
        tile = _load_tile(row_logits, tokens, start + TILE, end, TILE)
        best = tl.max(raw, axis=1)  # a NaN gives way to any number
        tl.store(row_max + start // GROUP + groups, best, mask=start // GROUP + groups < num_groups)
        values = _transformed(raw, scale, softcap, HAS_SOFTCAP)
        if HAS_SOFTCAP:
            # A cap makes a number of the -inf behind the vocabulary's end.
            values = tl.where(start + tokens < end, values, float("-inf"))
        highest = _finite(tl.maximum(largest, _transformed(best, scale, softcap, HAS_SOFTCAP) * _LOG2_E))
        decay = tl.exp2(largest - highest)
        sums = sums * decay[:, None] + tl.exp2(values * _LOG2_E - highest[:, None])
        largest = highest
    overall = tl.max(largest, axis=0)
    total = tl.sum(tl.sum(sums, axis=1) * tl.exp2(largest - overall), axis=0)
    num_chunks = tl.num_programs(0)
    tl.store(chunk_lse + row.to(tl.int64) * num_chunks + chunk, overall + tl.log2(total))


@triton.jit
def _store_candidates(  # type: ignore[no-untyped-def]
    keys,  # [TOP_K] int64, descending: key of the logit, then the id counted from the end
    lse,  # log-partition, base e
    ids,  # of the row: [K] int64
    logprobs,  # of the row: [K] float32
    top_k,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    TOP_K: tl.constexpr,
):
    ranks = tl.arange(0, TOP_K)
    bits, token = _unpacked(keys)
    found = (keys > _NOTHING) & (token < _MAX_ID)
    values = _transformed(bits.to(tl.float32, bitcast=True), scale, softcap, HAS_SOFTCAP)
    if HAS_SOFTCAP:
        # The exponential is approximate: two neighbours may come out the wrong way round by a last digit.
        values = tl.associative_scan(values, 0, _smaller)
    in_row = ranks < top_k
    tl.store(ids + ranks, tl.where(found, token, 0).to(tl.int64), mask=in_row)
    tl.store(logprobs + ranks, tl.where(found, values - lse, float("-inf")), mask=in_row)


@triton.jit(do_not_specialize=["num_chunks"])
def select_kernel(  # type: ignore[no-untyped-def]
    logits,  # [R, V] of the head's dtype, rows `row_stride` apart
    group_max,  # [R, groups] float32
    chunk_lse,  # [R, chunks] float32, base 2
    picked,  # [R, TOP_K] int32, scratch: groups
    winners,  # [R, TOP_K] int32, scratch: where the winners were read, in no order
    ids,  # [R, K] int64, or of a shard [R, 2 K + 1] int32
    logprobs,  # [R, K] float32, or of a shard nothing
    row_stride,
    vocab_size,
    vocab_start,
    num_groups,
    num_chunks,
    top_k,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    IS_SHARD: tl.constexpr,
    EVERY_GROUP: tl.constexpr,  # there are no more than K
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,  # power of two, at least `num_groups`
    CHUNKS: tl.constexpr,  # power of two, at least `num_chunks`
    TOP_K: tl.constexpr,  # power of two, at least K
    BITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ranks = tl.arange(0, TOP_K)
    row_logits = logits + row * row_stride
    lowest: tl.constexpr = -(2 ** (BITS - 1))

    num_picked = tl.minimum(top_k, num_groups)
    if EVERY_GROUP:
        group = ranks
    else:
        groups = tl.arange(0, GROUPS)
        best = tl.load(group_max + row * num_groups + groups, mask=groups < num_groups, other=float("-inf"))
        keys = tl.where(groups < num_groups, _ordered(best) >> (32 - BITS), lowest)
        taken, place = _places(keys, _kth_largest(keys, num_picked, BITS), num_picked)
        tl.store(picked + row * TOP_K + place, groups, mask=taken)
        tl.debug_barrier()  # other threads load what was stored
        group = tl.load(picked + row * TOP_K + ranks, mask=ranks < num_picked, other=0)
    tokens = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_token = (ranks < num_picked)[:, None] & (tokens < vocab_size)
    raw = tl.load(row_logits + tokens, mask=is_token, other=float("-inf")).to(tl.float32)
    keys = tl.where(is_token, _ordered(raw) >> (32 - BITS), lowest)
    keys = tl.reshape(keys, [TOP_K * GROUP])
    num_found = tl.minimum(top_k, vocab_size)
    taken, place = _places(keys, _kth_largest(keys, num_found, BITS), num_found)
    # Where a winner was read is kept, and its logit read again: those of all would take twice the registers.
    tl.store(winners + row * TOP_K + place, tl.arange(0, TOP_K * GROUP), mask=taken)
    tl.debug_barrier()

    is_winner = ranks < num_found
    tokens = tl.load(winners + row * TOP_K + ranks, mask=is_winner, other=0)
    if not EVERY_GROUP:
        group = tl.load(picked + row * TOP_K + tokens // GROUP, mask=is_winner, other=0)
        tokens = group * GROUP + tokens % GROUP
    raw = tl.load(row_logits + tokens, mask=is_winner, other=0.0).to(tl.float32)
    packed = tl.where(is_winner, _packed(_ordered(raw), vocab_start + tokens), _NOTHING)
    key = tl.sort(packed, descending=True)

    chunks = tl.arange(0, CHUNKS)
    partial = tl.load(chunk_lse + row * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf"))
    lse = _log_sum_exp2(partial) * _LN_2
    if IS_SHARD:
        words = ids + row * (2 * top_k + 1)
        found, in_row = key > _NOTHING, ranks < top_k
        bits, token = _unpacked(key)
        nothing = tl.full([TOP_K], float("-inf"), tl.float32).to(tl.int32, bitcast=True)
        tl.store(words + ranks, tl.where(found, bits, nothing), mask=in_row)
        tl.store(words + top_k + ranks, tl.where(found, token, _MAX_ID), mask=in_row)
        tl.store(words + 2 * top_k, lse.to(tl.int32, bitcast=True))
    else:
        _store_candidates(
            key, lse, ids + row * top_k, logprobs + row * top_k, top_k, scale, softcap, HAS_SOFTCAP, TOP_K
        )


@triton.jit
def merge_kernel(  # type: ignore[no-untyped-def]
    packed,  # [ranks, R, 2 K + 1] int32: raw logits as float32, ids, log-partition as float32
    ids,  # [R, K] int64
    logprobs,  # [R, K] float32
    num_ranks,
    top_k,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    RANKS: tl.constexpr,  # power of two, at least `num_ranks`
    TOP_K: tl.constexpr,  # power of two, at least K
):
    row, num_rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    width = 2 * top_k + 1
    ranks, places = tl.arange(0, RANKS), tl.arange(0, TOP_K)
    words = packed + (ranks * num_rows + row) * width
    is_candidate = (ranks < num_ranks)[:, None] & (places < top_k)[None, :]
    raw = tl.load(words[:, None] + places[None, :], mask=is_candidate, other=0).to(tl.float32, bitcast=True)
    tokens = tl.load(words[:, None] + top_k + places[None, :], mask=is_candidate, other=_MAX_ID)
    keys = tl.reshape(tl.where(is_candidate, _packed(_ordered(raw), tokens), _NOTHING), [RANKS * TOP_K])
    lse = tl.load(words + 2 * top_k, mask=ranks < num_ranks, other=0).to(tl.float32, bitcast=True)
    lse = _log_sum_exp2(tl.where(ranks < num_ranks, lse * _LOG2_E, float("-inf"))) * _LN_2
    _store_candidates(
        tl.topk(keys, TOP_K), lse, ids + row * top_k, logprobs + row * top_k, top_k, scale, softcap, HAS_SOFTCAP, TOP_K
    )
