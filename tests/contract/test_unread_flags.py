"""Flags that are refused because no round reads them: who reads them in SGLang, so that a new reader is noticed.

A server that took them would answer as without them, which is not what was asked for.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.architecture import ROOT, source_files

pytestmark = pytest.mark.sglang

_EAGLE = {
    "eagle_disaggregation.build_eagle_disagg_draft_input",
    "eagle_draft_cuda_graph_runner.EAGLEDraftCudaGraphRunner",
    "eagle_info.EagleDraftInput",
    "eagle_utils._can_use_sparse_uno_tree_target_sampling",
    "eagle_utils.eagle_sample",
    "eagle_worker_v2.EagleDraftWorker",
    "multi_layer_eagle_worker_v2.MultiLayerEagleDraftWorker",
}
_THRESHOLDS = {
    "dflash_utils.compute_dflash_sampling_correct_drafts_and_bonus",
    "eagle_utils.eagle_sample",
    # Sets them, which is refused (engine.admission.control_requests).
    "internal_state.SchedulerInternalStateController",
    "spec_sampling_mask.validate_spec_sampling_mask_request",
}
READERS = {
    "speculative_use_rejection_sampling": _EAGLE,
    "speculative_accept_threshold_single": _THRESHOLDS,
    "speculative_accept_threshold_acc": _THRESHOLDS,
    "speculative_draft_sink_size": {"spec_utils.resolve_draft_decode_window"},
}
"""Of each flag, the module and the function or class of SGLang that read it, but for those that resolve arguments."""

ANSWERED = "validate_spec_sampling_mask_request"
"""What `engine.hooks.answer_sampling_masks` answers for DDTREE without a look at them."""
OF_A_CHAIN = "compute_dflash_sampling_correct_drafts_and_bonus"


@cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    """Name and syntax tree of each module of SGLang's runtime that has one of the flags."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    runtime = Path(spec.submodule_search_locations[0]) / "srt"
    texts = ((path, path.read_text(encoding="utf-8")) for path in sorted(runtime.rglob("*.py")))
    return tuple(
        (path.stem, ast.parse(text))
        for path, text in texts
        if "arg_groups" not in path.parts and any(flag in text for flag in READERS)
    )


def readers(flag: str) -> Iterator[str]:
    for module, tree in sources():
        for top in tree.body:
            names = {node.attr for node in ast.walk(top) if isinstance(node, ast.Attribute)}
            names |= {node.value for node in ast.walk(top) if isinstance(node, ast.Constant)}
            if flag in names:
                assert isinstance(top, ast.FunctionDef | ast.ClassDef), f"{module} reads {flag} at its top"
                yield f"{module}.{top.name}"


@pytest.mark.parametrize("flag", READERS)
def test_who_reads_a_flag_that_no_round_reads(flag: str) -> None:
    assert set(readers(flag)) == READERS[flag]


def test_no_round_calls_any_of_them() -> None:
    names = {reader.rpartition(".")[2] for found in READERS.values() for reader in found} - {ANSWERED}
    called = {
        (path.relative_to(ROOT).as_posix(), node.id if isinstance(node, ast.Name) else node.attr)
        for path in source_files("ddtree_sglang/engine")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name | ast.Attribute)
    }
    assert {(path, name) for path, name in called if name in names} == set()


def test_what_sglangs_chain_reads_them_in_is_ours_under_ddtree() -> None:
    from sglang.srt.speculative import dflash_worker_v2

    from ddtree_sglang.engine.worker import DDTreeWorker

    tree = ast.parse(Path(str(dflash_worker_v2.__file__)).read_text(encoding="utf-8"))
    (chain,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DFlashWorkerV2")
    names_of = {
        method.name: {getattr(node, "id", None) or getattr(node, "attr", None) for node in ast.walk(method)}
        for method in chain.body
        if isinstance(method, ast.FunctionDef)
    }
    ours, asked, passed = set(vars(DDTreeWorker)), {OF_A_CHAIN}, set()
    while asked:
        name = asked.pop()
        callers = {method for method, names in names_of.items() if name in names and method != name}
        assert callers, f"{name} is called from elsewhere"
        passed.add(name)
        asked |= callers - ours - passed
