"""Does a tree's verify read keys and values as plain decoding does, where the cache keeps them in a type of its own?

Plain decoding writes a token's key and value and reads them back. A verify on SGLang's Triton backend attends to the
rows of its own forward as they were computed, and to the prefix from the cache (triton_backend.py, `forward_extend`;
extend_attention.py rounds queries and weights to the type of what it reads). So a node would see finer keys of itself
and of its ancestors than plain decoding does. FlashInfer, FA3 and Triton's kernel of deterministic inference read all
keys from the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ddtree_sglang.engine.attention_layers import attending
from ddtree_sglang.engine.spec import ALGORITHM
from ddtree_sglang.exceptions import DDTreeConfigError

COARSE_TYPES = ("fp8_e4m3", "fp8_e5m2")
CACHE_TYPES = (None, "auto", "bf16", "bfloat16", *COARSE_TYPES)
"""Of `--kv-cache-dtype`: those in which each number stands by itself. In the others, blocks of a row share a scale."""


def check_cache_type(runner: Any, backends: Iterable[Any]) -> None:
    """Refuse a cache on which a verify would read other keys than plain decoding, or SGLang would end in a round.

    Args:
        runner: the target's model runner, its pool and its attention backend built.
        backends: those that the target's layers attend in, of a pair for prefill and decode both.

    Raises:
        DDTreeConfigError: on Triton a type that is not the model's, or scales that are not one; on FA3 scales of a type
            of its own, which SGLang hands over one for each request, where each node is a request
            (flashattention_backend.py, `prepare_paged_mha_query`).
    """
    from sglang.srt.configs.model_config import AttentionArch
    from sglang.srt.runtime_context import get_exec

    # By name, as in admission/target_checks.py.
    names = {type(one).__name__ for one in backends}
    is_own = runner.kv_cache_dtype != runner.dtype
    is_latent = runner.model_config.attention_arch == AttentionArch.MLA
    scales = _scales(runner.model)
    kept, own = (str(dtype).removeprefix("torch.") for dtype in (runner.kv_cache_dtype, runner.dtype))
    # FlashInfer drops a tree's mask over latent rows, and SGLang takes fp8_e5m2 from FA3 to Triton.
    other = "--attention-backend flashinfer"
    if is_latent:
        other = "--attention-backend fa3" + (" and --kv-cache-dtype fp8_e4m3" if "e5m2" in kept else "")
    is_odd = is_own or bool(scales - {1.0})
    if "TritonAttnBackend" in names and is_odd and not get_exec().deterministic.enable_deterministic_inference:
        if is_own:
            raise DDTreeConfigError(
                f"{ALGORITHM} needs a KV cache of the model's own type on triton, whose verify does not read a tree's "
                f"keys back from it, got {kept} for a model in {own}; set {other}, or change --kv-cache-dtype."
            )
        raise DDTreeConfigError(
            f"{ALGORITHM} needs keys and values without scales in a KV cache of the model's own type on triton, got "
            f"scales of {min(scales)} to {max(scales)} from the checkpoint; set {other}."
        )
    # Latent rows are wider than what SGLang hands scales over for.
    if "FlashAttentionBackend" in names and is_own and scales and not is_latent:
        raise DDTreeConfigError(
            f"{ALGORITHM} needs a KV cache without scales on fa3, got {kept} with those of a quantized checkpoint; set "
            "--attention-backend flashinfer, or change --kv-cache-dtype."
        )


def _scales(model: Any) -> set[float]:
    """Of all layers' keys and values; layers of a quantized checkpoint that holds none have scales of one."""
    found = {scale for layer in attending(model) for scale in (layer.k_scale_float, layer.v_scale_float)}
    return {float(scale) for scale in found if scale is not None}
