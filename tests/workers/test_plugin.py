"""Which processes get our actors."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from workers import plugin


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr("workers.replicas.rank_actor.install_rank_actors", lambda: calls.append(True))
    return calls


def test_ranks_become_our_actors_only_if_ray_is_asked_for(installed: list[bool]) -> None:
    plugin.install_if_asked(None, SimpleNamespace(use_ray=False))
    assert installed == []
    plugin.install_if_asked(None, SimpleNamespace(use_ray=True))
    assert installed == [True]


def test_children_of_the_launcher_start_no_ranks(installed: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.parent_process", lambda: "launcher")
    plugin.install_if_asked(None, SimpleNamespace(use_ray=True))
    assert installed == []


@pytest.mark.slow
@pytest.mark.sglang
def test_both_plugins_see_the_resolved_arguments() -> None:
    """SGLang wraps a function once: whichever plugin has hooks applied early takes them from the others."""
    code = """
from types import SimpleNamespace
import sglang.srt.server_args as server_args
from sglang.srt.plugins import load_plugins
import workers.replicas.rank_actor
server_args.ServerArgs.resolve_once = lambda self: print("resolved")
workers.replicas.rank_actor.install_rank_actors = lambda: print("ranks are ours")
load_plugins()
server_args.ServerArgs.resolve_once(SimpleNamespace(use_ray=True, speculative_algorithm=None))
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-2:] == ["resolved", "ranks are ours"], run.stderr[-2000:]
    assert "Failed to apply" not in run.stderr


def test_package_declares_it_as_a_plugin_of_sglang() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="sglang.srt.plugins", name="ddtree_ray")
    assert entry.load() is plugin.register
