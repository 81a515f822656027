"""The table of costs in the answer of `/server_info`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine import cost_report
from ddtree_sglang.engine.cost_report import KEY, report_costs

pytestmark = pytest.mark.sglang


def controller(costs: dict[str, Any]) -> Any:
    worker = SimpleNamespace(budget=SimpleNamespace(costs=lambda: costs))
    return SimpleNamespace(scheduler=SimpleNamespace(draft_worker=worker))


def test_costs_are_told_where_a_policy_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_report, "serves_ddtree", lambda: True)
    state: dict[str, Any] = {}
    report_costs(None, controller({"cells": []}), state)
    assert state == {KEY: {"cells": []}}
    report_costs(None, controller({}), state := {})
    assert state == {}


def test_another_algorithm_has_no_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_report, "serves_ddtree", lambda: False)
    state: dict[str, Any] = {}
    report_costs(None, controller({"cells": []}), state)
    assert state == {}
