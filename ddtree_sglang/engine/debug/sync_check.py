"""Proof that a round does not wait for the device: CUDA's own sync debug mode, turned to an error for its duration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forbid_sync(active: bool) -> Iterator[None]:
    """Within it, an operation that makes the host wait for the GPU raises RuntimeError, if `active`.

    PyTorch sees its own copies and reads; an explicit `synchronize` and what libraries do by themselves it does not.
    """
    if not active:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    _forbidden.append(before)
    try:
        yield
    finally:
        _forbidden.pop()
        torch.cuda.set_sync_debug_mode(before)


_forbidden: list[int] = []
"""The modes that `forbid_sync` will put back, innermost last."""


@contextmanager
def permit_sync() -> Iterator[None]:
    """Within `forbid_sync`, a stretch that has to wait, because what a request asks for runs on the host."""
    if not _forbidden:
        yield
        return
    torch.cuda.set_sync_debug_mode(_forbidden[-1])
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("error")
