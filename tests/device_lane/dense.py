"""Batches for the tests of the references, and the plainest attention to compare them with: one head at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 8


@dataclass(frozen=True)
class Paged:
    """Requests in a shuffled pool whose unowned slots are NaN. Page 0 is padding, and zero."""

    keys: torch.Tensor  # [pages, page size, KV_HEADS, HEAD_SIZE]
    values: torch.Tensor
    pages: torch.Tensor  # [B, pages of the longest request] int32, 0 behind a request's end
    kv_lens: torch.Tensor  # [B] int32

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.keys.shape[1]

    def slots(self, request: int) -> torch.Tensor:
        """[kv_len] int64, the slots of one request in order."""
        token = torch.arange(int(self.kv_lens[request]))
        return self.pages[request].long()[token // self.page_size] * self.page_size + token % self.page_size

    def owned(self, request: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [kv_len, KV_HEADS, HEAD_SIZE] of one request."""
        return self.keys.flatten(0, 1)[self.slots(request)], self.values.flatten(0, 1)[self.slots(request)]


def paged(kv_lens: Sequence[int], page_size: int, seed: int = 0) -> Paged:
    """Random keys and values of requests of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    width = max(1, *(-(-length // page_size) for length in kv_lens))
    num_pages = 1 + len(kv_lens) * width
    free = iter((torch.randperm(num_pages - 1, generator=generator) + 1).tolist())
    keys = torch.full((num_pages, page_size, KV_HEADS, HEAD_SIZE), math.nan)
    values = torch.full_like(keys, math.nan)
    keys[0] = values[0] = 0.0
    pages = torch.zeros(len(kv_lens), width, dtype=torch.int32)
    batch = Paged(keys, values, pages, torch.tensor(kv_lens, dtype=torch.int32))
    for request, length in enumerate(kv_lens):
        for page in range(-(-length // page_size)):
            pages[request, page] = next(free)
        slots = batch.slots(request)
        shape = (length, KV_HEADS, HEAD_SIZE)
        keys.view(-1, KV_HEADS, HEAD_SIZE)[slots] = torch.randn(shape, generator=generator)
        values.view(-1, KV_HEADS, HEAD_SIZE)[slots] = torch.randn(shape, generator=generator)
    return batch


def queries(num_rows: int, seed: int = 1) -> torch.Tensor:
    """[rows, HEADS, HEAD_SIZE] float32."""
    return torch.randn(num_rows, HEADS, HEAD_SIZE, generator=torch.Generator().manual_seed(seed))


def dense(
    q: torch.Tensor,  # [rows, heads, D]
    k: torch.Tensor,  # [keys, KV heads, D]
    v: torch.Tensor,  # [keys, KV heads, E]
    mask: torch.Tensor,  # [rows, keys] bool, True: may attend
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [rows, heads, E] and the natural log-sum-exp [rows, heads], in float64, a head at a time."""
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=torch.float64)
    lse = torch.zeros(q.shape[:2], dtype=torch.float64)
    for head in range(q.shape[1]):
        kv_head = head * k.shape[1] // q.shape[1]
        logits = q[:, head].double() @ k[:, kv_head].double().T * (q.shape[2] ** -0.5 if scale is None else scale)
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        weights = torch.where(mask, logits.exp(), 0.0)
        total = weights.sum(dim=1)
        if sinks is not None:
            total = total + sinks[head].double().exp()
        out[:, head] = (weights / total.clamp(min=1e-300)[:, None]) @ v[:, kv_head].double()
        lse[:, head] = total.log()
    return out.float(), lse.float()


def causal(num_rows: int, num_keys: int) -> torch.Tensor:
    """[rows, keys] bool, aligned to the bottom right corner."""
    return torch.ones(num_rows, num_keys, dtype=torch.bool).tril(num_keys - num_rows)


def ancestors(parents: Sequence[int]) -> torch.Tensor:
    """[N, N] bool: row i may attend to node j when j is i or one of its ancestors. The root's parent is -1."""
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


def indptr(lens: Sequence[int]) -> torch.Tensor:
    """[B + 1] int32, the prefix sum."""
    return torch.tensor([0, *lens]).cumsum(0).int()
