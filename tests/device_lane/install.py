"""Puts the references in the place of the kernels, before SGLang's backends are imported.

What is replaced, and checked to be what the pinned versions have:

* FA3: the package `sgl_kernel` (its import needs a GPU driver) by a module with the four functions that the backend
  takes from it; the compute capability that the backend and its registry ask for; the page table builder, by itself
  with checks; the kernel that turns and writes keys of MiMo-V2 (fused_writes.py).
* FlashInfer: its four compiled modules by references; the compute capability that it asks of a device; `torch` in the
  modules that pin memory or write `device="cuda"` out; SGLang's question whether FlashInfer is there.
* FlashInfer's wrapper for latent attention, in SGLang's backend of it.
* LoRA: `torch` in the modules that pin memory; their kernels are Triton's.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from tests.device_lane import fa3_reference, flashinfer_mla_reference, flashinfer_reference, fused_writes
from tests.device_lane.module_patches import (
    Patch,
    PinnedNameError,
    on_import,
    package_folder,
    parameters_in,
    replace,
    require_parameters,
    require_signature,
)

# The index tells the lane's device from the host.
DEVICE = torch.device("cpu", 0)
# Hopper: what FA3 is made for.
CAPABILITY = (9, 0)
FA3_FUNCTIONS = ("flash_attn_with_kvcache", "flash_attn_varlen_func", "get_scheduler_metadata")
PAGE_TABLE_BUILDER = (
    "req_to_token",
    "req_pool_indices",
    "cache_seqlens",
    "page_table",
    "page_size",
    "swa_page_table",
    "full_to_swa",
)


def install_fa3() -> None:
    """FA3's references under SGLang's FA3 backend. Twice is as once.

    Raises:
        PinnedNameError: a replaced name is not what sglang 0.5.23 and sglang-kernel 0.4.10 have.
    """
    if getattr(sys.modules.get("sgl_kernel"), "is_lane_reference", False):
        return
    folder = package_folder("sgl_kernel")
    for name in FA3_FUNCTIONS:
        require_signature(folder / "flash_attn.py", name, getattr(fa3_reference, name))
    require_signature(folder / "attention.py", "merge_state_v2", fa3_reference.merge_state_v2)
    functions = {name: getattr(fa3_reference, name) for name in FA3_FUNCTIONS}
    flash_attn = _module("sgl_kernel.flash_attn", **functions)
    _module(
        "sgl_kernel",
        __path__=[],
        is_lane_reference=True,
        flash_attn=flash_attn,
        merge_state_v2=fa3_reference.merge_state_v2,
    )
    sglang = "sglang.srt.layers.attention"
    on_import(f"{sglang}.attention_registry", Patch(_answer_capability))
    on_import(f"{sglang}.flashattention_backend", Patch(_answer_and_hand_out))
    fused_writes.install()
    on_import("sglang.kernels.ops.attention.flash_attention_v3", Patch(_support_fa3))
    on_import("sglang.kernels.ops.attention.trtllm_mha_page_table", Patch(_check_page_tables))


def install_flashinfer() -> None:
    """The references under FlashInfer's wrappers, which SGLang's FlashInfer backend uses. Twice is as once.

    Raises:
        PinnedNameError: a replaced name is not what sglang 0.5.23 and flashinfer 0.7.2 have.
    """
    global _flashinfer_installed
    if _flashinfer_installed:
        return
    _check_flashinfer()
    on_import("flashinfer.utils", Patch(_answer_flashinfer_capability))
    on_import("flashinfer.prefill", Patch(_plan_and_run_prefill))
    on_import("flashinfer.decode", Patch(_plan_and_run_decode))
    on_import("flashinfer.quantization.packbits", Patch(_pack_masks))
    on_import("flashinfer.cascade", Patch(_merge_states))
    on_import("sglang.srt.layers.attention.flashinfer_backend", _FlashInferBackend().patch())
    on_import("sglang.srt.layers.attention.flashinfer_mla_backend", _FlashInferBackend(_wrap_latent).patch())
    _flashinfer_installed = True


_flashinfer_installed = False


def install_lora() -> None:
    """Memory that is not pinned for adapters' layers and backends. Twice is as once."""
    for module in ("layers", "backend.chunked_backend", "backend.triton_backend", "backend.torch_backend"):
        on_import(f"sglang.srt.lora.{module}", Patch(_unpin))
    on_import("sglang.kernels.ops.lora.dense.lora_tuning_config", Patch(_name_device))


def _name_device(module: ModuleType) -> None:
    """Block sizes are looked up by it, and there are none for the lane."""

    def get_device_name() -> str:
        return "lane"

    replace(module, "get_device_name", get_device_name, ("device_id",))


def _unpin(module: ModuleType) -> None:
    replace(module, "torch", LaneTorch())


def _check_flashinfer() -> None:
    folder = package_folder("flashinfer")
    runs = (
        ("prefill.py", "get_batch_prefill_module.paged_run", flashinfer_reference.paged_run),
        ("prefill.py", "get_batch_prefill_module.ragged_run", flashinfer_reference.ragged_run),
        ("decode.py", "get_batch_decode_module.run_batch_decode", flashinfer_reference.decode_run),
    )
    for file, name, reference in runs:
        # Behind the module itself, up to those that the references do not read.
        ours = [parameter for parameter in inspect.signature(reference).parameters if parameter != "rest"][1:]
        require_parameters(folder / file, name, ours)
    paged = parameters_in(folder / "prefill.py", "get_batch_prefill_module.paged_run")
    if paged[paged.index("sm_scale") + 1 + flashinfer_reference.SINKS] != "sinks":
        raise PinnedNameError(f"flashinfer's paged_run takes {paged}; the lane looks for sinks elsewhere")


class _FlashInferBackend:
    """SGLang's FlashInfer backend takes FlashInfer's names at its import, if SGLang says that FlashInfer is usable."""

    def __init__(self, further: Callable[[ModuleType], None] | None = None) -> None:
        self.original: Callable[[], bool] | None = None
        self.further = further

    def patch(self) -> Patch:
        """Say so during that import, and put its tensors on the CPU after it."""
        return Patch(self._after, self._before)

    def _before(self) -> None:
        utils = sys.modules["sglang.srt.utils"]
        self.original = utils.is_flashinfer_available

        def is_flashinfer_available() -> bool:
            return True

        replace(utils, "is_flashinfer_available", is_flashinfer_available, ())

    def _after(self, module: ModuleType) -> None:
        replace(sys.modules["sglang.srt.utils"], "is_flashinfer_available", self.original)
        replace(module, "torch", LaneTorch())
        if self.further is not None:
            self.further(module)


def _wrap_latent(module: ModuleType) -> None:
    replace(module, "BatchMLAPagedAttentionWrapper", flashinfer_mla_reference.BatchMLAPagedAttentionWrapper)


class LaneTorch:
    """`torch` as one module sees it: memory on the CPU, none of it pinned, and a CUDA device that is there."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        if name in ("empty", "zeros", "ones", "full", "tensor", "arange", "empty_like", "zeros_like", "ones_like"):
            return _on_cpu(value)
        return _LaneCuda() if name == "cuda" else value


class _LaneCuda:
    """`torch.cuda` with a context for any device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def device(self, device: object) -> contextlib.AbstractContextManager[None]:
        """No device to switch to."""
        return contextlib.nullcontext()


def _on_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs.pop("pin_memory", None)
        if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = DEVICE
        return make(*args, **kwargs)

    return made


def _answer_flashinfer_capability(module: ModuleType) -> None:
    def get_compute_capability(device: object) -> tuple[int, int]:
        return CAPABILITY

    replace(module, "get_compute_capability", get_compute_capability, ("device",))


def _plan_and_run_prefill(module: ModuleType) -> None:
    replace(module, "get_batch_prefill_module", flashinfer_reference.prefill_module, ("backend", "args"))
    replace(module, "torch", LaneTorch())


def _plan_and_run_decode(module: ModuleType) -> None:
    replace(module, "get_batch_decode_module", flashinfer_reference.decode_module, ("args",))
    # Where both modules were imported before this, it has the compiled one by a name of its own. Its parameters were
    # checked in the module that it is from.
    replace(module, "get_batch_prefill_module", flashinfer_reference.prefill_module)
    replace(module, "torch", LaneTorch())


def _pack_masks(module: ModuleType) -> None:
    replace(module, "get_quantization_module", flashinfer_reference.quantization_module, ())


def _merge_states(module: ModuleType) -> None:
    replace(module, "get_cascade_module", flashinfer_reference.cascade_module, ())


def _module(name: str, **contents: object) -> ModuleType:
    """A module of these names in the place of `name`, found by later imports."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, loader=None, is_package="." not in name)
    vars(module).update(contents)
    sys.modules[name] = module
    return module


def _answer_capability(module: ModuleType) -> None:
    def get_device_capability(device_id: int = 0) -> tuple[int, int]:
        return CAPABILITY

    replace(module, "get_device_capability", get_device_capability, ("device_id",))


def _answer_and_hand_out(module: ModuleType) -> None:
    _answer_capability(module)
    fused_writes.take_any_type(module)


def _support_fa3(module: ModuleType) -> None:
    def supported(device: object = None) -> bool:
        return True

    replace(module, "_is_fa3_supported", supported, ("device",))


def _check_page_tables(module: ModuleType) -> None:
    build: Callable[..., None] = module.build_trtllm_mha_page_table
    checked = fa3_reference.strict_page_table_builder(build)
    replace(module, "build_trtllm_mha_page_table", checked, PAGE_TABLE_BUILDER)
