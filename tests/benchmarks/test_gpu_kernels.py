"""Rows of kernels in Triton's interpreter: right ones pass, one that is wrong or does not launch fails its rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_kernel_rows
from benchmarks.gpu_kernel_rows import DifferentError, Size

REPO = Path(__file__).resolve().parents[2]


def run(*flags: str, before: str = "") -> tuple[int, str]:
    """Status and output of the program in a process of its own, `before` run first."""
    code = f"import sys\n{before}\nfrom benchmarks.gpu_kernels import main\nsys.exit(main({list(flags)!r}))"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_every_row_is_checked_and_timed(tmp_path: Path) -> None:
    status, output = run("--small", "--output", str(tmp_path / "rows.jsonl"))
    assert status == 0, output
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(gpu_kernel_rows.ROWS)
    assert {"kernel_us", "floor_us", "provenance", "batch_size", "num_nodes", "vocabulary"} <= set(lines[0])
    assert json.loads(output.splitlines()[-1])["failed"] == 0


@pytest.mark.parametrize("size", [Size(1, 17), Size(8, 65), Size(32, 17)])
def test_laws_of_pairs_have_a_root_for_each_request(size: Size) -> None:
    ids, logprobs, roots, pairs = gpu_kernel_rows.pair_candidates(size)
    assert roots.shape == (size.batch_size,)
    assert ids.shape == logprobs.shape == pairs.shape[:3] == (size.batch_size, size.depth, 16)


WRONG = """
import ddtree_sglang.kernels.tree_builder_triton as module
right = module.build_into
def wrong(built, *arguments):
    right(built, *arguments)
    built.tree.token_ids[:, -1] += 1
module.build_into = wrong
"""
BROKEN = """
import ddtree_sglang.kernels.round_commit_triton as module
def broken(*_arguments):
    raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
module.commit_round_triton = broken
"""


@pytest.mark.parametrize(
    ("fault", "told", "rows"),
    [
        (WRONG, "FAIL DifferentError: tree.token_ids differs from the oracle's in 1 of 17 places", 2),
        (BROKEN, "FAIL RuntimeError: Triton Error [CUDA]: an illegal memory access", 1),
    ],
)
def test_a_kernel_that_is_wrong_fails_and_the_others_are_checked(fault: str, told: str, rows: int) -> None:
    status, output = run("--small", "--check-only", before=fault)
    assert status == 1
    assert told in output
    summary = json.loads(output.splitlines()[-1])
    assert (summary["failed"], summary["checked"]) == (2 * rows, 2 * (len(gpu_kernel_rows.ROWS) - rows))


def test_without_a_gpu_and_without_the_interpreter_nothing_is_claimed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu_kernels

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert gpu_kernels.main(["--check-only"]) == 2
    assert "an NVIDIA GPU is needed" in capsys.readouterr().err


def test_walks_of_the_rows_have_some_length() -> None:
    tree = gpu_kernel_rows.build_draft_tree(*gpu_kernel_rows.candidates(Size(8, 65)), 65)
    chosen = gpu_kernel_rows._chosen(tree)
    made = gpu_kernel_rows.commit_round(tree, chosen, torch.zeros(8, dtype=torch.int64), 16)
    assert int(made.path.commit_lens.max()) >= 4


def test_a_difference_is_told_with_its_size() -> None:
    with pytest.raises(DifferentError, match="x differs from the oracle's in 1 of 3 places"):
        gpu_kernel_rows._assert_equal("x", torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]))
    with pytest.raises(DifferentError, match="in all of 3 places"):
        gpu_kernel_rows._assert_equal("x", torch.tensor([1, 2]), torch.tensor([1, 2, 4]))


def test_every_kernel_has_its_row() -> None:
    modules = (REPO / "ddtree_sglang/kernels").glob("*_triton.py")
    rows = {name.split(",")[0] for name in gpu_kernel_rows.ROWS}
    assert {path.stem for path in modules} == rows, "a kernel without a row is never timed: gpu_kernel_rows.py"
