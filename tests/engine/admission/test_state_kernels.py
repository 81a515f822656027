"""Kimi-K3's kernels of a verify: DDTREE asks for Triton's where SGLang would choose a chain's, and for nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import HOPPER, resolved
from tests.support.families import FAMILIES, PLAIN_DRAFTER

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    for role, config in (("target", FAMILIES["Kimi-K3"].config_json), ("drafter", PLAIN_DRAFTER)):
        (tmp_path / role).mkdir()
        (tmp_path / role / "config.json").write_text(json.dumps(config))
        (tmp_path / role / "model.safetensors").write_bytes(b"")
    return str(tmp_path / "target"), str(tmp_path / "drafter")


@pytest.mark.parametrize(("algorithm", "kernel"), [("DDTREE", "triton"), ("DFLASH", "nv_cutedsl")])
def test_a_tree_is_verified_by_triton_where_nobody_asks(pair: tuple[str, str], algorithm: str, kernel: str) -> None:
    cfg = resolved("Engine", pair, HOPPER, attention_backend="fa3", speculative_algorithm=algorithm)
    assert cfg.linear_attn_verify_backend == kernel


def test_what_was_asked_for_stays_and_is_judged(pair: tuple[str, str]) -> None:
    with pytest.raises(DDTreeConfigError, match="give triton to --linear-attn-backend"):
        resolved("Engine", pair, HOPPER, attention_backend="fa3", linear_attn_verify_backend="nv_cutedsl")
