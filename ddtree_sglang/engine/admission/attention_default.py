"""The attention backend where the user names none: on an NVIDIA GPU FA3 on Hopper, Triton on any other, FlashInfer
with an FP8 cache of keys.

SGLang's own choice for a tree is FlashInfer on every generation (arg_groups/model_override_base.py,
get_default_attn_backend), whose plan of a masked verify waits for the GPU three times a round and packs the whole mask
anew. The choice is made before SGLang resolves its arguments: page size, memory and graphs follow from the backend.
Other platforms name their own.
"""

from __future__ import annotations

import logging
from typing import Any

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.engine.admission.cache_types import COARSE_TYPES
from ddtree_sglang.engine.cli_flags import apply_config
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.spec import ALGORITHM, is_ddtree

logger = logging.getLogger(__name__)

FLOAT32 = ("float32", "float")
"""`--dtype` of a target that FA3's kernels do not take: they have half and 8-bit types only."""


def complete_raw_arguments(server_args: Any) -> None:
    """Under DDTREE, write into arguments that are not resolved yet what their resolution has to know.

    These are the tree's size, which a command line has in them already and `Engine(...)` has not, the backend, and with
    adapters that prefills have no graphs.

    Raises:
        DDTreeConfigError: as `apply_config`.
    """
    if not is_ddtree(server_args.speculative_algorithm):
        return
    apply_config(server_args, DDTreeConfig.from_env())
    _choose_attention_backend(server_args)
    if (server_args.enable_lora or server_args.lora_paths) and is_device_path():
        # Not shown; who asks for them by name is refused (server_args.py, `check_resolved_target`).
        server_args.disable_prefill_cuda_graph = True


def _choose_attention_backend(server_args: Any) -> None:
    """Name a backend for each of prefill and decode that has none; a verify runs on prefill's."""
    from sglang.srt.platforms import current_platform
    from sglang.srt.runtime_context import get_platform

    if server_args.attention_backend is not None or current_platform.is_out_of_tree():
        return
    if None not in (server_args.prefill_attention_backend, server_args.decode_attention_backend):
        return
    if not get_platform().is_cuda or not str(server_args.device or "cuda").startswith("cuda"):
        return
    backend, why = default_backend(
        get_platform().is_hopper_with_cuda_12_3, server_args.dtype, server_args.kv_cache_dtype
    )
    server_args.attention_backend = backend
    logger.info(
        "%s attends with %s: --attention-backend names none, and %s. FlashInfer, SGLang's choice for any tree, waits "
        "for the GPU in each round.",
        ALGORITHM,
        backend,
        why,
    )


def default_backend(is_hopper: bool, dtype: Any, kv_cache_dtype: Any) -> tuple[str, str]:
    """The backend, and why: `is_hopper` says that the GPU is one and CUDA is 12.3 or later; dtypes as in the flags.

    Where a checkpoint has scales of keys and values, as FP8 ones do, SGLang hands FA3 one for each request, also in the
    call over a tree's nodes, in which each node is a request of its own: FA3 refuses the shape, and the server does not
    start (flashattention_backend.py, `prepare_paged_mha_query`). On Triton a verify does not read a tree's keys as such
    a cache keeps them (admission/cache_types.py). A checkpoint may bring such a cache without the flag; it is looked at
    when it is loaded.
    """
    if kv_cache_dtype in COARSE_TYPES:
        named = f"--kv-cache-dtype {kv_cache_dtype}"
        return "flashinfer", f"{named} may bring scales, which fa3 refuses, and triton reads no node's key back from it"
    if not is_hopper:
        return "triton", "this GPU is no Hopper with CUDA 12.3 or later, which fa3 is for"
    if kv_cache_dtype not in (None, "auto"):
        return "triton", f"fa3 takes no scales, which --kv-cache-dtype {kv_cache_dtype} may bring"
    if str(dtype).lower().removeprefix("torch.") in FLOAT32:
        return "triton", "fa3 takes no float32"
    return "fa3", "this GPU is a Hopper"
