"""Hooks that are no more than a function: what they pass through and what they change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.hooks import keep_model_dtype


@pytest.mark.parametrize("is_draft_worker", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_input_embeddings_get_the_dtype_of_their_model(dtype: torch.dtype, is_draft_worker: bool) -> None:
    """Stock casts to bfloat16, and one request with `input_embeds` ended a float32 server."""
    runner = SimpleNamespace(dtype=dtype, is_draft_worker=is_draft_worker)
    batch = SimpleNamespace(input_embeds=torch.randn(2, 4))

    def original(runner: Any, batch: Any, proxy: Any) -> dict[str, Any]:
        return {"input_embeds": batch.input_embeds.bfloat16()}

    given = keep_model_dtype(original, runner, batch, None)["input_embeds"]
    assert given.dtype == dtype
    assert torch.equal(given, batch.input_embeds.to(dtype))


def test_a_batch_without_embeddings_is_left_alone() -> None:
    runner, batch = SimpleNamespace(dtype=torch.float32), SimpleNamespace(input_embeds=None)
    assert keep_model_dtype(lambda *_: {"other": 1}, runner, batch, None) == {"other": 1}
