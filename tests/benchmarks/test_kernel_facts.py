"""Kernels compiled for GPUs that are not there: the project's keep the limits, and one that does not is found."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl

from benchmarks import kernel_facts
from benchmarks.harness import kernel_compiler
from benchmarks.harness.kernel_compiler import KernelFacts, cases_of, compile_for, kernels_without_case
from ddtree_sglang.kernels import kv_move_triton, tree_builder_triton
from ddtree_sglang.kernels.compile_case import CompileCase

BARRIER = "    tl.debug_barrier()  # every warp has its rows before any stores\n"
LOAD_BARRIER_STORE = ("ld.global", "bar.sync", "st.global")
KEPT = KernelFacts("kernel", "N=1", "sm_90", 1, 128, 0, 0, 0, 48 * 1024 - 1, "")


@triton.jit
def _hold_all_rows(rows, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A warp that holds ROWS x 32 words at once, and so more than a thread has registers from 256 on."""
    places = tl.arange(0, ROWS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    held = tl.load(rows + places)
    tl.debug_barrier()
    tl.store(rows + places + 1, held)


@triton.jit
def _one(rows):  # type: ignore[no-untyped-def]
    return tl.load(rows)


@triton.jit
def _two(rows):  # type: ignore[no-untyped-def]
    tl.store(rows + 1, _one(rows))


def _case(kernel: object, **constants: int) -> CompileCase:
    return CompileCase(kernel, {"rows": torch.int32}, constants, num_warps=1)


@pytest.mark.slow
def test_every_kernel_keeps_the_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "kernel_facts.jsonl"
    assert kernel_facts.main(["--targets", "90", "--output", str(results)]) == 0, capsys.readouterr().out
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {"_build_tree_kernel", "_move_rows_kernel"} <= {row["kernel"] for row in rows}
    assert all(row["registers"] > 0 and row["provenance"]["packages"]["triton"] for row in rows)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["num_rows"] == len(rows)


@pytest.mark.parametrize("capability", kernel_facts.TARGETS)
def test_kernel_that_spills_breaks_a_limit(capability: int) -> None:
    few, many = (compile_for(_case(_hold_all_rows, ROWS=rows), capability) for rows in (16, 256))
    assert few.broken_limits() == []
    assert many.spill_store_bytes > 0
    assert "bytes of stack and spills, none are allowed" in many.broken_limits()[0]


def test_benchmark_fails_when_a_kernel_spills(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("module")
    module.compile_cases = lambda: [_case(_hold_all_rows, ROWS=256)]  # type: ignore[attr-defined]
    monkeypatch.setattr(kernel_facts, "kernel_modules", lambda _package: [module])
    assert kernel_facts.main(["--targets", "90"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["broken"] == ["_hold_all_rows sm_90 ROWS=256"]


def test_kernels_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_facts.main(["--targets", "90", "--only", "round_inputs"]) == 0
    assert "| `_round_inputs_kernel` | sm_90 | 4 |" in capsys.readouterr().out
    assert kernel_facts.main(["--only", "no_such_kernel"]) == 2
    assert "no kernel with a case has 'no_such_kernel' in its name" in capsys.readouterr().out


def test_benchmark_fails_when_a_kernel_has_no_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType(__name__)
    module.forgotten, module.compile_cases = _two, lambda: [_case(_hold_all_rows, ROWS=16)]  # type: ignore[attr-defined]
    monkeypatch.setattr(kernel_facts, "kernel_modules", lambda _package: [module])
    assert kernel_facts.main(["--targets", "90"]) == 1
    assert f"{__name__}.forgotten is in no compile_cases()" in capsys.readouterr().out


def test_kernel_that_another_calls_needs_no_case() -> None:
    module = ModuleType(__name__)
    module.helper, module.kernel = _one, _two  # type: ignore[attr-defined]
    assert kernels_without_case([module]) == [f"{__name__}.helper", f"{__name__}.kernel"]
    module.compile_cases = lambda: [_case(_two)]  # type: ignore[attr-defined]
    assert kernels_without_case([module]) == []


@pytest.mark.parametrize(
    ("facts", "broken"),
    [
        (KEPT, []),
        (replace(KEPT, registers=129), ["129 registers, at most 128 with one warp"]),
        (replace(KEPT, registers=129, num_warps=4), []),
        (replace(KEPT, stack_bytes=8), ["8 bytes of stack and spills, none are allowed"]),
        (replace(KEPT, shared_bytes=49152), ["49152 bytes of shared memory, below 49152 without a reason"]),
    ],
)
def test_limits(facts: KernelFacts, broken: list[str]) -> None:
    assert facts.broken_limits() == broken


def test_reason_justifies_shared_memory_and_nothing_else() -> None:
    facts = replace(KEPT, shared_bytes=50000, registers=200)
    assert facts.broken_limits("two tiles in flight") == ["200 registers, at most 128 with one warp"]


def test_case_names_the_parameters_of_its_kernel() -> None:
    with pytest.raises(ValueError, match=r"each parameter of _hold_all_rows, got \['LANES', 'ROWS'\]"):
        compile_for(_case(_hold_all_rows, LANES=4), 90)


def test_interpreter_compiles_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert kernel_facts.main([]) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="without TRITON_INTERPRET"):
        compile_for(_case(lambda rows: rows), 90)


def _has_barrier_between_loads_and_stores(ptx: str) -> bool:
    """Whether all global loads come first, then a barrier of the whole block, then all global stores."""
    loads, barriers, stores = (
        [match.start() for match in re.finditer(re.escape(name), ptx)] for name in LOAD_BARRIER_STORE
    )
    assert max(loads) < min(stores)
    return any(max(loads) < barrier < min(stores) for barrier in barriers)


def _module_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of that source: Triton reads a kernel's from its file."""
    copy = folder / "changed_kernel.py"
    copy.write_text(text)
    spec = importlib.util.spec_from_file_location("changed_kernel", copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "changed_kernel", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("capability", [80, 90])
def test_no_warp_stores_a_moved_row_before_all_have_loaded_theirs(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter runs one program after another and cannot show a race; the compiled code has the barrier."""
    for case in cases_of(kv_move_triton):
        assert _has_barrier_between_loads_and_stores(compile_for(case, capability).ptx), case.name

    source = Path(kv_move_triton.__file__).read_text()
    assert source.count(BARRIER) == 1
    racing = _module_of(source.replace(BARRIER, ""), tmp_path, monkeypatch)
    assert not _has_barrier_between_loads_and_stores(compile_for(cases_of(racing)[0], capability).ptx)


@pytest.mark.parametrize("capability", [80, 90])
def test_builder_finds_the_best_candidate_without_shuffles(capability: int) -> None:
    """Each redux is one instruction for a chain of five shuffles, or of ten for 64-bit numbers."""
    for case in cases_of(tree_builder_triton):
        if not case.constants["IS_FLAT"]:  # the flat layout adds up 64-bit lengths, once
            ptx = compile_for(case, capability).ptx
            # Of pairs also a parent's rank, and a maximum and a minimum for each of three first or next children.
            assert (ptx.count("shfl.sync"), ptx.count("redux.sync")) == (0, 11 if case.constants["CHOICES"] else 4), (
                case.name
            )


def test_modules_of_the_package_are_found() -> None:
    import ddtree_sglang.kernels

    names = {module.__name__ for module in kernel_compiler.kernel_modules(ddtree_sglang.kernels)}
    assert {"ddtree_sglang.kernels.kv_move_triton", "ddtree_sglang.kernels.tree_builder_triton"} <= names
