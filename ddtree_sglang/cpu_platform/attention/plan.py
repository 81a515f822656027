"""Everything about one forward pass that all its layers share: KV slots, lengths and masks, computed once.

Two shapes of work exist. A *uniform* pass has the same number of queries for every request (decoding: 1;
verification and drafting: the window) and runs as one padded batch. A *ragged* pass (prefill) has any number
of new tokens per request and runs request by request. Invariant: a padded key column is masked for every
query and points at slot 0, which SGLang reserves for padding, so it can never bring a stale value into a
result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch

from ddtree_sglang.cpu_platform.attention import masks


class WindowKind(Enum):
    """What the queries of a uniform pass may see of their own window."""

    CAUSAL = "causal"
    FULL = "full"


@dataclass(frozen=True)
class KeySlots:
    """Where the keys of a padded batch lie in the pool.

    `index [B * L]` int64 row numbers, or `start` when the rows of a single request are consecutive, so
    that a view replaces the copy.
    """

    index: torch.Tensor  # [B * L] int64
    start: int | None
    batch_size: int
    num_keys: int  # L

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows [slots, kv_heads, d]` -> `[B, L, kv_heads, d]`."""
        if self.start is not None:
            return rows[self.start : self.start + self.num_keys].unsqueeze(0)
        return rows.index_select(0, self.index).view(self.batch_size, self.num_keys, *rows.shape[1:])


@dataclass(frozen=True)
class UniformPlan:
    """One pass with Q queries for each of B requests."""

    slots: KeySlots
    prefix_lens: torch.Tensor  # [B] int64, keys before the window
    num_queries: int  # Q, also the window's length
    positions: torch.Tensor | None  # [B, Q] int64, needed only by sliding windows
    tree_window: torch.Tensor | None  # [B, Q, Q] bool, ancestors of each node; None for a chain
    dtype: torch.dtype
    _bias_cache: dict[tuple[WindowKind, int, int], torch.Tensor | None] = field(default_factory=dict)

    def bias(self, kind: WindowKind, window_size: int, repeats: int) -> torch.Tensor | None:
        """Additive mask `[B, 1, Q * repeats, L]`, or `None` when every query may see every key.

        `window_size` is a sliding window in tokens, -1 for none. `repeats` rows are made per query, for
        the query heads that share a KV head. Layers of the same kind share one mask.
        """
        key = (kind, window_size, repeats)
        if key not in self._bias_cache:
            self._bias_cache[key] = self._build_bias(kind, window_size, repeats)
        return self._bias_cache[key]

    def _build_bias(self, kind: WindowKind, window_size: int, repeats: int) -> torch.Tensor | None:
        allowed = masks.window_mask(self.prefix_lens, self._window(kind), self.slots.num_keys)
        if window_size >= 0:
            allowed = allowed & self._sliding(window_size)
        if bool(allowed.all()):
            return None
        return masks.additive(allowed.repeat_interleave(repeats, dim=1).unsqueeze(1), self.dtype)

    def _window(self, kind: WindowKind) -> torch.Tensor:
        if kind is WindowKind.FULL:
            return masks.full_window(self.num_queries, self.prefix_lens.device)
        if self.tree_window is not None:
            return self.tree_window
        return masks.causal_window(self.num_queries, self.prefix_lens.device)

    def _sliding(self, window_size: int) -> torch.Tensor:
        columns = torch.arange(self.slots.num_keys, device=self.prefix_lens.device)
        chain = self.prefix_lens[:, None] + torch.arange(self.num_queries, device=self.prefix_lens.device)
        queries = chain
        if self.positions is not None:
            # By its place in the row, which begins later than the context where a drafter sees the last tokens alone.
            queries = self.positions - self.positions[:, :1] + self.prefix_lens[:, None]
        offsets = (columns[None, :] - self.prefix_lens[:, None]).clamp(max=self.num_queries - 1)
        in_window = queries.gather(1, offsets.clamp(min=0))
        keys = torch.where(offsets >= 0, in_window, columns[None, :].expand_as(offsets))
        return masks.sliding_mask(queries, keys, window_size)


@dataclass(frozen=True)
class RequestSpan:
    """One request of a prefill: queries `[query_start, query_end)` of the packed batch and their keys."""

    query_start: int
    query_end: int
    prefix_len: int
    slots: KeySlots  # prefix and new tokens
    dtype: torch.dtype
    _bias_cache: dict[tuple[WindowKind, int], torch.Tensor] = field(default_factory=dict)

    @property
    def is_plain_causal(self) -> bool:
        """True when the kernel's own causal rule fits: nothing is cached before the new tokens."""
        return self.prefix_len == 0

    def bias(self, kind: WindowKind, window_size: int) -> torch.Tensor:
        """Additive mask `[1, 1, new tokens, keys]`."""
        key = (kind, window_size)
        if key not in self._bias_cache:
            self._bias_cache[key] = self._build_bias(kind, window_size)
        return self._bias_cache[key]

    def _build_bias(self, kind: WindowKind, window_size: int) -> torch.Tensor:
        queries = torch.arange(self.prefix_len, self.slots.num_keys)[None]
        keys = torch.arange(self.slots.num_keys)[None]
        allowed = keys[:, None, :] <= queries[:, :, None]
        if kind is WindowKind.FULL:
            allowed = torch.ones_like(allowed)
        if window_size >= 0:
            allowed = allowed & masks.sliding_mask(queries, keys, window_size)
        return masks.additive(allowed.unsqueeze(1), self.dtype)


@dataclass(frozen=True)
class RaggedPlan:
    """One prefill pass: requests one after the other, packed."""

    spans: tuple[RequestSpan, ...]


def key_slots(
    req_to_token: torch.Tensor,  # [requests, context] int32, SGLang's token table
    rows: torch.Tensor,  # [B] int64, the table row of each request
    key_lens: list[int],  # B host integers, keys of each request
) -> KeySlots:
    """Look up the pool rows of each request's keys."""
    batch_size, num_keys = len(key_lens), max(key_lens)
    index = req_to_token[rows, :num_keys].to(torch.int64)
    if batch_size == 1:
        return KeySlots(index.view(-1), _consecutive_start(index[0]), 1, num_keys)
    if min(key_lens) < num_keys:
        lens = torch.tensor(key_lens, dtype=torch.int64)
        index.masked_fill_(torch.arange(num_keys)[None, :] >= lens[:, None], 0)
    return KeySlots(index.view(-1), None, batch_size, num_keys)


def _consecutive_start(index: torch.Tensor) -> int | None:
    """First row when `index [L]` int64 counts up by one, else `None`."""
    first, last = int(index[0]), int(index[-1])
    if last - first != index.shape[0] - 1:
        return None
    expected = torch.arange(first, last + 1, dtype=torch.int64)
    return first if torch.equal(index, expected) else None


def plan_uniform(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    prefix_lens: torch.Tensor,
    num_queries: int,
    dtype: torch.dtype,
    positions: torch.Tensor | None = None,
    tree_window: torch.Tensor | None = None,
) -> UniformPlan:
    """Plan decoding (Q = 1), verification or drafting; `prefix_lens [B]` int64 excludes the new tokens."""
    key_lens = [length + num_queries for length in prefix_lens.tolist()]
    return UniformPlan(
        slots=key_slots(req_to_token, rows, key_lens),
        prefix_lens=prefix_lens.to(torch.int64),
        num_queries=num_queries,
        positions=None if positions is None else positions.view(len(key_lens), num_queries),
        tree_window=tree_window,
        dtype=dtype,
    )


def plan_ragged(
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    prefix_lens: list[int],
    new_lens: list[int],
    dtype: torch.dtype,
) -> RaggedPlan:
    """Plan a prefill; B host integers of cached and of new tokens per request."""
    spans, start = [], 0
    for index, (prefix_len, new_len) in enumerate(zip(prefix_lens, new_lens, strict=True)):
        if new_len == 0:
            continue
        slots = key_slots(req_to_token, rows[index : index + 1], [prefix_len + new_len])
        spans.append(RequestSpan(start, start + new_len, prefix_len, slots, dtype))
        start += new_len
    return RaggedPlan(tuple(spans))
