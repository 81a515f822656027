"""Which layers the lean loop takes: those whose rotation is one table of sines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import Phi3LongRoPEScaledRotaryEmbedding

from ddtree_sglang.cpu_platform.lean_llama import _has_plain_rotation

pytestmark = pytest.mark.sglang


class OtherTable(RotaryEmbedding):  # type: ignore[misc]
    """Another filling of the same table, as most scaled kinds are."""


class OtherWay(RotaryEmbedding):  # type: ignore[misc]
    """Another rotation."""

    def forward_native(self, *arguments: object) -> None:
        """Not the base's."""


@pytest.mark.parametrize(
    ("kind", "plain"),
    [(RotaryEmbedding, True), (OtherTable, True), (OtherWay, False), (Phi3LongRoPEScaledRotaryEmbedding, False)],
)
def test_rotation_by_anything_else_keeps_sglangs_loop(kind: type[torch.nn.Module], plain: bool) -> None:
    """Phi-3's has no `is_neox_style`: the lean loop ended a server in its first forward."""
    layer = SimpleNamespace(self_attn=SimpleNamespace(rotary_emb=kind.__new__(kind)))
    assert _has_plain_rotation(layer) is plain
