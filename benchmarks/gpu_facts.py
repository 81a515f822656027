"""What works at all on a machine: single facts, each checked in seconds and in a process of its own.

    python -m benchmarks gpu_facts FACT

A part of `gpu_proof`: an illegal access in one kernel must not spoil the next fact. The one line of stdout is the
evidence; exit status 1 with the error as the last line of stderr when the fact does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

HEADS, KV_HEADS, WIDTH = 4, 2, 64
TOLERANCE = 2e-2
"""Of bfloat16 attention over unit values."""


def engine() -> str:
    """SGLang imports, and knows the algorithm by this checkout's plugin."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
    from sglang.version import __version__

    load_plugins()
    return f"sglang {__version__} knows {SpeculativeAlgorithm.from_string('DDTREE')}"


def tree_kernel() -> str:
    """The one-launch builder launches, and its tree is the heap oracle's."""
    from benchmarks.gpu_kernels import check_builder

    return check_builder(4, 7, 17, _device())


def sgl_kernel() -> str:
    """SGLang's compiled kernels load and launch."""
    import sgl_kernel as module

    rows = torch.randn(37, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(256, device="cuda", dtype=torch.bfloat16)
    expected = rows.float() * torch.rsqrt(rows.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    return _compare("rmsnorm", module.rmsnorm(rows, weight, 1e-6), expected, 0.1)


def flashinfer() -> str:
    """FlashInfer's paged prefill launches and honours a tree mask."""
    import flashinfer as module

    query, keys, values, mask = _tree_case()
    slots, rows = len(keys), len(query)
    space = torch.empty(2**27, dtype=torch.uint8, device="cuda")
    wrapper = module.BatchPrefillWithPagedKVCacheWrapper(space, "NHD", backend="fa2")
    wrapper.plan(
        torch.tensor([0, rows], dtype=torch.int32, device="cuda"),
        torch.tensor([0, slots], dtype=torch.int32, device="cuda"),
        torch.arange(slots, dtype=torch.int32, device="cuda"),
        torch.ones(1, dtype=torch.int32, device="cuda"),
        *(HEADS, KV_HEADS, WIDTH, 1),
        custom_mask=mask.flatten(),
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    found = wrapper.run(query, (keys.unsqueeze(1), values.unsqueeze(1)))
    return _compare("a tree mask", found, _attention(query, keys, values, mask), TOLERANCE)


def fa3() -> str:
    """FlashAttention 3 launches on pages of one token, as SGLang's backend calls it."""
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    query, keys, values, _ = _tree_case()
    slots, rows = len(keys), len(query)
    causal = torch.ones(rows, slots, dtype=torch.bool, device="cuda").tril(slots - rows)
    found = flash_attn_with_kvcache(
        q=query,
        k_cache=keys.unsqueeze(1),
        v_cache=values.unsqueeze(1),
        page_table=torch.arange(slots, dtype=torch.int32, device="cuda")[None],
        cache_seqlens=torch.tensor([slots], dtype=torch.int32, device="cuda"),
        cu_seqlens_q=torch.tensor([0, rows], dtype=torch.int32, device="cuda"),
        max_seqlen_q=rows,
        softmax_scale=WIDTH**-0.5,
        causal=True,
    )
    return _compare("causal attention", found, _attention(query, keys, values, causal), TOLERANCE)


def _tree_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query [8, H, d] of a tree behind 32 tokens, keys and values [40, KV, d], mask [8, 40] of two branches."""
    torch.manual_seed(0)
    query = torch.randn(8, HEADS, WIDTH, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(40, KV_HEADS, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    mask = torch.ones(8, 40, dtype=torch.bool, device="cuda").tril(32)
    mask[4:, 33:36] = False
    return query, keys, values, mask


def _attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    key, value = (one.repeat_interleave(HEADS // KV_HEADS, 1).transpose(0, 1).float() for one in (keys, values))
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query.transpose(0, 1).float(), key, value, attn_mask=mask).transpose(0, 1)


def _compare(what: str, found: Any, expected: torch.Tensor, tolerance: float) -> str:
    error = float((found.float() - expected).abs().max())
    if not error <= tolerance:  # a NaN is no match
        raise SystemExit(f"{what} differs from torch's by {error:.3g}, at most {tolerance} expected")
    return f"{what} differs from torch's by at most {error:.1e}"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


FACTS: dict[str, Callable[[], str]] = {
    "sglang": engine,
    "tree-kernel": tree_kernel,
    "sgl-kernel": sgl_kernel,
    "flashinfer-kernel": flashinfer,
    "fa3-kernel": fa3,
}


def main(argv: Sequence[str]) -> int:
    """Check one fact."""
    if len(argv) != 1 or argv[0] not in FACTS:
        print(f"usage: python -m benchmarks gpu_facts {{{'|'.join(FACTS)}}}", file=sys.stderr)
        return 2
    print(FACTS[argv[0]]())
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 0
