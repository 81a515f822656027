"""What the tests of `deploy/` share: the fake checkout as a fixture."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.fake_checkout import FAKE_PYTHON, FAKE_SERVER, REPO, Checkout, alive


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    """A fake checkout; whatever a failing test leaves running is killed at the end."""
    from deploy import environment
    from deploy.local.server_process import free_port

    shutil.copytree(REPO / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    (tmp_path / "workers").mkdir()
    for name in ("__init__.py", "progress.py"):
        shutil.copy(REPO / "workers" / name, tmp_path / "workers")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        FAKE_PYTHON.format(notes=tmp_path / "notes", python=sys.executable, server=FAKE_SERVER, model=model)
    )
    python.chmod(0o755)
    files = [environment.SERVING_REQUIREMENTS]
    environment.stamp_path(tmp_path, files).write_text(environment.environment_digest(tmp_path, files))
    result = Checkout(tmp_path, free_port())
    yield result
    for pid in result.server_pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
