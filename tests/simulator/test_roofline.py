"""A round's time from a data sheet, by hand on a model that is easy to count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ddtree_sglang.simulator.roofline import GPUS, Gpu, Roofline, Shape, ShapeError

CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 10,
    "intermediate_size": 30,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 5,
    "vocab_size": 100,
}
QWEN = {
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
# A layer: queries and outputs 2 * 10 * 20, keys and values 2 * 10 * 10, products 3 * 10 * 30.
LAYER = 400 + 200 + 900
GPU = Gpu(
    "small", bandwidth=1e6, flops=1e9, link=1e6, bandwidth_share=0.5, flops_share=0.1, forward_s=1e-3, layer_s=1e-4
)
TARGET = Shape.of(CONFIG)
DRAFTER = Shape.of({**CONFIG, "num_hidden_layers": 1}, target_features=3)


def test_a_shape_is_counted_from_its_configuration() -> None:
    assert TARGET.layer_params == LAYER
    assert TARGET.params == 2 * LAYER + 1000
    assert TARGET.kv_values == 2 * 2 * 2 * 5
    assert DRAFTER.params == LAYER + 1000 + 3 * 10 * 10
    # Without their fields a head is its share of the width, and each has keys of its own.
    bare = {key: value for key, value in CONFIG.items() if key not in ("head_dim", "num_key_value_heads")}
    assert Shape.of({**bare, "hidden_size": 12}).kv_values == 2 * 2 * 4 * 3


def test_qwen3_8b_has_as_many_parameters_as_its_card_says() -> None:
    """8.2 billion with the embedding of 151,936 by 4,096."""
    assert (Shape.of(QWEN).params + 151936 * 4096) / 1e9 == pytest.approx(8.19, abs=0.01)
    assert Shape.of(QWEN).kv_values * 2 == 147_456, "bytes of a token"


def test_few_rows_wait_for_memory_and_many_for_arithmetic() -> None:
    costs = Roofline(GPU, TARGET, DRAFTER, block_size=4)
    launches = 1e-3 + 2 * 1e-4
    # 4,000 parameters are 8,000 bytes at 0.5e6 bytes/s; a row takes 8,000 operations at 1e8 a second.
    assert costs.seconds(1, 0, 1) == pytest.approx(0.016 + launches)
    assert costs.forward_s(TARGET, 1, 199, 0) == pytest.approx(0.016 + launches)
    assert costs.forward_s(TARGET, 2, 200, 0) == pytest.approx(400 * 8000 / 1e8 + launches)
    # A context of 100 tokens of 40 values.
    assert costs.seconds(1, 100, 1) == pytest.approx(0.016 + 100 * 40 * 2 / 0.5e6 + launches)


def test_a_draft_is_the_drafters_forward_over_its_block() -> None:
    costs = Roofline(GPU, TARGET, DRAFTER, block_size=4)
    draft = 2800 * 2 / 0.5e6 + 1e-3 + 1e-4
    assert costs.seconds(1, 0, 9) - costs.seconds(1, 0, 1) == pytest.approx(draft)
    slow = Roofline(replace(GPU, flops=1e6), TARGET, DRAFTER, block_size=4)
    # Bound by arithmetic, at 1e5 a second: nine rows of the target, four of the drafter.
    both = (2 * 4000 * 9 + 2 * 2800 * 4) / 1e5 + 2 * 1e-3 + 3 * 1e-4
    assert slow.seconds(1, 0, 9) == pytest.approx(both)


def test_shared_models_read_their_share_and_pay_for_reductions() -> None:
    one, eight = (Roofline(GPU, TARGET, DRAFTER, 4, tp=tp) for tp in (1, 8))
    launches = 1e-3 + 2 * 1e-4
    sent = 2 * 7 / 8 * 1 * 10 * 2 / 1e6
    assert eight.seconds(1, 0, 1) == pytest.approx(0.016 / 8 + launches + 2 * 2 * (10e-6 + sent))
    assert one.seconds(1, 0, 1) == pytest.approx(0.016 + launches)


def test_a_faster_memory_helps_where_memory_is_waited_for() -> None:
    h100, h200 = (Roofline(gpu, TARGET, DRAFTER, 4) for gpu in (GPUS["h100"], GPUS["h200"]))
    assert h200.seconds(1, 0, 1) < h100.seconds(1, 0, 1)
    slow = Roofline(replace(GPU, flops=1e6), TARGET, DRAFTER, 4)
    fast = Roofline(replace(GPU, flops=1e6, bandwidth=1e9), TARGET, DRAFTER, 4)
    assert slow.seconds(64, 0, 1) == fast.seconds(64, 0, 1)


@pytest.mark.parametrize("value", [None, 0, -1, 2.5, "x", True])
def test_a_configuration_without_a_shape_is_refused(value: object) -> None:
    with pytest.raises(ShapeError, match="must have hidden_size"):
        Shape.of({**CONFIG, "hidden_size": value})
