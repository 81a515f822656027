"""`gpu_proof.sh` without a GPU: which tokenizer the made-up weights get, and shellcheck."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "benchmarks/gpu_proof.sh"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with a python that notes each call and prepares the model `embedded`, and an nvidia-smi with a GPU."""
    folder = tmp_path / "tools"
    folder.mkdir()
    python = f'echo "$*" >>"{tmp_path}/calls"\n[[ "$*" != *prepare_model* ]] || echo embedded\n'
    for name, body in (("python", python), ("nvidia-smi", "echo GPU 0\n")):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("flags", "tokenizer"),
    [
        (["--model", "given", "--draft", "drafter"], "given"),
        (["--draft", "drafter", "--model", "given"], "given"),
        ([], "embedded"),
    ],
)
def test_made_up_weights_get_the_given_models_tokenizer_and_only_else_the_embedded_ones(
    tools: Path, tmp_path: Path, flags: list[str], tokenizer: str
) -> None:
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python")}
    command = ["bash", str(SCRIPT), *flags, "--out", str(tmp_path / "out"), "rounds"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    calls = (tmp_path / "calls").read_text()
    assert f"dummy-pair --tokenizer {tokenizer}\n" in calls
    assert ("prepare_model" in calls) == (tokenizer == "embedded")


def test_script_passes_shellcheck() -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (tests/requirements.txt has it for x86-64)")
    ended = subprocess.run([checker, "-x", str(SCRIPT)], cwd=REPO, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(("capability", "expected"), [("9.0", "fa3"), ("10.0", "fa4"), ("8.9", None)])
def test_each_backend_of_the_gpu_is_compared_with_plain_decoding(
    tools: Path, tmp_path: Path, capability: str, expected: str | None
) -> None:
    (tools / "nvidia-smi").write_text(
        f'#!/usr/bin/env bash\n[[ "$*" == *compute_cap* ]] && echo {capability} || echo GPU 0\n'
    )
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python")}
    command = ["bash", str(SCRIPT), "--out", str(tmp_path / "out"), "backends"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    compared = [line for line in (tmp_path / "calls").read_text().splitlines() if "bench_lossless" in line]
    # The last flag of a name is the one that counts.
    used = [line.rsplit("--attention-backend=", 1)[1].split()[0] for line in compared]
    assert used == ["triton", "flashinfer", *([expected] if expected else [])]
