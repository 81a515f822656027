"""Why targets with an indexer are refused (DSA: DeepSeek-V3.2, GLM-5-Next): a verify picks a node's keys by its place.

The layers beside it may take a tree, as GLM-5-Next's Kimi Delta Attention does (test_recurrent_trees.py); these do not.
"""

from __future__ import annotations

import inspect

import pytest
import torch

pytestmark = pytest.mark.sglang

PREFIX_LEN = 5
#      0
#     / \
#    1   2
#    |
#    3
PATHS = ([0], [0, 1], [0, 2], [0, 1, 3])


def test_a_verify_picks_among_all_nodes_before_one(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many keys each node picks from, as `DeepseekSparseAttnBackend.init_forward_metadata` asks its kernel."""
    from sglang.kernels.ops.attention.pad import seqlens_expand_triton

    if device.type == "cpu":
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    nodes = len(PATHS)
    lengths = torch.tensor([PREFIX_LEN + nodes], dtype=torch.int32, device=device)
    added = torch.tensor([nodes], dtype=torch.int32, device=device)
    seen = seqlens_expand_triton(added, lengths, nodes, nodes).tolist()
    assert seen == [PREFIX_LEN + place + 1 for place in range(nodes)]
    assert [count - PREFIX_LEN == len(path) for count, path in zip(seen, PATHS, strict=True)] == [
        True,
        True,
        False,
        False,
    ], "of a tree's nodes some pick among siblings"


def test_its_backend_reads_no_mask() -> None:
    from sglang.srt.layers.attention import dsa_backend

    text = inspect.getsource(dsa_backend)
    assert "seqlens_expand_triton(" in text
    assert "custom_mask" not in text
