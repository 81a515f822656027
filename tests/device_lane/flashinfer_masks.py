"""FlashInfer's packed masks: eight cells to a byte, each request from a byte of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from tests.device_lane.doors import kernel_door
from tests.device_lane.paged_attention import require_indptr
from tests.device_lane.violations import require


def unpacked_mask(
    mask: torch.Tensor,  # uint8, bits of each request from a byte of its own, the lowest bit first
    mask_indptr: torch.Tensor,  # [B + 1] int32, in bytes
    q_lens: torch.Tensor,
    kv_lens: torch.Tensor,
    shape: Sequence[int],  # B, Q, K
) -> torch.Tensor:
    """[B, Q, K] bool: bit i * kv_len + k of a request says whether row i may attend to key k.

    Raises:
        LaneViolation: a request's bytes are not those of its rows times its keys.
    """
    require(mask.dtype == torch.uint8, "a packed mask is uint8", mask.dtype)
    starts = require_indptr(mask_indptr, q_lens.numel(), "mask_indptr")
    bytes_needed = (q_lens * kv_lens + 7) // 8
    fits = starts.diff().tolist() == bytes_needed.tolist()
    require(fits, "a packed mask has a bit for each row and key", (starts.diff().tolist(), bytes_needed.tolist()))
    require(int(starts[-1]) <= mask.numel(), "mask_indptr ends within the mask", (int(starts[-1]), mask.numel()))
    row, key = torch.arange(shape[1])[None, :, None], torch.arange(shape[2])[None, None, :]
    inside = (row < q_lens[:, None, None]) & (key < kv_lens[:, None, None])
    bit = torch.where(inside, row * kv_lens[:, None, None] + key, 0)
    byte = mask[(starts[:-1, None, None] + bit // 8).clamp(max=mask.numel() - 1)]
    return inside & ((byte >> (bit % 8).to(torch.uint8)) & 1).bool()


def _sglang_captures() -> bool:
    """Whether SGLang is capturing; no process captures that has not imported what does."""
    module = sys.modules.get("sglang.srt.model_executor.runner_utils.capture_mode")
    return module is not None and bool(module.get_is_capture_mode())


@kernel_door
def segment_packbits(
    x: torch.Tensor,  # [bits] bool or uint8
    indptr: torch.Tensor,  # [B + 1] int32, in bits
    indptr_new: torch.Tensor,  # [B + 1] int32, in bytes
    bitorder: str,
    y: torch.Tensor,  # [indptr_new[B]] uint8, written
) -> None:
    """Pack each segment into bytes of its own.

    Raises:
        LaneViolation: the segments are not the whole of `x`.
    """
    starts = require_indptr(indptr, indptr.numel() - 1, "the mask's indptr")
    bytes_from = require_indptr(indptr_new, indptr.numel() - 1, "the packed mask's indptr")
    size = (int(starts[-1]), x.numel())
    # While SGLang captures, its plans are for the whole buffer of masks, whose rest belongs to larger batches.
    fits = size[0] <= size[1] if _sglang_captures() else size[0] == size[1]
    require(fits, "a mask has a cell for each row and key of the batch", f"needed {size[0]}, has {size[1]}")
    for segment in range(indptr.numel() - 1):
        bits = x[starts[segment] : starts[segment + 1]]
        packbits(bits, bitorder, y[bytes_from[segment] : bytes_from[segment + 1]])


@kernel_door
def packbits(x: torch.Tensor, bitorder: str, y: torch.Tensor) -> None:
    """Eight cells to a byte of `y`; the last byte is filled with 0."""
    bits = torch.zeros(y.numel() * 8, dtype=torch.int32)
    bits[: x.numel()] = x.bool().int()
    order = torch.arange(8) if bitorder == "little" else 7 - torch.arange(8)
    y.copy_((bits.view(-1, 8) << order).sum(dim=1).to(torch.uint8))
