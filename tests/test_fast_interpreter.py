"""What the faster interpreter remembers is what Triton's own works out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.architecture import ROOT

pytestmark = pytest.mark.sglang

PROGRAM = """
import sys
import torch
import triton
import triton.language as tl
if sys.argv[1] == "fast":
    from tests.fast_interpreter import speed_up
    speed_up()


@triton.jit
def _share(row, total):
    return tl.exp(row) / total


@triton.jit
def _kernel(source, target, flags, count, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    row = tl.load(source + tl.program_id(0) * count + offsets, mask=offsets < count, other=-1.0)
    small = row.to(tl.bfloat16)[None, :] + tl.zeros((4, BLOCK), tl.bfloat16)
    wide = tl.sum(small.to(tl.float64), axis=0) + tl.cumsum(row.to(tl.float64), axis=0)
    shared = _share(wide.to(tl.float32), tl.max(wide, axis=0).to(tl.float32) + 40.0)
    tl.store(target + tl.program_id(0) * BLOCK + offsets, shared)
    tl.store(flags + tl.program_id(0) * BLOCK + offsets, (offsets.to(tl.int64) << 33) | (row > 0).to(tl.int64))


source = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
target, flags = torch.zeros(3, 8), torch.zeros(3, 8, dtype=torch.int64)
for _ in range(2):
    _kernel[(3,)](source, target, flags, 6, BLOCK=8)
import json
print(json.dumps([target.tolist(), flags.tolist()]))
"""


def run(tmp_path: Any, how: str, interpret: str = "1") -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"  # the interpreter reads a kernel's source
    program.write_text(PROGRAM)
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), how]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def test_a_kernel_with_helpers_and_several_types_computes_the_same(tmp_path: Any) -> None:
    stock, fast = (run(tmp_path, how) for how in ("stock", "fast"))
    assert stock.returncode == fast.returncode == 0, fast.stderr
    assert json.loads(stock.stdout) == json.loads(fast.stdout)


def test_where_triton_compiles_it_is_refused(tmp_path: Any) -> None:
    assert "RuntimeError: Triton compiles in this process" in run(tmp_path, "fast", interpret="0").stderr
