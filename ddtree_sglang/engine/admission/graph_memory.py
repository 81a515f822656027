"""What CUDA graphs of a tree need beside the KV pool, said before anything is loaded.

SGLang sizes a backend's graph buffers for the largest captured batch, each of whose N nodes could read the whole
context, and takes them from what `--mem-fraction-static` leaves. Its own reserve counts 2 MiB a request
(arg_groups/memory_hook.py, reserve_for_graph_mb), which is right for one token a request. The formulas are those of
each backend's `init_cuda_graph_state`; graphs' own activations, about as large as an eager forward's, come on top.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.spec import ALGORITHM

logger = logging.getLogger(__name__)

GIB = 1 << 30
LARGE = 4 * GIB
"""Bytes from which the sizes are a warning where the GPU's memory is not known."""


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """Bytes of one rank."""

    mask: int = 0
    indices: int = 0  # page tables, or indices of keys and values
    partials: int = 0  # of attention that is split over the prefix
    logits: int = 0

    def __add__(self, other: BufferSizes) -> BufferSizes:
        """Field by field."""
        return BufferSizes(
            self.mask + other.mask,
            self.indices + other.indices,
            self.partials + other.partials,
            self.logits + other.logits,
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.mask + self.indices + self.partials + self.logits


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What the sizes follow from."""

    max_batch: int  # most requests of a captured graph
    context_len: int
    num_heads: int  # query heads of one rank
    head_dim: int
    kv_splits: int  # --triton-attention-num-kv-splits
    has_window: bool = False  # some of the target's layers have a sliding window

    def backend(self, name: str, width: int, is_draft: bool = False) -> BufferSizes:
        """Buffers of one attention backend whose graphs have `width` tokens a request."""
        tokens, cells = self.max_batch * width, self.max_batch * width * (self.context_len + width)
        if name == "triton":  # triton_backend.py
            partials = 4 * tokens * self.num_heads * self.kv_splits * (self.head_dim + 1)
            return BufferSizes(0 if is_draft else cells, 8 * tokens * self.context_len, partials)
        if name == "flashinfer":  # flashinfer_backend.py
            # Layers with a window have indices of their own; of the mask's bytes they have a half.
            wrappers = 2 if self.has_window and not is_draft else 1
            return BufferSizes(tokens * self.context_len, 4 * wrappers * tokens * self.context_len)
        # flashattention_backend.py: six page tables for a tree, and one that is a row of nodes for each; four for a
        # chain.
        if is_draft or width == 1:
            return BufferSizes(indices=16 * self.max_batch * self.context_len)
        indices = 24 * self.max_batch * self.context_len + 4 * tokens * width
        # A window is placed by each node's position, so each node has a page table of the whole context.
        return BufferSizes(cells, indices + 4 * cells if self.has_window else indices)


def graph_buffers(
    shape: GraphShape,
    backends: tuple[str, ...],
    draft_backend: str,
    node_counts: tuple[int, ...],
    block_size: int,
    vocab_size: int,
) -> BufferSizes:
    """Buffers of a server: one set for each number of nodes, the drafter's, and the logits that all graphs share."""
    total = shape.backend(draft_backend, block_size, is_draft=True)
    for num_nodes in node_counts:
        for name in sorted(set(backends)):
            total += shape.backend(name, num_nodes)
    return total + BufferSizes(logits=4 * shape.max_batch * node_counts[-1] * vocab_size)


def log_graph_memory(server_args: Any, node_counts: tuple[int, ...]) -> None:
    """One line with the sizes: a warning where they are most of what the KV pool leaves.

    After resolution, which chooses the batch sizes to capture; without graphs there is nothing to say.

    Args:
        node_counts: N of the rounds that may occur, ascending.
    """
    if not is_device_path():
        return
    from sglang.srt.arg_groups.overrides import attention_backends_of, model_config_of, resolving_view
    from sglang.srt.model_executor.cuda_graph_config import Backend

    cfg, model_config = resolving_view(server_args), model_config_of(server_args)
    decode = cfg.cuda_graph_config.decode
    if decode.backend == Backend.DISABLED or not decode.bs:
        return
    shape = GraphShape(
        # A runner captures no more requests than its pool has (base_cuda_graph_runner.py, get_batch_sizes_to_capture).
        max_batch=min(max(decode.bs), int(cfg.max_running_requests) // int(cfg.attn_dp_size)),
        context_len=int(model_config.context_len),
        num_heads=max(1, int(model_config.num_attention_heads) * int(cfg.attn_dp_size) // int(cfg.tp_size)),
        head_dim=int(model_config.v_head_dim),
        kv_splits=int(cfg.triton_attention_num_kv_splits),
        has_window=bool(model_config.is_hybrid_swa),
    )
    backends = attention_backends_of(cfg)
    sizes = graph_buffers(
        shape,
        backends,
        cfg.speculative_draft_attention_backend or backends[0],
        node_counts,
        int(cfg.speculative_dflash_block_size),
        int(model_config.vocab_size),
    )
    _log(sizes, shape.max_batch, node_counts, _left_by_kv_pool(cfg))


def _left_by_kv_pool(cfg: Any) -> float | None:
    """Bytes of a GPU beside weights and KV pool, None where its memory is not known."""
    from sglang.srt.utils.common import get_device_memory_capacity

    capacity_mib = get_device_memory_capacity(cfg.device)
    if not capacity_mib or cfg.mem_fraction_static is None:
        return None
    return float(capacity_mib) * (1 << 20) * (1.0 - float(cfg.mem_fraction_static))


def _log(sizes: BufferSizes, max_batch: int, node_counts: tuple[int, ...], left: float | None) -> None:
    is_large = sizes.total > (LARGE if left is None else left / 2)
    mask, indices, partials, logits, total = (
        part / GIB for part in (sizes.mask, sizes.indices, sizes.partials, sizes.logits, sizes.total)
    )
    logger.log(
        logging.WARNING if is_large else logging.INFO,
        "%s's CUDA graphs, for up to %d requests of %s nodes, need %.1f GiB of buffers on each GPU beside the KV pool: "
        "masks %.1f, KV indices %.1f, attention partials %.1f, logits %.1f%s.%s",
        ALGORITHM,
        max_batch,
        "/".join(map(str, node_counts)),
        total,
        mask,
        indices,
        partials,
        logits,
        "" if left is None else f"; --mem-fraction-static leaves {left / GIB:.1f} GiB for them and all activations",
        " Should the start run out of memory: a smaller --cuda-graph-max-bs-decode, --speculative-ddtree-budget, "
        "--context-length or --mem-fraction-static."
        if is_large
        else "",
    )
