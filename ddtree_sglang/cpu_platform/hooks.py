"""Where the platform plugs itself into SGLang: choice lists, attention registry, function replacements.

SGLang's own seams are used (`HookRegistry`, the choice lists, `register_attention_backend`), and one assignment to
torch: `Tensor.record_stream`.
Everything here is idempotent per process, because SGLang loads plugins in the launcher and again in each
scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND

_registered = False


def register_names() -> None:
    """Make our backend a legal value of the attention flags; must run before the command line is parsed."""
    from sglang.srt.arg_groups import choices

    for choice_list, add in (
        (choices.ATTENTION_BACKEND_CHOICES, choices.add_attention_backend_choices),
        (choices.DRAFT_ATTENTION_BACKEND_CHOICES, choices.add_draft_attention_backend_choices),
    ):
        if ATTENTION_BACKEND not in choice_list:
            add([ATTENTION_BACKEND])


def register_backend() -> None:
    """Tell SGLang's attention registry how to build our backend."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend

    if ATTENTION_BACKEND in ATTENTION_BACKENDS:
        return

    @register_attention_backend(ATTENTION_BACKEND)
    def _create(runner: Any) -> Any:
        from ddtree_sglang.cpu_platform.attention.backend import DDTreeCpuAttnBackend

        return DDTreeCpuAttnBackend(runner)


def replacements() -> dict[str, Callable[..., Any]]:
    """Dotted path of each SGLang function that we replace, and our torch version of it."""
    from ddtree_sglang.cpu_platform import operators
    from ddtree_sglang.cpu_platform import triton_replacements as ours

    table_norm = "sglang.kernels.ops.attention.table_qk_norm_rope.table_qk_norm_rope_"
    return {
        table_norm: operators.table_qk_norm_rope_,
        "sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func": ours.assign_req_to_token_pool,
    }


def register_hooks() -> bool:
    """Tell SGLang to replace its Triton launches by torch functions; it does so after its last plugin.

    Not here: it wraps each function once, so that a later plugin's hook on a function already wrapped would be lost.
    Returns False if it was told before.
    """
    global _registered
    if _registered:
        return False
    _registered = True
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, replacement in replacements().items():
        HookRegistry.register(target, replacement, HookType.REPLACE)
    _ignore_record_stream_on_cpu()
    return True


def install_hooks() -> None:
    """Register the hooks and apply them at once, in a process whose plugins have not registered them.

    SGLang may ask while it imports what it is about to wrap; applying hooks then would find half a module.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    if register_hooks():
        HookRegistry.apply_hooks()


_DRAFT_HEAD = "sglang.srt.speculative.dflash_worker_v2.DFlashWorkerV2._greedy_sample_from_vocab_parallel_head"


@cache
def install_draft_head() -> None:
    """Send the stock chain's LM head through the layer's own product, as DDTREE's goes.

    SGLang multiplies by the plain weight, which on this platform is the slow way. It has the other path itself, for
    quantised heads on one rank. Called once a DFlash drafter is loaded: before, the worker's module cannot be imported.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_DRAFT_HEAD, _draft_head_by_its_own_product, HookType.AROUND)
    HookRegistry.apply_hooks()


def _draft_head_by_its_own_product(
    original: Callable[..., torch.Tensor],
    worker: Any,
    *,
    hidden_states: torch.Tensor,
    lm_head: Any,
    chunk_size: int = 256,
) -> torch.Tensor:
    from sglang.srt.runtime_context import get_parallel

    from ddtree_sglang.cpu_platform.dense_linear import CpuEmbeddingMethod

    shard = getattr(lm_head, "shard_indices", None)
    is_whole = get_parallel().tp_size == 1 and (shard is None or int(shard.num_added_elements) == 0)
    if not is_whole or not isinstance(lm_head.quant_method, CpuEmbeddingMethod) or hidden_states.numel() == 0:
        return original(worker, hidden_states=hidden_states, lm_head=lm_head, chunk_size=chunk_size)
    chosen: torch.Tensor = worker._greedy_sample_from_quantized_head(
        hidden_states=hidden_states, lm_head=lm_head, chunk_size=chunk_size
    )
    return chosen


def _ignore_record_stream_on_cpu() -> None:
    """Make `Tensor.record_stream` a no-op for CPU tensors, which have no streams and otherwise raise.

    DFLASH's worker calls it on the batch's lengths whatever the device.
    """
    original = torch.Tensor.record_stream

    def record_stream(self: torch.Tensor, stream: Any) -> None:
        if self.device.type != "cpu":
            original(self, stream)

    torch.Tensor.record_stream = record_stream  # type: ignore[method-assign, assignment]
