"""Names under which the CPU platform registers itself with SGLang; constants only, imports nothing."""

from __future__ import annotations

ATTENTION_BACKEND = "ddtree_cpu"
"""Value of `--attention-backend` and `--speculative-draft-attention-backend`."""

DISPATCH_KEY = "ddtree_cpu"
"""Out-of-tree dispatch key of `sglang.kernels.fused_op.BaseFusedOp`."""

SPECULATIVE_ALGORITHMS = frozenset({"DFLASH", "DDTREE"})
"""Speculative algorithms whose round needs no Triton launch on this platform."""
DEVICE = "cpu"

DRAFTS_ENV = "DDTREE_CPU_DRAFTS"
"""Of a draft's products: `model` keeps the model's dtype, with which a round hardly depends on its batch; `bfloat16`
takes that; empty takes which was measured to be faster.
"""

QUANTIZATIONS = ("fp8", "w8a8_int8")
"""What a checkpoint may be quantized by: weights of 8 bits that become plain ones when they are loaded."""
