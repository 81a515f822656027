"""The experts that a target's routers chose for each token, which SGLang keeps by KV slot for who asks for them.

A verify fills the window's slots node by node (state_capturer/base.py). What an accepted node's routers chose goes
where its keys and values go, to the slot of its depth; SGLang reads an answer's rows by the slots of its tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from sglang.srt.runtime_context import get_schedule
from sglang.srt.state_capturer.routed_experts import get_global_experts_capturer

from ddtree_sglang.engine.stages.kv_window import RoundWindow
from ddtree_sglang.exceptions import DDTreeConfigError


def make_capture_room(num_rows: int) -> None:
    """Enlarge SGLang's buffer of a forward, which it sizes without a tree, where the largest verify has more rows.

    It is asked for anew in each forward, so that graphs that are captured afterwards write to the new one.

    Args:
        num_rows: nodes of all requests in the largest verify.

    Raises:
        DDTreeConfigError: prefills come whole, so that one longer than the buffer would end the scheduler.
    """
    capturer = get_global_experts_capturer()
    if capturer is None:
        return
    if (size := int(get_schedule().chunked_prefill_size)) <= 0:
        raise DDTreeConfigError(
            f"--enable-return-routed-experts needs a --chunked-prefill-size above 0, got {size}: SGLang's buffer of a "
            "forward is as long; give one, or remove --enable-return-routed-experts."
        )
    if num_rows <= (num_now := len(capturer.device_cache.buffer)):
        return
    capturer.device_cache.buffer = _longer(capturer.device_cache.buffer, num_rows)
    # Of expert-parallel transports, which have each rank's rows one after the other.
    if (gathered := getattr(capturer, "gather_buffer", None)) is not None:
        capturer.gather_buffer = _longer(gathered, num_rows * (len(gathered) // num_now))


def _longer(buffer: torch.Tensor, num_rows: int) -> torch.Tensor:
    return buffer.new_zeros((num_rows, *buffer.shape[1:]))


def experts_of_path(target_out: Any, window: RoundWindow, rows: torch.Tensor) -> Any:
    """What the verify's routers chose, for the slots that the accepted path's keys are in after the round.

    Args:
        target_out: the verify's result.
        window: the round's slots.
        rows: `[B, L]` int64, rows of the flat verify batch, those of the accepted nodes first; what follows lands in
            slots that hold no token yet.

    Returns:
        What is on its way to the host, None if nothing is captured. Under synchronous scheduling the rows are there
        already, and are moved there.
    """
    captured, slots = target_out.routed_experts_output, window.context_slots
    if captured is not None:
        chosen = captured.topk.index_select(0, rows.view(-1))
        return dataclasses.replace(captured, out_cache_loc=slots.reshape(-1), topk=chosen)
    capturer = get_global_experts_capturer()
    if capturer is not None:
        cells = capturer.host_cache.buffer
        sources = window.inputs.node_slots.view(-1)[rows]
        cells[slots.cpu()] = cells[sources.cpu()]
    return None
