"""Servers that resolve their arguments on one GPU or another: SGLang's real pipeline, told what machine it is on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

AMPERE: dict[str, Any] = {
    **dict.fromkeys(("is_hip", "is_npu", "is_xpu", "is_musa", "is_mps"), False),
    **dict.fromkeys(("is_sm90", "is_sm100", "is_sm100_or_sm110", "is_sm110", "is_sm120", "is_blackwell"), False),
    "is_hopper_with_cuda_12_3": False,
    "is_cuda": True,
    "has_flashinfer": True,
    "device_sm": 80,
}
HOPPER = {**AMPERE, "is_sm90": True, "is_hopper_with_cuda_12_3": True, "device_sm": 90}
OLD_CUDA_HOPPER = {**HOPPER, "is_hopper_with_cuda_12_3": False}
BLACKWELL = {**AMPERE, "is_sm100": True, "is_blackwell": True, "is_sm100_or_sm110": True, "device_sm": 100}


@contextmanager
def platform(facts: dict[str, Any]) -> Iterator[None]:
    """SGLang's own platform for CUDA, on a machine of these facts."""
    from sglang.srt import platforms
    from sglang.srt.arg_groups import mamba_hook, model_override_base
    from sglang.srt.platforms.cuda import CudaSRTPlatform
    from sglang.srt.runtime_context import override_platform

    with pytest.MonkeyPatch.context() as patch, override_platform(**facts):
        # Resolution sets variables for the processes that it would start.
        patch.setattr(os, "environ", os.environ.copy())
        patch.setattr(platforms, "_current_platform", CudaSRTPlatform())
        # Where SGLang chooses a backend itself, or a cache for states, it has the platform by this name.
        for module in (model_override_base, mamba_hook):
            patch.setattr(module, "current_platform", platforms.current_platform)
        yield


def resolved(way: str, pair: tuple[str, str], facts: dict[str, Any], **given: Any) -> Any:
    """The resolved arguments of a server with the arguments `given`, started one way or the other."""
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.server_args import ServerArgs, prepare_server_args

    arguments = {
        "model_path": pair[0],
        "speculative_draft_model_path": pair[1],
        "speculative_algorithm": "DDTREE",
        "device": "cuda",
        "dtype": "bfloat16",
        "skip_tokenizer_init": True,
        **given,
    }
    with platform(facts):
        if way == "Engine":
            server_args = ServerArgs(**arguments)
        else:
            flags = [
                part
                for name, value in arguments.items()
                for part in (f"--{name.replace('_', '-')}", *(() if value is True else (str(value),)))
                if value is not None
            ]
            server_args = prepare_server_args(flags)
        server_args.resolve_once()
        return resolving_view(server_args)
