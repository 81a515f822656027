"""Registration: a complete algorithm when the engine fits, the true reason when it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.sglang


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_algorithm_answers_everything_that_the_engine_asks() -> None:
    from sglang.srt.plugins import load_plugins
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    load_plugins()
    algorithm = SpeculativeAlgorithm.from_string("ddtree")
    asked = {name for name in vars(SpeculativeAlgorithm) if callable(getattr(SpeculativeAlgorithm, name, None))}
    asked = {name for name in asked if not name.startswith("_") and name not in ("from_string", "register")}
    assert [name for name in sorted(asked) if not hasattr(algorithm, name)] == []
    assert algorithm.is_dflash_family()
    assert not algorithm.is_eagle()
    assert not algorithm.has_draft_kv()
    assert not algorithm.need_topk()


@pytest.mark.slow
def test_registration_failure_reaches_whoever_asks_for_the_algorithm() -> None:
    out = run_python(
        """
import ddtree_sglang.contract.start as start
start.version = lambda name: "0.5.99"
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
try:
    SpeculativeAlgorithm.from_string("DDTREE").handle_server_args(None)
except Exception as error:
    print(type(error).__name__, error)
"""
    )
    assert "EngineContractError ddtree_sglang supports sglang==0.5.23, got 0.5.99" in out


def test_register_twice_is_harmless() -> None:
    from ddtree_sglang.engine.plugin import register

    register()
    register()
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    assert SpeculativeAlgorithm.from_string("DDTREE").name == "DDTREE"
