"""Three names broken in a copy of the engine: the start and `ddtree doctor --engine` name each, and nothing else."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ddtree_sglang import cli
from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.contract.source import engine_at
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.architecture import ROOT

pytestmark = pytest.mark.sglang

CHANGES = {
    "srt/speculative/dflash_worker_v2.py": (
        "def _append_target_hidden_to_draft_kv_by_loc(",
        "def _append_hidden_to_draft_kv(",
    ),
    "srt/layers/attention/verify_mask.py": ("    is_read: bool", "    is_loaded: bool"),
    "srt/speculative/dflash_utils.py": ("enable_overlap: bool", "overlap: bool"),
}
"""A renamed method, a dropped field, a changed signature."""

NAMED = (
    "sglang.srt.speculative.dflash_worker_v2 has no DFlashWorkerV2._append_target_hidden_to_draft_kv_by_loc; worker",
    "sglang.srt.layers.attention.verify_mask.VerifyMask has no ['is_read']; trees",
    "sglang.srt.speculative.dflash_utils.validate_dflash_request has no ['enable_overlap']; hooks",
)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an `sglang` that is the installed one, linked, but for the three files."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = tmp_path_factory.mktemp("broken")
    _link(Path(spec.submodule_search_locations[0]), folder / "sglang", list(CHANGES))
    for name, (before, after) in CHANGES.items():
        text = (folder / "sglang" / name).resolve().read_text(encoding="utf-8")
        assert before in text, f"{name} has no {before!r} any more: choose another name to break"
        (folder / "sglang" / name).unlink()
        (folder / "sglang" / name).write_text(text.replace(before, after), encoding="utf-8")
    return folder


def _link(source: Path, target: Path, changed: list[str]) -> None:
    """Link everything in `source`; folders on the way to a changed file are made."""
    target.mkdir()
    for entry in source.iterdir():
        below = [name.partition("/")[2] for name in changed if name.partition("/")[0] == entry.name]
        if entry.is_dir() and below:
            _link(entry, target / entry.name, below)
        elif entry.name != "__pycache__":
            (target / entry.name).symlink_to(entry)


def test_doctor_names_each_and_nothing_else(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (broken, broken / "sglang"):
        assert cli.main(["doctor", "--engine", str(place)]) == 1
        *rows, verdict = capsys.readouterr().out.splitlines()
        assert len(rows) == len(NAMED)
        for named in NAMED:
            assert [row for row in rows if row.startswith(f"BROKEN  engine: {named}")], rows
        assert re.search(r": 3 of \d{3} rows break$", verdict), verdict


def test_doctor_reads_a_wheel_without_unpacking_or_installing_it(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "sglang-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sglang-9.9.9.dist-info/METADATA", "Name: sglang")
        for name in (*CHANGES, "srt/server_args.py"):
            archive.write(broken / "sglang" / name, f"sglang/{name}")
    assert cli.main(["doctor", "--engine", str(wheel)]) == 1
    out = capsys.readouterr().out
    assert f"BROKEN  engine: {NAMED[2]}" in out
    assert "no module sglang.srt.managers.schedule_batch" in out
    assert f"sglang 9.9.9 in {wheel}" in out


def test_the_installed_engine_breaks_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    assert cli.main(["doctor", "--engine", str(Path(spec.submodule_search_locations[0]).parent)]) == 0
    (verdict,) = capsys.readouterr().out.splitlines()
    assert verdict.startswith("ok      sglang 0.5.23 in ")
    assert ": 0 of " in verdict


def test_a_checkout_is_found_and_what_is_no_engine_is_refused(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "python").symlink_to(broken)
    release, source = engine_at(str(tmp_path))
    assert release == "of unknown version"
    assert source.tree("sglang.srt.server_args") is not None
    for wrong in (tmp_path / "nowhere", broken / "sglang" / "srt", Path(__file__)):
        with pytest.raises(DDTreeConfigError, match="an engine must be a wheel or a folder"):
            engine_at(str(wrong))
    assert cli.main(["doctor", "--engine", str(tmp_path / "nowhere")]) == 1
    assert "FAILED  engine: an engine must be" in capsys.readouterr().out


@pytest.mark.slow
def test_start_names_each_whatever_the_user_allows(broken: Path) -> None:
    code = """
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
try:
    SpeculativeAlgorithm.from_string("DDTREE").handle_server_args(None)
except Exception as error:
    print(type(error).__name__, error)
print(sorted(HookRegistry._hooks))
"""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{broken}:{ROOT}",
        CONFIG_ENV: '{"untested_engine": true}',
    }
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    reason, hooks = run.stdout.splitlines()[-2:]
    packages = r"EngineContractError fastapi [\d.]+, sglang 0\.5\.23, starlette [\d.]+, torch "
    assert re.match(packages, reason), run.stderr[-2000:]
    for named in NAMED:
        assert named in reason
    assert reason.count(" needs it") == len(NAMED)
    assert "resolve_once" in hooks
    assert "validate_dflash_request" not in hooks
