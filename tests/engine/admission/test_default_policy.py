"""The policy of a server that names none: measured costs where that was run, else a fixed budget."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.engine.admission import default_policy
from ddtree_sglang.engine.admission.default_policy import with_policy
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import HOPPER, resolved
from tests.engine.admission.test_server_args import DRAFTER, TARGET, write_checkpoint

PLAIN = {
    "attn_dp_size": None,
    "enable_dp_attention": False,
    "disaggregation_mode": "null",
    "enable_deterministic_inference": False,
}


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(default_policy, "is_device_path", lambda: request.param)


def chosen(config: DDTreeConfig, **given: Any) -> str | None:
    return with_policy(config, SimpleNamespace(**{**PLAIN, **given})).policy


@pytest.mark.parametrize(
    ("on_a_gpu", "given", "policy"),
    [
        (False, {}, "adaptive"),
        (True, {}, "fixed"),
        (False, {"attn_dp_size": 2}, "fixed"),
        (False, {"enable_dp_attention": True}, "fixed"),
        (False, {"disaggregation_mode": "decode"}, "fixed"),
        (False, {"enable_deterministic_inference": True}, "fixed"),
    ],
    indirect=["on_a_gpu"],
)
@pytest.mark.usefixtures("on_a_gpu")
def test_costs_are_measured_where_that_was_run(given: dict[str, Any], policy: str) -> None:
    assert chosen(DDTreeConfig(budget=7, trace_every=None), **given) == policy


@pytest.mark.parametrize("on_a_gpu", [False, True], indirect=True)
@pytest.mark.parametrize("policy", ["fixed", "load", "adaptive"])
@pytest.mark.usefixtures("on_a_gpu")
def test_a_policy_that_is_named_stays(policy: Any) -> None:
    assert chosen(DDTreeConfig(policy=policy)) == policy


@pytest.mark.parametrize("on_a_gpu", [True], indirect=True)
@pytest.mark.usefixtures("on_a_gpu")
def test_a_time_for_measuring_is_not_dropped_where_the_budget_is_fixed() -> None:
    with pytest.raises(DDTreeConfigError, match="measure_seconds=3 belongs to policy 'adaptive', got policy 'fixed'"):
        chosen(DDTreeConfig(measure_seconds=3))


@pytest.mark.sglang
@pytest.mark.usefixtures("plugins", "no_configuration")
def test_a_server_with_a_gpu_measures_nothing_at_start(tmp_path: Path) -> None:
    """There each width has graphs of its own, and the warm-up would ask for widths that none were captured for."""
    pair = write_checkpoint(tmp_path / "target", TARGET), write_checkpoint(tmp_path / "drafter", DRAFTER)
    assert resolved("Engine", pair, HOPPER).warmups is None
