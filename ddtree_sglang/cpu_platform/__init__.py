"""An out-of-tree SGLang platform, so that a server runs on a machine without a GPU.

SGLang finds it through the entry point group `sglang.srt.platforms` and asks `activate` whether it
applies. This package knows attention, memory and operators on x86/ARM cores; it does not know trees beyond "a
mask says which of the window's keys a query may attend". Must not import
`ddtree_sglang.engine`, `ddtree_sglang.demo`, `ddtree_sglang.training`.
"""

from __future__ import annotations

import os

__all__ = ["PLATFORM_CLASS", "activate", "install_cpu_hooks", "is_active"]

PLATFORM_CLASS = "ddtree_sglang.cpu_platform.platform.DDTreeCpuPlatform"


def activate() -> str | None:
    """Name the platform class when this machine has no accelerator, else `None`.

    SGLang (`srt/platforms/__init__.py`) calls this in every process before anything heavy is imported.
    `None` hands the machine to SGLang's own platforms: a GPU of any make, or its AMX engine when the user
    asked for it with `SGLANG_USE_CPU_ENGINE=1`.
    """
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    if _accelerator_present():
        return None
    return PLATFORM_CLASS


def install_cpu_hooks() -> bool:
    """From a plugin: have SGLang put torch functions in place of its Triton launches, if this platform is active.

    Safe to call any number of times, in any process, before or after the engine's modules are imported.
    Returns True when SGLang will, once all plugins are loaded; False when another platform is active.
    """
    if not is_active():
        return False
    from ddtree_sglang.cpu_platform.hooks import register_hooks

    register_hooks()
    return True


def is_active() -> bool:
    """True when this process serves on this platform."""
    from sglang.srt.platforms import current_platform

    return f"{type(current_platform).__module__}.{type(current_platform).__name__}" == PLATFORM_CLASS


def _accelerator_present() -> bool:
    """True when torch sees a device that SGLang serves with a platform of its own."""
    import torch

    if torch.cuda.is_available():
        return True
    names = ("xpu", "npu", "mps", "musa", "hpu")
    devices = (getattr(torch, name, None) for name in names)
    return any(bool(device.is_available()) for device in devices if device is not None)
