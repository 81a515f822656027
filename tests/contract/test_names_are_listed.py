"""Every foreign name that our source relies on stands in a table, and the test sees when one does not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from ddtree_sglang.contract.check import Row
from ddtree_sglang.contract.cpu_patches import CPU_PLATFORM_PATCHES
from ddtree_sglang.contract.cpu_platform import CPU_PLATFORM
from ddtree_sglang.contract.engine import ENGINE
from ddtree_sglang.contract.entry import ENTRY
from ddtree_sglang.contract.models import MODELS
from ddtree_sglang.contract.patches import ENGINE_PATCHES
from ddtree_sglang.contract.viewer import VIEWER
from ddtree_sglang.contract.worker_patches import WORKER_PATCHES
from ddtree_sglang.contract.workers import WORKERS
from tests.architecture import ROOT, source_files
from tests.contract.walk import Listed, Use, uses_of

pytestmark = pytest.mark.sglang

PATCHED = {patch.target for patch in (*ENGINE_PATCHES, *CPU_PLATFORM_PATCHES, *WORKER_PATCHES)}

TABLES: dict[str, tuple[Row, ...]] = {
    "ddtree_sglang/engine": (*ENGINE, *ENTRY),
    "ddtree_sglang/cpu_platform": CPU_PLATFORM,
    "ddtree_sglang/demo": MODELS,
    "ddtree_sglang/training": MODELS,
    "ddtree_sglang/viewer": VIEWER,
    "workers": WORKERS,
}
"""The table of each folder; what is in none of them may rely on nothing foreign."""


@cache
def uses(folder: str) -> tuple[Use, ...]:
    return tuple(use for path in source_files(folder) for use in uses_of(path))


def unlisted(folder: str, rows: tuple[Row, ...]) -> list[str]:
    listed = Listed(rows)
    return [f"{u.place}: {u.module} {u.name} {u.member}" for u in uses(folder) if not listed.covers(u)]


@pytest.mark.parametrize("folder", TABLES)
def test_every_name_that_a_folder_relies_on_is_in_its_table(folder: str) -> None:
    assert unlisted(folder, TABLES[folder]) == [], f"add rows to the table of {folder} in ddtree_sglang/contract"


def test_what_has_no_table_relies_on_nothing_foreign() -> None:
    elsewhere = [path for path in source_files("ddtree_sglang") if not _has_table(path)]
    assert {path.name for path in elsewhere} >= {"config.py", "tree_builder.py", "cli.py"}
    assert [use for path in elsewhere for use in uses_of(path)] == []


def _has_table(path: Path) -> bool:
    return any(path.is_relative_to(ROOT / folder) for folder in TABLES)


@pytest.mark.parametrize("folder", ["ddtree_sglang/engine", "ddtree_sglang/cpu_platform", "workers"])
def test_a_removed_row_or_field_is_noticed(folder: str) -> None:
    """Removing any row, or any of its names, that the walk has a use for must be seen.

    The walk has none for what a patch changes: `test_patches.py` looks for those.
    """
    rows = TABLES[folder]
    walked = [row for row in rows if f"{row.module}.{row.name}" not in PATCHED]
    seen = [row for row in walked if unlisted(folder, tuple(other for other in rows if other is not row))]
    assert len(seen) > 0.7 * len(walked), [row.name for row in walked if row not in seen]


@pytest.mark.parametrize(
    ("folder", "name", "member"),
    [
        ("ddtree_sglang/engine", "DFlashWorkerV2", "_tp_sync"),
        ("ddtree_sglang/engine", "DFlashWorkerV2", "_full_embed_gpu"),
        ("ddtree_sglang/engine", "DFlashWorkerV2", "_draft_block_spec_info"),
        ("ddtree_sglang/engine", "ModelRunner", "capture_tail_hooks"),
        ("ddtree_sglang/engine", "ModelRunner", "init_new_workspace"),
        ("ddtree_sglang/engine", "ScheduleBatch", "is_extend_in_batch"),
        ("ddtree_sglang/engine", "Spec", "speculative_draft_sink_size"),
        ("ddtree_sglang/engine", "CustomSpecAlgo", "is_dflash"),
        ("ddtree_sglang/engine", "SpecTpSyncSite", "DFLASH_ACCEPT_GREEDY"),
        ("ddtree_sglang/cpu_platform", "MHATokenToKVPool", "k_buffer"),
        ("ddtree_sglang/cpu_platform", "RadixAttention", "logit_cap"),
        ("ddtree_sglang/cpu_platform", "CpuDeviceMixin", "is_pin_memory_available"),
        ("workers", "PrefixCacheAffinityRouter", "choose_replicas"),
        ("workers", "AutoscalingConfig", "target_ongoing_requests"),
        ("workers", "GenerateReqInput", "parallel_sample_num"),
    ],
)
def test_a_removed_field_is_named(folder: str, name: str, member: str) -> None:
    rows = tuple(
        row._replace(uses=" ".join(use for use in row.names if use != member)) if row.name == name else row
        for row in TABLES[folder]
    )
    assert rows != TABLES[folder], f"{name} has no {member} in the table"
    found = unlisted(folder, rows)
    assert found
    assert all(line.endswith(f"{name} {member}") for line in found)


def test_the_walk_sees_every_kind_of_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "ours.py"
    source.write_text("""
from __future__ import annotations
import ray
import torch
from torch import nn
from typing import TYPE_CHECKING
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

class Ours(AttentionBackend):
    def support_triton(self): return self.ours
    def use(self, batch: ScheduleBatch | None, unknown):
        self.ours = batch.reqs
        super().forward_decode()
        unknown.attribute
        runner = self.model_runner
        runner.capture_tail_hooks.append(1)
        getattr(runner, "sampler", None)
        MHATokenToKVPool.move_kv_cache(tgt_loc=1)
        ray.util.placement_group([], strategy="PACK")
        torch.ops.mkldnn._linear_pointwise(torch.zeros(1), nn.Linear)
""")
    monkeypatch.setattr("tests.contract.walk.ROOT", tmp_path)
    monkeypatch.setattr("tests.contract.walk.module_name", lambda path: "tests.contract.walk")
    found = {(use.module.rsplit(".", 1)[-1], use.name, use.member) for use in uses_of(source)}
    assert found == {
        ("base_attn_backend", "AttentionBackend", ""),
        ("memory_pool", "MHATokenToKVPool", ""),
        ("schedule_batch", "ScheduleBatch", ""),
        ("base_attn_backend", "AttentionBackend", "support_triton"),
        ("schedule_batch", "ScheduleBatch", "reqs"),
        ("base_attn_backend", "AttentionBackend", "forward_decode"),
        ("base_attn_backend", "AttentionBackend", "model_runner"),
        ("model_runner", "ModelRunner", "capture_tail_hooks"),
        ("model_runner", "ModelRunner", "sampler"),
        ("memory_pool", "MHATokenToKVPool", "move_kv_cache"),
        ("memory_pool", "MHATokenToKVPool.move_kv_cache", "tgt_loc"),
        ("util", "placement_group", ""),
        ("util", "placement_group", "strategy"),
        ("torch", "ops.mkldnn._linear_pointwise", ""),
    }
