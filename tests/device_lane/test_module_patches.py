"""A patch waits for its module, and a name that the pinned version does not have is an error at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.device_lane import fa3_reference, module_patches
from tests.device_lane.module_patches import PinnedNameError, on_import, replace, require_signature
from tests.device_lane.violations import LaneViolation


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    """A module that nobody imported yet: a function, and what it gave when the module ran."""
    (tmp_path / "lane_victim.py").write_text("def answer(question):\n    return 1\n\nAT_IMPORT = answer(None)\n")
    sys.path.insert(0, str(tmp_path))
    importlib.invalidate_caches()
    yield "lane_victim"
    sys.path.remove(str(tmp_path))
    sys.modules.pop("lane_victim", None)
    module_patches._waiting.pop("lane_victim", None)


def test_patch_runs_around_the_import(module: str) -> None:
    order: list[str] = []
    on_import(
        module,
        module_patches.Patch(
            before=lambda: order.append("before"),
            after=lambda loaded: (
                order.append(f"after {loaded.AT_IMPORT}"),
                replace(loaded, "answer", lambda question: 2),
            ),
        ),
    )
    assert order == []
    victim = importlib.import_module(module)
    assert order == ["before", "after 1"]
    assert victim.answer(None) == 2


def test_patch_of_an_imported_module_runs_at_once_unless_it_has_a_before(module: str) -> None:
    victim = importlib.import_module(module)
    on_import(module, module_patches.Patch(after=lambda loaded: replace(loaded, "answer", max)))
    assert victim.answer is max
    with pytest.raises(PinnedNameError, match="imported already"):
        on_import(module, module_patches.Patch(after=lambda loaded: None, before=lambda: None))


def test_name_that_is_gone_or_takes_something_else_is_an_error(module: str) -> None:
    victim = importlib.import_module(module)
    with pytest.raises(PinnedNameError, match="has no question"):
        replace(victim, "question", 1)
    with pytest.raises(PinnedNameError, match="takes \\['question'\\]"):
        replace(victim, "answer", max, ("other",))


def test_signature_of_another_version_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "kernels.py"
    source.write_text("def merge_state_v2(v_a, s_a, v_b, s_b, v_merged=None, s_merged=None): ...\n")
    require_signature(source, "merge_state_v2", fa3_reference.merge_state_v2)
    source.write_text("def merge_state_v2(v_a, s_a, v_b, s_b, s_merged=None): ...\n")
    with pytest.raises(PinnedNameError, match="s_merged"):
        require_signature(source, "merge_state_v2", fa3_reference.merge_state_v2)
    with pytest.raises(PinnedNameError, match="has no merge_state"):
        require_signature(source, "merge_state", fa3_reference.merge_state_v2)


def test_page_table_builder_that_passes_its_row_is_a_violation() -> None:
    stored: list[int] = []
    build = fa3_reference.strict_page_table_builder(lambda *arguments: stored.append(int(arguments[3].min())))
    table = torch.zeros(2, 8, dtype=torch.int32)
    req_to_token, rows = torch.zeros(4, 40, dtype=torch.int32), torch.tensor([1, 2])
    build(req_to_token, rows, torch.tensor([8, 3], dtype=torch.int32), table, 1)
    assert stored == [-1]
    with pytest.raises(LaneViolation, match="stores end within their row of 8"):
        build(req_to_token, rows, torch.tensor([8, 9], dtype=torch.int32), table, 1)
    with pytest.raises(LaneViolation, match="loads end within a request's row of 40"):
        build(req_to_token, rows, torch.tensor([8, 41], dtype=torch.int32), table, 16)


def test_function_inside_a_function_is_read_up_to_what_the_reference_reads(tmp_path: Path) -> None:
    source = tmp_path / "prefill.py"
    source.write_text("def make(backend):\n    def run(q, k, v, sinks=None): ...\n    return run\n")
    module_patches.require_parameters(source, "make.run", ["q", "k"])
    with pytest.raises(PinnedNameError, match=r"takes \['q', 'k'\]"):
        module_patches.require_parameters(source, "make.run", ["q", "v"])
    with pytest.raises(PinnedNameError, match="has no wake"):
        module_patches.require_parameters(source, "wake.run", ["q"])
