"""Kernels of recurrent layers where SGLang would choose some that verify a chain alone.

For Kimi-K3 under speculation it chooses CuTe DSL's where nothing is asked (arg_groups/kimi_k3_hook.py), whichever
algorithm it is. A tree needs Triton's, so that is what is asked there; what a user asks for stays, and is judged later
(recurrent_checks.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ddtree_sglang.engine.spec import ALGORITHM

logger = logging.getLogger(__name__)


def verify_by_triton(original: Callable[[Any], None], server_args: Any) -> None:
    """AROUND hook on `apply_kimi_k3_spec_backend_defaults`: a tree's states are verified by kernels that take one.

    Args:
        server_args: SGLang's arguments, of which those of the model are being decided.
    """
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

    cfg = resolving_view(server_args)
    if cfg.speculative_algorithm == ALGORITHM and cfg.linear_attn_verify_backend is None:
        declare_resolution(server_args, "verify_by_triton", linear_attn_verify_backend="triton")
        logger.info("%s verifies trees of states with Triton: --linear-attn-verify-backend is triton.", ALGORITHM)
    original(server_args)
