"""Torch versions of SGLang's Triton launches on the serving path, with SGLang's own signatures.

Each function replaces exactly one engine function, which has a row in `contract.cpu_platform`; `hooks.py` installs
them. They are CPU-only and write the same values to the same places as the kernel they stand for.
"""

from __future__ import annotations

from typing import Any

import torch


def assign_req_to_token_pool(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Write each request's new slots into its row of the token table, in place.

    Replaces `mem_cache/allocation.assign_req_to_token_pool_func`. `out_cache_loc [sum(end - start)]`
    int64 is split over the requests in order: request b's part goes to `req_to_token[row_b, start_b:end_b]`.
    """
    starts, ends = start_offset[:batch_size].to(torch.int64), end_offset[:batch_size].to(torch.int64)
    rows, columns = _window_cells(req_pool_indices[:batch_size], starts, ends)
    req_to_token[rows, columns] = out_cache_loc[: rows.shape[0]].to(req_to_token.dtype)


def apply_token_mask(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    """Forbid in `logits [R, V]`, in place, the tokens whose bit of `vocab_mask [R, V / 32]` int32 is 0.

    Replaces `constrained/xgrammar_backend.XGrammarGrammarBackend.apply_vocab_mask`, which masks where a thinking budget
    is all that a request has of a grammar, and knows accelerators alone; of a grammar's own SGLang knows CPUs.
    """
    bits = vocab_mask.unsqueeze(2) >> torch.arange(32, dtype=torch.int32) & 1
    logits.masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, float("-inf"))


def last_slots(
    req_to_token: torch.Tensor, req_pool_indices_tensor: torch.Tensor, prefix_lens_tensor: torch.Tensor
) -> torch.Tensor:
    """`[B]` int64: the slot of each request's last token, -1 where it has none.

    Replaces `mem_cache/allocation.get_last_loc`, by which pages of several tokens are continued. The requests' rows of
    the table and the numbers of tokens that have a slot are `[B]` each.
    """
    columns = prefix_lens_tensor.to(torch.int64) - 1
    slots = req_to_token[req_pool_indices_tensor.to(torch.int64), columns.clamp(min=0)].to(torch.int64)
    return slots.masked_fill(columns < 0, -1)


def extend_cache_locs(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
    device: Any,
) -> torch.Tensor:
    """Read each request's window out of the token table: `[B * draft_token_num]` int64, requests in order.

    Stands for `kernels/ops/speculative/cache_locs.assign_extend_cache_locs_func` through the platform's
    hook. The window of request b is `req_to_token[row_b, start_b:end_b]`.
    """
    starts, ends = start_offset[:batch_size].to(torch.int64), end_offset[:batch_size].to(torch.int64)
    rows, columns = _window_cells(req_pool_indices[:batch_size], starts, ends)
    out = torch.zeros(batch_size * draft_token_num, dtype=torch.int64, device=device)
    out[: rows.shape[0]] = req_to_token[rows, columns].to(torch.int64)
    return out


def _window_cells(rows: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every table cell in `[start_b, end_b)`, requests in order: two `[M]` int64."""
    lengths = (ends - starts).clamp(min=0)
    total = int(lengths.sum())
    firsts = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths, output_size=total)
    cell_rows = torch.repeat_interleave(rows.to(torch.int64), lengths, output_size=total)
    return cell_rows, firsts + torch.arange(total, device=starts.device)
