"""Registration: a complete algorithm when the engine fits, the true reason when it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.contract import start
from ddtree_sglang.engine import plugin
from ddtree_sglang.engine.algorithm import DDTreeSpecAlgo
from ddtree_sglang.exceptions import EngineContractError

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


ANOTHER_RELEASE = """
import logging, os
import ddtree_sglang.contract.start as start
start.version = lambda name: "0.5.99"
logging.basicConfig(format="LOG %(levelname)s %(message)s")
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
import ddtree_sglang.engine.algorithm as algorithm
algorithm.resolve_server_args = lambda cfg: print("resolved")
def ask():
    wrapped = "sglang.srt.speculative.dflash_utils.validate_dflash_request" in HookRegistry._patched
    try:
        SpeculativeAlgorithm.from_string("DDTREE").handle_server_args(None)
    except Exception as error:
        print(type(error).__name__, error)
    after = "sglang.srt.speculative.dflash_utils.validate_dflash_request" in HookRegistry._patched
    print("wrapped", wrapped, after)
"""


@pytest.mark.slow
def test_another_release_is_refused_until_the_arguments_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, "")
    allow = "os.environ['DDTREE_CONFIG'] = '{\"untested_engine\": true}'\n"
    refused, *allowed = run_python(f"{ANOTHER_RELEASE}ask()\n{allow}ask()\nask()").splitlines()[-7:]
    assert "EngineContractError ddtree_sglang supports sglang==0.5.23, got 0.5.99" in refused
    assert "--speculative-ddtree-untested-engine" in refused
    assert allowed == ["wrapped False False", "resolved", "wrapped False True", "resolved", "wrapped True True"]


def test_a_process_that_was_started_with_the_permission_registers_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Schedulers and Ray's ranks inherit `DDTREE_CONFIG` and resolve no arguments."""
    done: list[object] = []
    monkeypatch.setenv(CONFIG_ENV, '{"untested_engine": true}')
    monkeypatch.setattr(start, "version", lambda name: "0.5.99")
    monkeypatch.setattr("ddtree_sglang.contract.patch.install", lambda *_: None)
    monkeypatch.setattr(plugin, "install_round", lambda: done.append("round"))
    monkeypatch.setattr(plugin, "_register_algorithm", done.append)
    plugin._register()
    assert done[0] == "round"
    assert isinstance(done[1], type)
    assert issubclass(done[1], DDTreeSpecAlgo)
    assert plugin._refusal is None
    assert "Starting on an engine that was not tested, as asked for" in caplog.text


def test_a_scheduler_that_did_not_inherit_the_permission_makes_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its algorithm is asked for no arguments, so the factory refuses: without its hooks it must not serve."""
    monkeypatch.setenv(CONFIG_ENV, "")
    monkeypatch.setattr(start, "version", lambda name: "0.5.99")
    monkeypatch.setattr(plugin, "_refusal", None)
    monkeypatch.setattr("ddtree_sglang.contract.patch.install", lambda *_: None)
    monkeypatch.setattr(plugin, "install_round", lambda: None)
    monkeypatch.setattr(plugin, "_register_algorithm", lambda algorithm: None)
    plugin._register()
    with pytest.raises(EngineContractError, match=r"supports sglang==0\.5\.23, got 0\.5\.99"):
        plugin.make_worker_class(None)


def test_permission_that_the_final_arguments_lack_is_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment allowed it when the plugin loaded; a configuration file that replaced it does not."""
    registered: list[type] = []
    monkeypatch.setenv(CONFIG_ENV, '{"untested_engine": true}')
    monkeypatch.setattr(start, "version", lambda name: "0.5.99")
    monkeypatch.setattr("ddtree_sglang.contract.patch.install", lambda *_: None)
    monkeypatch.setattr(plugin, "install_round", lambda: None)
    monkeypatch.setattr(plugin, "_register_algorithm", registered.append)
    plugin._register()
    monkeypatch.setenv(CONFIG_ENV, "{}")
    with pytest.raises(EngineContractError, match="untested-engine"):
        object.__new__(registered[0]).handle_server_args(None)


def test_register_twice_is_harmless() -> None:
    plugin.register()
    plugin.register()
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    assert SpeculativeAlgorithm.from_string("DDTREE").name == "DDTREE"
