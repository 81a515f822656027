"""Where a base class of SGLang's raises NotImplementedError, ours answers: raising would end the scheduler."""

from __future__ import annotations

import inspect

import pytest
import torch
from sglang.srt.platforms.device_mixin import DeviceMixin
from sglang.srt.platforms.interface import SRTPlatform

from ddtree_sglang.cpu_platform.platform import DDTreeCpuPlatform


def _left_out(base: type) -> list[str]:
    """Methods of `base` that only raise."""
    functions = inspect.getmembers(base, inspect.isfunction)
    return [name for name, function in functions if "raise NotImplementedError" in inspect.getsource(function)]


@pytest.mark.parametrize("name", sorted({*_left_out(DeviceMixin), *_left_out(SRTPlatform)}))
def test_every_query_that_the_base_refuses_is_answered(name: str) -> None:
    ours = getattr(DDTreeCpuPlatform, name)
    assert "raise NotImplementedError" not in inspect.getsource(ours), f"{name} is SGLang's, and raises"


def test_profiling_records_the_cpu() -> None:
    platform = DDTreeCpuPlatform()
    assert platform.get_torch_profiler_activity_str() == "CPU"
    assert platform.get_torch_profiler_activity() is torch.profiler.ProfilerActivity.CPU
