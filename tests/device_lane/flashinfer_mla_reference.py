"""FlashInfer's wrapper for latent attention, as SGLang's backend calls it without graphs, in torch.

It takes a plan of lengths and whether rows are causal. It has no argument for a mask (flashinfer/mla, `plan`, `run`).
"""

from __future__ import annotations

from typing import Any

import torch

from tests.device_lane.doors import kernel_door
from tests.device_lane.paged_attention import Requests, Scores, attend, require_indptr, require_slots, window
from tests.device_lane.violations import require


class BatchMLAPagedAttentionWrapper:
    """A plan and its runs; letters as in `paged_attention`."""

    def __init__(self, float_workspace_buffer: torch.Tensor, backend: str = "auto") -> None:
        self.planned: tuple[Requests, Scores] | None = None

    def plan(
        self,
        qo_indptr: torch.Tensor,  # [B + 1] int32
        kv_indptr: torch.Tensor,  # [B + 1] int32
        kv_indices: torch.Tensor,  # [slots of all requests] int32
        kv_len_arr: torch.Tensor,  # [B] int32
        num_heads: int,
        head_dim_ckv: int,
        head_dim_kpe: int,
        page_size: int,
        causal: bool,
        sm_scale: float,
        *dtypes: Any,
    ) -> None:
        """Keep which rows see which slots.

        Raises:
            LaneViolation: an argument breaks the contract.
        """
        self.planned = _planned(qo_indptr, kv_indptr, kv_indices, kv_len_arr, page_size, causal), Scores(sm_scale)

    def run(
        self,
        q_nope: torch.Tensor,  # [T, H, E]
        q_pe: torch.Tensor,  # [T, H, D - E]
        ckv_cache: torch.Tensor,  # [S, 1, E], keys and values
        kpe_cache: torch.Tensor,  # [S, 1, D - E]
        out: torch.Tensor,  # [T, H, E], written
        return_lse: bool = False,
    ) -> torch.Tensor:
        """Attend as planned.

        Raises:
            LaneViolation: nobody planned, or a log-sum-exp is asked for.
        """
        require(self.planned is not None and not return_lse, "a run is planned, and gives no log-sum-exp", return_lse)
        assert self.planned is not None
        _run(q_nope, q_pe, ckv_cache, kpe_cache, out, *self.planned)
        return out


@kernel_door
def _planned(
    qo_indptr: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_len_arr: torch.Tensor,
    page_size: int,
    causal: bool,
) -> Requests:
    batch_size = len(kv_len_arr)
    starts, kv_starts = require_indptr(qo_indptr, batch_size, "qo_indptr"), require_indptr(kv_indptr, batch_size, "kv")
    q_lens, kv_lens = starts.diff(), kv_starts.diff()
    require(page_size == 1, "SGLang's pages have one token here", page_size)
    require(kv_lens.tolist() == kv_len_arr.tolist(), "kv_len_arr is what kv_indptr says", kv_len_arr.tolist())
    allowed = window(q_lens, kv_lens, -1, 0 if causal else -1)
    key = torch.arange(allowed.shape[2])
    slots = torch.where(key < kv_lens[:, None], kv_starts[:-1, None] + key, 0)
    return Requests(starts[:-1], q_lens, kv_indices.long().cpu()[slots], allowed, padding=1)


@kernel_door
def _run(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    ckv_cache: torch.Tensor,
    kpe_cache: torch.Tensor,
    out: torch.Tensor,
    requests: Requests,
    scores: Scores,
) -> None:
    kv_lens = requests.allowed.any(dim=1).sum(dim=1)
    require_slots(requests.slots, kv_lens, ckv_cache.shape[0], requests.padding)
    keys = torch.cat([ckv_cache, kpe_cache], dim=-1)
    out.copy_(attend(torch.cat([q_nope, q_pe], dim=-1), keys, ckv_cache, requests, scores).out)
