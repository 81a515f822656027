"""Each parameter of SGLang's drafter classes is asked for in a checkpoint: none is left as it happens to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ddtree_sglang.engine.admission.drafter_families import FAMILIES
from ddtree_sglang.engine.admission.drafter_weights import check_drafter_weights
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.drafter_folders import build
from tests.engine.admission.test_drafter_shape import lattice, markov, plain, write

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("engine")]

SELECTOR = {"selector_rank": 4, "selector_top_k": 8}
FIELDS: dict[str, Any] = {
    "DFlash": plain(),
    "DFlash2": plain(dflash=SELECTOR),
    "LiLiCorr": lattice(),
    "DSpark": markov(),
}
CONFIGS: dict[str, dict[str, Any]] = {
    **{one: FIELDS[family] | {"architectures": [one]} for one, family in FAMILIES.items()},
    "biases": plain(attention_bias=True),
    "sinks": plain(dflash={"attention_sink_bias": True}),
    "convolutions": plain(dflash={"conv_kernel_size": 4, "conv_group_size": 8}),
    "a gate": markov(markov_head_type="gated"),
    "biases of DSpark": markov(attention_bias=True),
    "convolutions of DSpark": markov(dflash={"conv_kernel_size": 4, "conv_group_size": 8}),
}
LOOKED_AFTER = ("lilicorr.", "confidence_head.")
"""Heads of which SGLang itself misses a weight (models/lilicorr.py, models/dspark.py)."""


@pytest.mark.parametrize("name", CONFIGS)
def test_each_is_asked_for(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIGS[name])
    names = [one for one, _ in build(folder).named_parameters() if not one.startswith(LOOKED_AFTER)]

    def check(*left_out: str) -> None:
        stored = {one: torch.ones(2) for one in names if one not in left_out}
        save_file(stored, folder / "model.safetensors")
        check_drafter_weights(folder)

    check()
    assert len(names) >= 11
    for lost in names:
        with pytest.raises(DDTreeConfigError, match="got no "):
            check(lost)


@pytest.mark.parametrize("lost", ["layers.1.mlp.down_proj.weight", "layers.0.input_layernorm.weight", "fc.weight"])
def test_sglang_leaves_what_a_dspark_checkpoint_lacks_as_it_happens_to_be(lost: str, tmp_path: Path) -> None:
    """What the refusal is for: its loader hands all but the heads to DFlash's, which misses nothing."""
    model = build(write(tmp_path, markov()), "cpu")
    for parameter in model.parameters():
        parameter.data.fill_(-7.0)
    given = {one: torch.ones_like(parameter) for one, parameter in model.named_parameters() if one != lost}
    model.load_weights(given.items())
    assert [one for one, parameter in model.named_parameters() if bool((parameter == -7.0).all())] == [lost]
