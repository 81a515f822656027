"""Kernels that are references in torch: each call is one launch, and one node of a capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_iter

from tests.device_lane import doors
from tests.device_lane.device import counts, mark, mode


def install() -> None:
    """Count calls through doors and hand them to a capture."""
    doors.on_call = on_call


def on_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """See a call that has returned; a replay writes what it returns anew to where it is now."""
    name = getattr(fn, "__name__", str(fn))
    counts.launches[name] += 1
    kept = [mark(leaf) for leaf in tree_iter(result) if isinstance(leaf, torch.Tensor)]
    if mode.recorder is None:
        return
    for tensor in kept:
        mode.recorder.allocation(tensor)

    def run() -> None:
        made = [leaf for leaf in tree_iter(fn(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
        for old, new in zip(kept, made, strict=True):
            if old is not new:
                old.copy_(new)

    mode.recorder.kernel(run, name)
