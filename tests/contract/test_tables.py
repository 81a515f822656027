"""The tables hold for what is installed, and a start that finds otherwise says all of it."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from ddtree_sglang.contract import start
from ddtree_sglang.contract.check import Row, mismatches
from ddtree_sglang.contract.cpu_platform import CPU_PLATFORM
from ddtree_sglang.contract.engine import ENGINE
from ddtree_sglang.contract.entry import ENTRY
from ddtree_sglang.contract.models import MODELS
from ddtree_sglang.contract.source import installed
from ddtree_sglang.contract.start import require, untested_release
from ddtree_sglang.contract.viewer import VIEWER
from ddtree_sglang.contract.workers import WORKERS
from ddtree_sglang.exceptions import EngineContractError
from tests.architecture import source_files

pytestmark = pytest.mark.sglang

TABLES = {
    "engine": ENGINE,
    "entry": ENTRY,
    "cpu_platform": CPU_PLATFORM,
    "workers": WORKERS,
    "models": MODELS,
    "viewer": VIEWER,
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_hold_for_what_is_installed(name: str) -> None:
    import torch  # noqa: F401  (compiled rows are looked up in it)

    assert mismatches(TABLES[name]) == []


@pytest.mark.parametrize("name", TABLES)
def test_no_row_stands_twice(name: str) -> None:
    keys = [(row.module, row.name) for row in TABLES[name]]
    assert sorted(set(keys)) == sorted(keys)


@pytest.mark.parametrize("name", TABLES)
def test_each_row_says_which_modules_of_ours_need_it(name: str) -> None:
    paths = source_files("ddtree_sglang", "workers")
    ours = {path.stem for path in paths} | {path.parent.name for path in paths}
    assert {row.name: row.why for row in TABLES[name] if not set(row.why.split(", ")) <= ours} == {}


def test_reading_leaves_the_garbage_collector_as_it_was() -> None:
    assert gc.isenabled()
    mismatches([Row("sglang.version", "__version__")])
    assert gc.isenabled()
    gc.disable()
    try:
        mismatches([Row("sglang.version", "__version__")])
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_check_is_quick_and_imports_nothing_of_what_it_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDTREE_CACHE", str(tmp_path / "a file"))
    (tmp_path / "a file").touch()  # no check is kept
    code = """
import sys, time
started = time.process_time()
from ddtree_sglang.contract import cpu_platform, engine, workers
from ddtree_sglang.contract.start import require
require((*engine.ENGINE, *cpu_platform.CPU_PLATFORM, *workers.WORKERS))
print(time.process_time() - started, {"sglang", "ray", "torch", "transformers"} & set(sys.modules))
"""
    spent = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds, imported = run.stdout.split(maxsplit=1)
        assert imported.strip() == "set()"
        spent.append(float(seconds))
        if min(spent) < 3:
            break
    # 0.7 s of a core when this was written. A core that others share takes longer for a while.
    assert min(spent) < 3


def test_a_check_leaves_no_parsed_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are hundreds of thousands of objects, which each full garbage collection of a server would walk."""
    monkeypatch.setenv("DDTREE_CACHE", str(tmp_path))
    require(ENGINE[:3])
    assert installed.cache_info().currsize == 0


def test_every_mismatch_is_named_and_what_to_install() -> None:
    gone = Row("sglang.srt.server_args", "ServerArgs.no_such_method", why="ours")
    changed = Row("sglang.srt.server_args", "prepare_server_args", "argv gone", "ours")
    with pytest.raises(EngineContractError) as caught:
        require((gone, changed, ENGINE[0]))
    message = str(caught.value)
    assert "has no ServerArgs.no_such_method" in message
    assert "prepare_server_args has no ['gone']" in message
    assert "Install sglang==0.5.23" in message


def test_another_release_is_refused_even_when_all_names_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    assert untested_release() is None
    monkeypatch.setattr(start, "version", lambda name: "0.5.24")
    assert "supports sglang==0.5.23, got 0.5.24" in str(untested_release())


def test_triton_attention_skips_the_masks_prefix_cells_unless_told_otherwise() -> None:
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    assert inspect.signature(extend_attention_fwd).parameters["skip_prefix_custom_mask"].default is True
