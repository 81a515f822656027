"""LoRA adapters without a GPU: SGLang's own torch backend, which pins host memory for a device that is not there.

That backend and the adapters' layers ask for pinned memory without asking the platform, and torch raises where it finds
no driver. So their modules get a `torch` that makes ordinary memory, once a model is loaded on a server with adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ddtree_sglang.contract.cpu_patches import LORA_PATCHES
from ddtree_sglang.contract.patch import install as install_patches

BACKEND = "torch_native"
"""The only one of SGLang's LoRA backends that launches nothing."""

_STOCK_DEFAULT = "csgmv"


def resolve_backend(server_args: Any) -> None:
    """Name the backend of a server with adapters; raise ValueError for one that needs a GPU."""
    if not (server_args.enable_lora or server_args.lora_paths):
        return
    if server_args.lora_backend not in (_STOCK_DEFAULT, BACKEND):
        raise ValueError(
            f"--lora-backend must be {BACKEND!r} on a machine without a GPU, got {server_args.lora_backend!r}; drop "
            "the flag."
        )
    if server_args.enable_lora_overlap_loading:
        raise ValueError("--enable-lora-overlap-loading needs a GPU, and this machine has none; drop the flag.")
    server_args.lora_backend = BACKEND


def install() -> None:
    """Put the changes in place, in a process whose server has adapters."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    install_patches(LORA_PATCHES, HookRegistry, HookType)
    HookRegistry.apply_hooks()


def without_pinning(_stock: Any) -> UnpinnedTorch:
    """What takes the place of `torch` in a module."""
    return UnpinnedTorch()


def staying_where_it_is(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`Tensor.pin_memory` that returns the tensor itself where torch finds no accelerator to pin it for."""

    def pin_memory(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return original(self, *args, **kwargs) if torch.cuda.is_available() else self

    return pin_memory


PADDED_SIZES = ("num_attention_heads", "intermediate_size")
"""Sizes of a target that SGLang pads on a CPU so that ranks and blocks of 32 divide them (configs/update_config.py)."""


def refuse_wrong_targets(
    original: Callable[..., None], backend: Any, base_model: Any, target_modules: Iterable[str]
) -> None:
    """AROUND hook on `BaseLoRABackend.validate_lora_targets`: what SGLang's torch backend would get wrong is refused.

    A prefill's head gets one row per request, and that backend takes the requests' whole lengths for it, so that rows
    get the adapter of another request (lora/backend/torch_backend.py keeps no `lm_head_batch_info`). Of a target whose
    sizes were padded no adapter fits, which SGLang notices at the first request for it: the scheduler ends.
    """
    config = base_model.config
    for name in PADDED_SIZES:
        size = getattr(config, name, None)
        if getattr(config, f"original_{name}", size) != size:
            raise ValueError(
                f"LoRA adapters do not fit a target whose {name} SGLang padded on a CPU, from "
                f"{getattr(config, f'original_{name}')} to {size}; use another --tp-size, or merged weights."
            )
    if "lm_head" in set(target_modules):
        raise ValueError(
            "LoRA adapters of lm_head are not supported on the CPU platform: SGLang's torch backend mixes up requests "
            "there. Leave lm_head out of --lora-target-modules, and serve adapters without it."
        )
    original(backend, base_model=base_model, target_modules=target_modules)


class UnpinnedTorch:
    """`torch` whose factories ignore `pin_memory=True`."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        return _unpinned(value) if name in ("tensor", "zeros") else value


def _unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return make(*args, **kwargs)

    return made
