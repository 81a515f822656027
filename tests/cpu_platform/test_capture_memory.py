"""Memory for what SGLang keeps by KV slot: ordinary on this platform, its own way elsewhere."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from ddtree_sglang.cpu_platform.hooks import with_ordinary_memory

pytestmark = pytest.mark.sglang


def test_only_this_platforms_memory_is_ordinary() -> None:
    def pinned(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no driver")

    ways = with_ordinary_memory(defaultdict(lambda: pinned))
    made = ways["cpu"]((3, 2), dtype=torch.int32, device="cpu", pin_memory=True, allocator=None)
    assert (made.shape, made.dtype) == ((3, 2), torch.int32)
    assert ways["cuda"] is pinned
