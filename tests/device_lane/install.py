"""Puts the references in the place of the kernels, before SGLang's backends are imported.

What is replaced, and checked to be what the pinned versions have:

* FA3: the package `sgl_kernel` (its import needs a GPU driver) by a module with the four functions that the backend
  takes from it; the compute capability that the backend and its registry ask for; the page table builder, by itself
  with checks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

from tests.device_lane import fa3_reference
from tests.device_lane.module_patches import Patch, on_import, package_folder, replace, require_signature

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
    on_import(f"{sglang}.flashattention_backend", Patch(_answer_capability))
    on_import("sglang.kernels.ops.attention.flash_attention_v3", Patch(_support_fa3))
    on_import("sglang.kernels.ops.attention.trtllm_mha_page_table", Patch(_check_page_tables))


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


def _support_fa3(module: ModuleType) -> None:
    def supported(device: object = None) -> bool:
        return True

    replace(module, "_is_fa3_supported", supported, ("device",))


def _check_page_tables(module: ModuleType) -> None:
    build: Callable[..., None] = module.build_trtllm_mha_page_table
    checked = fa3_reference.strict_page_table_builder(build)
    replace(module, "build_trtllm_mha_page_table", checked, PAGE_TABLE_BUILDER)
