"""`ddtree doctor`: one line per check, and a failure that says what is wrong."""

from __future__ import annotations

import pytest

from ddtree_sglang import cli
from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.engine import contract

pytestmark = pytest.mark.sglang


def test_doctor_is_content_with_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG_ENV, "")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.count("ok      ") == 4
    assert "sglang 0.5.23" in out


def test_doctor_names_a_wrong_engine_and_a_wrong_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "version", lambda name: "0.5.24")
    monkeypatch.setenv(CONFIG_ENV, '{"budget": 0}')
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  engine: ddtree_sglang supports sglang==0.5.23, got 0.5.24" in out
    assert f"FAILED  {CONFIG_ENV}: budget must be an integer from 1 to 255, got 0" in out
