"""Several processes that tokenize import an application that has loaded SGLang's plugins, unless a user names one."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest

from ddtree_sglang.engine.entry.install import HTTP_WORKERS, load_plugins_in_http_workers

pytestmark = pytest.mark.sglang

PATH = "SGLANG_HTTP_SERVER_APP_PATH"


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    serving = SimpleNamespace(tokenizer_worker_num=2)
    monkeypatch.setattr("sglang.srt.runtime_context.get_serving", lambda: serving)
    monkeypatch.setenv(PATH, "")
    monkeypatch.delenv(PATH)
    return serving


def path_of_application() -> str:
    from sglang.srt.environ import envs

    return str(envs.SGLANG_HTTP_SERVER_APP_PATH.get())


def test_one_process_imports_nothing_by_its_path(processes: SimpleNamespace) -> None:
    stock = path_of_application()
    processes.tokenizer_worker_num = 1
    load_plugins_in_http_workers()
    assert path_of_application() == stock != HTTP_WORKERS


def test_several_processes_import_ours(processes: SimpleNamespace) -> None:
    for _ in range(2):
        load_plugins_in_http_workers()
        assert path_of_application() == HTTP_WORKERS


def test_an_application_of_the_users_own_is_kept_and_said(
    processes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PATH, "mine:app")
    load_plugins_in_http_workers()
    assert path_of_application() == "mine:app"
    assert "mine:app loads no plugins unless" in caplog.text


def test_our_application_is_sglangs_behind_its_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    import sglang.srt.entrypoints.http_server  # what it imports itself is not looked at
    import sglang.srt.plugins

    name = HTTP_WORKERS.partition(":")[0]
    happened = []
    import_module = importlib.import_module

    def importing(module: str, *args: str) -> object:
        happened.append(module)
        return import_module(module, *args)

    monkeypatch.setattr(sglang.srt.plugins, "load_plugins", lambda: happened.append("plugins"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib, "import_module", importing)
    module = import_module(name)
    monkeypatch.delitem(sys.modules, name)
    assert happened == ["plugins", "sglang.srt.entrypoints.http_server"]
    assert module.app is import_module("sglang.srt.entrypoints.http_server").app
