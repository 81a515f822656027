"""Where the platform plugs itself into SGLang: choice lists, attention registry, changes to functions.

The changes are listed in `contract.cpu_patches`; all but one, of a method of torch, go through SGLang's `HookRegistry`.
Everything here is idempotent per process, because SGLang loads plugins in the launcher and again in each
scheduler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ddtree_sglang.contract.cpu_patches import CAPTURE_PATCHES, DRAFT_HEAD_PATCHES, TORCH_PATCHES
from ddtree_sglang.contract.patch import install
from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND, DEVICE

if TYPE_CHECKING:
    from ddtree_sglang.cpu_platform.dense_linear import CpuEmbeddingMethod

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

    install(TORCH_PATCHES, HookRegistry, HookType)
    return True


def install_hooks() -> None:
    """Register the hooks and apply them at once, in a process whose plugins have not registered them.

    SGLang may ask while it imports what it is about to wrap; applying hooks then would find half a module.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    if register_hooks():
        HookRegistry.apply_hooks()


@cache
def install_draft_head() -> None:
    """Send the stock chain's LM head through the layer's own product, as DDTREE's goes.

    SGLang multiplies by the plain weight, which on this platform is the slow way. It has the other path itself, for
    quantised heads on one rank. Called once a DFlash drafter is loaded: before, the worker's module cannot be imported.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    install(DRAFT_HEAD_PATCHES, HookRegistry, HookType)
    HookRegistry.apply_hooks()


def draft_head_by_its_own_product(
    original: Callable[..., torch.Tensor],
    worker: Any,
    *,
    hidden_states: torch.Tensor,
    lm_head: Any,
    chunk_size: int = 256,
) -> torch.Tensor:
    """AROUND hook: token ids that a plain head on one rank chooses, by the layer's own product; else by SGLang's."""
    from sglang.srt.runtime_context import get_parallel

    from ddtree_sglang.cpu_platform.dense_linear import CpuEmbeddingMethod

    shard = getattr(lm_head, "shard_indices", None)
    is_whole = get_parallel().tp_size == 1 and (shard is None or int(shard.num_added_elements) == 0)
    product = lm_head.quant_method
    if not is_whole or not isinstance(product, CpuEmbeddingMethod) or hidden_states.numel() == 0:
        return original(worker, hidden_states=hidden_states, lm_head=lm_head, chunk_size=chunk_size)
    chosen: torch.Tensor = worker._greedy_sample_from_quantized_head(
        hidden_states=hidden_states, lm_head=_DraftHead(lm_head, product), chunk_size=chunk_size
    )
    return chosen


class _DraftHead:
    """A head as SGLang's loop over a head's own product takes it, with the product of drafts."""

    def __init__(self, lm_head: Any, product: CpuEmbeddingMethod) -> None:
        self.quant_method = self
        self.org_vocab_size = getattr(lm_head, "org_vocab_size", 0)
        self._head, self._product = lm_head, product
        product.prepare_drafts(lm_head)

    def apply(self, _layer: Any, x: torch.Tensor, _bias: None) -> torch.Tensor:
        """`x [M, H]` -> logits `[M, V]`."""
        return self._product.draft_logits(self._head, x)


def ignoring_cpu_tensors(original: Callable[[torch.Tensor, Any], None]) -> Callable[[torch.Tensor, Any], None]:
    """`Tensor.record_stream` that does nothing for CPU tensors, which have no streams and otherwise raise."""

    def record_stream(self: torch.Tensor, stream: Any) -> None:
        if self.device.type != "cpu":
            original(self, stream)

    return record_stream


def install_capture_memory() -> None:
    """Keep what is captured by KV slot in ordinary memory, on a server that returns routed experts."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    install(CAPTURE_PATCHES, HookRegistry, HookType)


def with_ordinary_memory(stock: dict[str, Callable[..., torch.Tensor]]) -> dict[str, Callable[..., torch.Tensor]]:
    """SGLang's ways to allocate host memory, by device, with one that pins nothing for this platform's."""
    ways = copy.copy(stock)
    ways[DEVICE] = _allocate
    return ways


def _allocate(dims: tuple[int, ...], dtype: torch.dtype, device: str, pin_memory: bool, allocator: Any) -> torch.Tensor:
    return torch.empty(dims, dtype=dtype, device=device)
