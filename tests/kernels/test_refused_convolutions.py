"""Why two classes are refused whose layers convolve: a verify reads the nodes before one by their place.

Of a tree those may be siblings, or of another branch (`engine.admission.target_checks`, NOT_SHOWN).
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.sglang

#      0
#     / \
#    1   2
#    |
#    3
PATHS = ([0], [0, 1], [0, 2], [0, 1, 3])
IS_A_CHAIN = [True, True, False, False]
"""Whether the rows before a node are its ancestors."""
CHANNELS, KEPT = 6, 2


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_qwen4_exp_convolves_a_node_with_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.models import qwen4_exp

    state, nodes = draw(1, CHANNELS, KEPT), draw(len(PATHS), CHANNELS)
    pool = SimpleNamespace(
        short_conv_layer_cache=lambda _layer: state, short_conv_layer_intermediate_cache=lambda _layer: None
    )
    monkeypatch.setattr(qwen4_exp, "get_req_to_token_pool", lambda: pool)
    layer = SimpleNamespace(
        layer_id=0,
        conv_channels=CHANNELS,
        conv1d=SimpleNamespace(weight=draw(CHANNELS, 1, KEPT + 1)),
        short_conv_dilation=1,
        short_conv_state_len=KEPT,
    )

    def convolved(rows: torch.Tensor) -> torch.Tensor:
        batch = SimpleNamespace(
            use_decode_fast_path=False,
            mode=ForwardMode.TARGET_VERIFY,
            state_indices=torch.tensor([0]),
            lengths=torch.tensor([len(rows)]),
            row_width=len(rows),
            req_indices=torch.zeros(len(rows), dtype=torch.int64),
            token_offsets=torch.arange(len(rows)),
        )
        return qwen4_exp.Qwen4ExpPLELayer._short_conv(layer, rows, None, batch)

    tree = convolved(nodes)
    found = [bool(torch.allclose(tree[path[-1]], convolved(nodes[path])[-1])) for path in PATHS]
    assert found == IS_A_CHAIN


def test_inkling_keeps_behind_a_node_what_was_before_it(device: torch.device) -> None:
    from sglang.srt.models.inkling_common.kernels.sconv import save_intermediate_conv_windows

    state, nodes = draw(1, KEPT, CHANNELS).to(device), draw(1, len(PATHS), CHANNELS).to(device)
    kept = torch.zeros(1, len(PATHS), KEPT, CHANNELS, device=device)
    save_intermediate_conv_windows(state, nodes, torch.tensor([0], device=device), kept, 1, len(PATHS))
    found = [torch.equal(kept[0, path[-1]], torch.cat([state[0], nodes[0, path]])[-KEPT:]) for path in PATHS]
    assert found == IS_A_CHAIN
