"""`deploy/environment.py`: what decides a set-up, its idempotence and lock, and the errors a person sees."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy import environment
from tests.deploy.fake_checkout import PATIENCE_S, REPO, wait_for

FAKE_UV = """#!/usr/bin/env bash
echo "$@" >> "{calls}"
sleep 0.3
if [[ -n "{output}" ]]; then echo "{output}" >&2; exit 1; fi
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout whose uv only takes notes, with a virtual environment that nothing is in yet."""
    shutil.copytree(REPO / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'small'\nversion = '1'\n")
    (tmp_path / "deploy/requirements.txt").write_text("# pins\nuv==0.0.1\nalpha==1.0\n")
    write_fake_uv(tmp_path)
    monkeypatch.setenv("DDTREE_UV", str(tmp_path / "uv"))
    venv.create(tmp_path / ".venv", with_pip=False)
    return tmp_path


def write_fake_uv(project: Path, output: str = "") -> None:
    """A `uv` that notes its arguments; with `output` it prints that and fails."""
    path = project / "uv"
    path.write_text(FAKE_UV.format(calls=project / "uv-calls", output=output))
    path.chmod(0o755)


def uv_calls(project: Path) -> list[str]:
    calls = project / "uv-calls"
    return calls.read_text().splitlines() if calls.exists() else []


FILES = ["deploy/requirements.txt"]


def test_first_run_makes_and_fills_a_venv_and_second_does_nothing(project: Path) -> None:
    shutil.rmtree(project / ".venv")
    python = environment.ensure_environment(project, FILES)
    assert subprocess.run([python, "-c", "pass"], check=False).returncode == 0
    assert len(uv_calls(project)) == 2, "the pins, then the project itself"
    assert all("--no-deps" in call for call in uv_calls(project))
    environment.ensure_environment(project, FILES)
    assert len(uv_calls(project)) == 2


@pytest.mark.parametrize("changed", ["deploy/requirements.txt", "pyproject.toml"])
def test_changed_input_installs_again(project: Path, changed: str) -> None:
    environment.ensure_environment(project, FILES)
    with (project / changed).open("a") as handle:
        handle.write("beta==2.0\n" if changed.endswith("txt") else "description = 'new'\n")
    environment.ensure_environment(project, FILES)
    assert len(uv_calls(project)) == 4


def test_interrupted_run_is_not_taken_for_finished(project: Path) -> None:
    write_fake_uv(project, output="something broke")
    with pytest.raises(environment.SetupError, match="something broke"):
        environment.ensure_environment(project, FILES)
    write_fake_uv(project)
    environment.ensure_environment(project, FILES)
    assert environment.is_ready(project, FILES)


def test_two_runs_at_once_install_once(project: Path) -> None:
    command = ["bash", str(project / "deploy/setup.sh")]
    outputs = [project / f"output-{number}" for number in range(3)]

    def all_wait() -> bool:
        return all("waiting for another set-up" in output.read_text() for output in outputs)

    # Held until all have come, however slowly they start.
    with environment.exclusive(project):
        runs = []
        for output in outputs:
            with output.open("w") as file:
                runs.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
        wait_for(all_wait, "each run says that it waits")
        assert uv_calls(project) == []
    assert [run.wait(PATIENCE_S) for run in runs] == [0, 0, 0], [output.read_text() for output in outputs]
    assert len(uv_calls(project)) == 2


def test_full_disk_is_named(project: Path) -> None:
    write_fake_uv(project, output="failed to write: No space left on device (os error 28)")
    with pytest.raises(environment.SetupError, match="disk is full"):
        environment.ensure_environment(project, FILES)


def test_unreachable_index_is_named_after_pip_was_tried_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_uv(project, output="error sending request: dns error")
    pip = next((project / ".venv/lib").glob("python3*")) / "site-packages/pip"
    pip.mkdir()
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text("import sys; sys.exit('install' in sys.argv)")
    with pytest.raises(environment.SetupError, match="check the network"):
        environment.ensure_environment(project, FILES)
    assert "trying pip" in capsys.readouterr().out


def test_too_little_disk_is_refused_before_anything_is_made(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project / ".venv")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _path: SimpleNamespace(free=3 * 10**9))
    with pytest.raises(environment.SetupError, match=r"needs 12 GB.*3\.0 GB are free"):
        environment.ensure_environment(project, FILES)
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ({"python3": "3.12", "python3.11": "3.11"}, "python3"),
        ({"python3": "3.14", "python3.12": "3.12"}, "python3.12"),
        ({"python3": "3.9", "python3.13": "3.13"}, "python3.13"),
        ({"python3": "3.14"}, "python3"),
    ],
)
def test_python_that_the_pinned_packages_have_wheels_for_is_preferred(
    tmp_path: Path, installed: dict[str, str], chosen: str
) -> None:
    """For a newer one uv downloads another interpreter, and not from the package index."""
    for name, version in installed.items():
        major, minor = version.split(".")
        fake = tmp_path / name
        # Runs the script's own check with another version in sys.version_info.
        fake.write_text(
            f'#!/bin/bash\nexec {sys.executable} -c "import sys; sys.version_info = ({major}, {minor})\n$2" "$3"\n'
        )
        fake.chmod(0o755)
    bash = str(shutil.which("bash"))
    result = subprocess.run(
        [bash, "-c", f". {REPO}/deploy/setup.sh; find_python"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout.strip()) == (0, chosen), result.stderr


def test_set_up_scripts_agree_on_the_newest_python() -> None:
    newest = ".".join(map(str, environment.NEWEST_PYTHON))
    assert f"for newest in {newest} " in (REPO / "deploy/setup.sh").read_text(encoding="utf-8")


def test_old_python_is_refused_by_name(tmp_path: Path) -> None:
    """A machine whose only python3 is too old: setup.sh says so instead of failing somewhere inside."""
    old = tmp_path / "python3"
    old.write_text('#!/bin/bash\n[[ "$1" == "--version" ]] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    result = subprocess.run(
        ["bash", str(REPO / "deploy/setup.sh")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed, found Python 3.9.2" in result.stderr


def test_setup_from_a_folder_with_a_deploy_of_its_own_keeps_the_checkout_off_its_childrens_path(
    project: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs/deploy"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("raise SystemExit('not ours')")
    uv = project / "uv"
    uv.write_text(uv.read_text().replace('"$@"', '"path ${PYTHONPATH-unset}"'))
    command = ["bash", str(project / "deploy/setup.sh")]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=theirs.parent, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert set(uv_calls(project)) == {"path unset"}
