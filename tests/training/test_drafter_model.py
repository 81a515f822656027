"""The packed training forward equals drafting one block at a time."""

from __future__ import annotations

import torch

from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from tests.training.tiny import tiny_config, tiny_target


def _drafter() -> DFlashDrafter:
    torch.manual_seed(3)
    model = DFlashDrafter(tiny_config(tiny_target()))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def _inputs(model: DFlashDrafter) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    config = model.config
    embeds = torch.randn(2, 5, config.block_size, config.hidden_size, generator=generator)
    features = torch.randn(2, 12, config.feature_size, generator=generator)
    anchors = torch.tensor([[1, 4, 4, 9, 12], [3, 2, 7, 11, 5]])
    return embeds, features, anchors


@torch.inference_mode()
def test_packed_blocks_equal_one_block_at_a_time_with_only_its_own_context() -> None:
    model = _drafter()
    embeds, features, anchors = _inputs(model)
    packed = model(embeds, features, anchors)
    for row in range(2):
        for column in range(5):
            anchor = int(anchors[row, column])
            alone = model(
                embeds[row : row + 1, column : column + 1],
                features[row : row + 1, :anchor],  # what the engine's KV cache holds at this moment
                anchors[row : row + 1, column : column + 1],
            )
            torch.testing.assert_close(packed[row, column], alone[0, 0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_every_slot_of_a_block_sees_every_other_slot() -> None:
    model = _drafter()
    embeds, features, anchors = _inputs(model)
    before = model(embeds, features, anchors)
    changed = embeds.clone()
    changed[0, 0, -1] += 1.0
    after = model(changed, features, anchors)
    assert bool(((after[0, 0] - before[0, 0]).abs().amax(-1) > 1e-4).all())
    torch.testing.assert_close(after[0, 1:], before[0, 1:])  # other blocks are untouched


@torch.inference_mode()
def test_slots_differ_by_position_and_context_order_matters() -> None:
    model = _drafter()
    embeds, features, anchors = _inputs(model)
    same = embeds.clone()
    same[:, :, 1:] = embeds[:, :, 1:2]
    out = model(same, features, anchors)
    assert float((out[0, 0, 1] - out[0, 0, 2]).abs().max()) > 1e-4
    flipped = model(same, features.flip(1), anchors)
    assert float((out[0, 4] - flipped[0, 4]).abs().max()) > 1e-4
