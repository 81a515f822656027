"""Attention over a pool of KV slots, in torch: what both references compute once they have checked their arguments.

Letters: B requests, T query rows of the batch, Q the most query rows of a request, K the most keys of a request,
S slots of the pool, H query heads, G KV heads (H is a multiple of G), D and E the head sizes of keys and values.

The keys of a request are gathered one slot at a time, so neither pages nor strides reach the arithmetic. Everything is
computed in float32, as the kernels accumulate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tests.device_lane.violations import LaneViolation, require


@dataclass(frozen=True)
class Requests:
    """Which rows and slots belong to which request, on the host's side of a door.

    Q side: row i of request b is row `q_starts[b] + i` of the batch. KV side: key k of request b lies in slot
    `slots[b, k]` of the pool. `allowed[b, i, k]` is True where the row may attend to the key, and False behind the ends
    of the request.
    """

    q_starts: torch.Tensor  # [B] int64
    q_lens: torch.Tensor  # [B] int64
    slots: torch.Tensor  # [B, K] int64, 0 behind the end of a request
    allowed: torch.Tensor  # [B, Q, K] bool
    padding: int  # slots below are the engine's padding slots, its first page


@dataclass(frozen=True)
class Scores:
    """How a score is made from a query and a key."""

    scale: float
    softcap: float = 0.0  # 0: off. Otherwise softcap * tanh(score / softcap)
    sinks: torch.Tensor | None = None  # [H], one more logit of each row, with no value


@dataclass(frozen=True)
class Attended:
    """The result of every query row; NaN in rows that belong to no request, which a kernel leaves unwritten."""

    out: torch.Tensor  # [T, H, E] of the query's dtype
    lse: torch.Tensor  # [T, H] float32, natural logarithm; -inf where a row attends to nothing


def attend(
    q: torch.Tensor,  # [T, H, D]
    keys: torch.Tensor,  # [S, G, D]
    values: torch.Tensor,  # [S, G, E]
    requests: Requests,
    scores: Scores,
) -> Attended:
    """Softmax attention of each request's rows over its own slots.

    Raises:
        LaneViolation: an attended key or value of a real slot is not finite.
    """
    attended = requests.allowed.any(dim=1)
    gathered_k = _gathered(keys, requests.slots, attended)
    gathered_v = _gathered(values, requests.slots, attended)
    _require_written(gathered_k, gathered_v, requests, attended)
    rows, is_row = _query_rows(requests)
    logits = _logits(q[rows.clamp(max=max(q.shape[0] - 1, 0))], gathered_k, requests.allowed, scores)
    lse = torch.logsumexp(logits, dim=-1)  # [B, G, H / G, Q]
    if scores.sinks is not None:
        lse = torch.logaddexp(lse, scores.sinks.float().view(1, keys.shape[1], -1, 1))
    weights = torch.exp(logits - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1))
    out = torch.einsum("bghqk,bkge->bqghe", weights, gathered_v).flatten(2, 3)
    return _scattered(q, out, lse, rows, is_row)


def merged(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two disjoint sets of keys from that over each: out [..., E], lse [...] of natural logarithms.

    NaN where both sets are empty, as in the kernels. +inf, FlashAttention 2's sign of an empty row, is taken for -inf.
    """
    lse_a = lse_a.float().masked_fill(lse_a == math.inf, -math.inf)
    lse_b = lse_b.float().masked_fill(lse_b == math.inf, -math.inf)
    top = torch.maximum(lse_a, lse_b)
    weight_a, weight_b = torch.exp(lse_a - top), torch.exp(lse_b - top)
    total = weight_a + weight_b
    out = out_a.float() * (weight_a / total).unsqueeze(-1) + out_b.float() * (weight_b / total).unsqueeze(-1)
    return out.to(out_a.dtype), torch.log(total) + top


def _gathered(pool: torch.Tensor, slots: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """[B, K, G, D] float32; 0 where no row attends, so that nothing of an unowned slot reaches a product."""
    return pool[slots].float().masked_fill(~attended[..., None, None], 0.0)


def _require_written(k: torch.Tensor, v: torch.Tensor, requests: Requests, attended: torch.Tensor) -> None:
    """Unowned slots of a poisoned pool are NaN. Padding slots may hold anything: graphs write padded rows there."""
    unwritten = ~(torch.isfinite(k).all(dim=(2, 3)) & torch.isfinite(v).all(dim=(2, 3)))
    _require_none(
        unwritten & attended & (requests.slots >= requests.padding),
        requests.slots,
        "attended slots hold finite keys and values, written by their owner",
    )


def _query_rows(requests: Requests) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers [B, Q] of the batch, and which of them are rows of their request."""
    offsets = torch.arange(requests.allowed.shape[1])
    is_row = offsets < requests.q_lens[:, None]
    return torch.where(is_row, requests.q_starts[:, None] + offsets, 0), is_row


def _logits(
    q: torch.Tensor,  # [B, Q, H, D]
    keys: torch.Tensor,  # [B, K, G, D] float32
    allowed: torch.Tensor,  # [B, Q, K] bool
    scores: Scores,
) -> torch.Tensor:
    """[B, G, H / G, Q, K] float32, -inf where not allowed. Query heads g*H/G to (g+1)*H/G-1 read KV head g."""
    grouped = q.float().unflatten(2, (keys.shape[2], -1))
    logits = torch.einsum("bqghd,bkgd->bghqk", grouped, keys) * scores.scale
    if scores.softcap > 0:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    return logits.masked_fill(~allowed[:, None, None], -math.inf)


def _scattered(
    q: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, rows: torch.Tensor, is_row: torch.Tensor
) -> Attended:
    num_rows, num_heads = q.shape[:2]
    all_out = torch.full((num_rows, num_heads, out.shape[-1]), math.nan, dtype=q.dtype)
    all_lse = torch.full((num_rows, num_heads), math.nan)
    picked = rows[is_row]
    all_out[picked] = out[is_row].to(q.dtype)
    all_lse[picked] = lse.flatten(1, 2).transpose(1, 2)[is_row]
    return Attended(all_out, all_lse)


def window(
    q_lens: torch.Tensor,  # [B] int64
    kv_lens: torch.Tensor,  # [B] int64
    left: int,
    right: int,
) -> torch.Tensor:
    """[B, Q, K] bool: row i may attend to keys i + kv_len - q_len - left to i + kv_len - q_len + right, inclusive.

    A negative bound is none. Causal attention is (-1, 0), aligned to the bottom right corner.
    """
    row = torch.arange(int(q_lens.max()) if q_lens.numel() else 0)[None, :, None]
    key = torch.arange(int(kv_lens.max()) if kv_lens.numel() else 0)[None, None, :]
    centre = row + (kv_lens - q_lens)[:, None, None]
    allowed = (row < q_lens[:, None, None]) & (key < kv_lens[:, None, None])
    if left >= 0:
        allowed = allowed & (key >= centre - left)
    if right >= 0:
        allowed = allowed & (key <= centre + right)
    return allowed


def require_slots(
    slots: torch.Tensor,  # [B, K] int64
    kv_lens: torch.Tensor,  # [B] int64
    num_slots: int,
    padding: int,
    attended: torch.Tensor | None = None,  # [B, K] bool
) -> None:
    """The slots in use lie in the pool, each once, and a request has either real slots or padding slots.

    A token that no row attends to, outside of its window, may have lost its slot and have a padding slot in its place.

    Slots below `padding` are the engine's padding slots (its first page). A request of padding slots alone is a padded
    row of a graph. Requests may share slots: the prefix cache does.

    Raises:
        LaneViolation: naming the request, the key and the slot.
    """
    used = torch.arange(slots.shape[1]) < kv_lens[:, None]
    _require_none(used & ((slots < 0) | (slots >= num_slots)), slots, f"slots lie in the pool of {num_slots} slots")
    is_padding = slots < padding
    if attended is not None:
        used = used & (attended | ~is_padding)
    mixed = used & is_padding & (used & ~is_padding).any(dim=1, keepdim=True)
    _require_none(mixed, slots, "a request with real slots has no padding slot among them")
    marked = torch.where(used & ~is_padding, slots, -1 - torch.arange(slots.shape[1]))
    ordered, order = marked.sort(dim=1, stable=True)
    again = torch.zeros_like(used)
    again.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
    _require_none(again, slots, "a request has each slot once")


def _require_none(broken: torch.Tensor, slots: torch.Tensor, rule: str) -> None:
    if bool(broken.any()):
        request, key = (int(index) for index in broken.nonzero()[0])
        raise LaneViolation(rule, f"request {request} has key {key} in slot {int(slots[request, key])}")


def require_indptr(indptr: torch.Tensor, batch_size: int, name: str) -> torch.Tensor:
    """The host's int64 copy of a prefix sum [batch_size + 1] of int32.

    Raises:
        LaneViolation: wrong dtype or length, not from 0, or not monotone.
    """
    require(indptr.dtype == torch.int32, f"{name} is int32", indptr.dtype)
    require(indptr.shape == (batch_size + 1,), f"{name} has {batch_size + 1} entries", tuple(indptr.shape))
    host = indptr.long().cpu()
    require(int(host[0]) == 0, f"{name} starts at 0", int(host[0]))
    require(bool((host.diff() >= 0).all()), f"{name} is monotone", host.tolist())
    return host
