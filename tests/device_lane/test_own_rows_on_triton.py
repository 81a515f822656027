"""What a verify on SGLang's Triton backend reads of its own nodes, for which admission/cache_types.py refuses types."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.device_lane import backend_case as case
from tests.device_lane.test_backends_on_references import CLOSE, PREFIX_LENS, TREE
from tests.device_lane.test_windows_on_triton import attend, batch, make
from tests.device_lane.test_windows_on_triton import pytestmark as pytestmark


class Keeping(case.Pool):
    """A cache that keeps a part of what it is given, as one of a coarser type does."""

    share = 1.0

    def set_kv_buffer(self, layer: Any, target: Any, k: torch.Tensor, v: torch.Tensor, *scales: Any) -> None:
        super().set_kv_buffer(layer, target, self.share * k, self.share * v)


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_a_verify_reads_its_own_rows_as_they_were_computed_unless_it_is_deterministic(
    is_deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = []
    for share in (1.0, 0.5):
        monkeypatch.setattr(case, "Pool", Keeping)
        monkeypatch.setattr(Keeping, "share", share)
        requests = case.Requests(PREFIX_LENS)
        backend = make(requests, monkeypatch, is_deterministic)
        forward_batch = batch(requests, PREFIX_LENS, case.tree_mask(TREE, PREFIX_LENS))
        backend.init_forward_metadata(forward_batch)
        outs.append(attend(backend, forward_batch, None))
    if is_deterministic:
        assert (outs[0] - outs[1]).abs().max() > 0.1, "keys and values come from the cache"
    else:
        torch.testing.assert_close(outs[0], outs[1], **CLOSE)
