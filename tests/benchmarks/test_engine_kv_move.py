"""SGLang's own move of KV rows, as compiled: right for a slot that is both source and target, though nothing waits.

Pools that our kernel leaves alone are moved by it (engine/stages/kv_moves.py). All warps load, then all store, without
a barrier: that is right only as long as no thread stores what another one loads.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from benchmarks.harness.kernel_compiler import compile_kernel
from ddtree_sglang.kernels.compile_case import CompileCase

pytestmark = pytest.mark.sglang


def engine_launches(monkeypatch: pytest.MonkeyPatch, row_bytes: int) -> list[tuple[int, int, int]]:
    """Tile in bytes, warps and most rows of the launches by which a pool of such rows moves 256 of them and 16."""
    from sglang.srt.mem_cache import memory_pool

    launches: list[tuple[int, int, int]] = []

    def note(_ptrs: Any, _strides: Any, _to: Any, _from: Any, _count: int, most: int, config: dict[str, int]) -> None:
        launches.append((config["bytes_per_tile"], config["num_warps"], most))

    monkeypatch.setattr(memory_pool, "copy_all_layer_kv_cache_func", note)
    pool = memory_pool.MHATokenToKVPool(
        300, 1, torch.bfloat16, 1, row_bytes // 2, 1, "cpu", enable_memory_saver=False, enable_kv_cache_copy=True
    )
    for count in (256, 16):
        slots = torch.arange(count)
        pool.move_kv_cache(slots, slots)
    return launches


def has_each_byte_column_in_one_thread(ttgir: str) -> bool:
    """Whether the launch loads and stores rows in one layout that spreads threads along a row only, none twice."""
    tiles = re.findall(r"tt\.(load|store) .*tensor<(\d+)x(\d+)x!tt\.ptr<i8>, (#\w+)>", ttgir)
    assert [kind for kind, *_ in tiles] == ["load", "store"]
    ((_, _, columns, layout),) = {("", *tile[1:]) for tile in tiles}
    fields = re.search(rf"^{layout} = #ttg\.blocked<{{(.*)}}>$", ttgir, re.MULTILINE)
    assert fields is not None
    spread = {name: (int(row), int(column)) for name, row, column in re.findall(r"(\w+) = \[(\d+), (\d+)\]", fields[1])}
    per_thread, lanes, warps = (spread[name] for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA"))
    return lanes[0] == warps[0] == 1 and int(columns) >= per_thread[1] * lanes[1] * warps[1]


def engine_case(tile: int, num_warps: int, most: int) -> CompileCase:
    from sglang.kernels.ops.kvcache.cache_move import copy_all_layer_kv_cache_tiled

    arguments = {
        "data_ptrs": torch.uint64,
        "strides": torch.int64,
        "tgt_loc_ptr": torch.int64,
        "src_loc_ptr": torch.int64,
        "num_locs": most,
    }
    constants = {"num_locs_upper": most, "BYTES_PER_TILE": tile}
    return CompileCase(copy_all_layer_kv_cache_tiled, arguments, constants, num_warps)


@pytest.mark.slow
@pytest.mark.parametrize("row_bytes", [256, 4096, 8192])
@pytest.mark.parametrize("capability", [80, 90])
def test_engines_move_keeps_every_byte_column_in_one_thread(
    monkeypatch: pytest.MonkeyPatch, row_bytes: int, capability: int
) -> None:
    """So a thread's own loads come before its own stores, and no other thread stores what it loads: no race."""
    for launch in set(engine_launches(monkeypatch, row_bytes)):
        assert has_each_byte_column_in_one_thread(compile_kernel(engine_case(*launch), capability).asm["ttgir"]), launch


def test_narrower_tile_would_race() -> None:
    """What the check above would notice: with 64 bytes for four warps, two threads hold each byte."""
    assert not has_each_byte_column_in_one_thread(compile_kernel(engine_case(64, 4, 16), 90).asm["ttgir"])
