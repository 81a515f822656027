"""The lane's plugin: hooks that each process of a lane server needs. SGLang calls it like any other plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def register() -> None:
    """Ask SGLang to wrap what it does not ask its platform about, and take away the refusal that is to be missed."""
    from sglang.srt.environ import envs
    from sglang.srt.managers import io_struct
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from tests.device_lane.lifted import LIFTED
    from tests.device_lane.settings import LaneSettings

    # Read at its import, which the process that forks servers has done for all of them.
    io_struct._USE_PICKLE_IPC = envs.SGLANG_USE_PICKLE_IPC.get()
    if (lifted := LIFTED.get(LaneSettings.from_environment().mutation)) is not None:
        lifted()
    around = HookType.AROUND
    HookRegistry.register("sglang.srt.utils.common.async_d2h", _copy_to_host, around)
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler.__init__", _begin_with_device, around)
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler.run_batch", _report_batch, around)
    HookRegistry.register(
        "sglang.srt.batch_invariant_ops.batch_invariant_ops.enable_batch_invariant_mode", _nothing, around
    )


def _begin_with_device(original: Callable[..., None], scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """A process that computes begins here; the launcher, the detokenizer and the process that forks them do not."""
    from tests.device_lane.engine_shims import install_device

    install_device()
    original(scheduler, *args, **kwargs)


def _copy_to_host(_original: Callable[..., Any], tensor: torch.Tensor) -> torch.Tensor:
    """SGLang's copy returns a host tensor as it is, and these would be seen changing."""
    from tests.device_lane.device import is_device
    from tests.device_lane.tensors import to_host

    return to_host(tensor, non_blocking=True) if is_device(tensor) else tensor


def _report_batch(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    from tests.device_lane.report import report_batch

    return report_batch(original, scheduler, *args, **kwargs)


def _nothing(*_: Any, **__: Any) -> None:
    """Batch invariance is a matter of the GPU's matrix products."""
