"""Which rows move and who moves them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ddtree_sglang.core import AcceptedPath
from ddtree_sglang.engine.stages import kv_moves

pytestmark = pytest.mark.sglang

# Window slots of two requests; the first one's third node is accepted, and the second one's second, which stays.
SLOTS = torch.tensor([[10, 11, 12], [20, 21, 22]])
INDEX = torch.tensor([[0, 2, -1], [0, 1, -1]])


def accepted(index: torch.Tensor = INDEX) -> AcceptedPath:
    lens = (index >= 0).sum(1)
    return AcceptedPath(index, lens - 1, lens, index, lens)


class NotedPool:
    """Keeps the targets and the sources of each move."""

    def __init__(self) -> None:
        self.moves: list[tuple[list[int], list[int]]] = []

    def move_kv_cache(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        self.moves.append((tgt_loc.tolist(), src_loc.tolist()))


def plain_pool(dtype: torch.dtype = torch.bfloat16, head_dim: int = 8, **changes: Any) -> Any:
    """SGLang's pool of two layers, on the host."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    given = {"size": 30, "page_size": 1, "dtype": dtype, "head_num": 2, "head_dim": head_dim, "layer_num": 2}
    return MHATokenToKVPool(**given | changes, device="cpu", enable_memory_saver=False)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_moves, "is_device_path", lambda: True)


def test_on_the_host_only_rows_that_move_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_moves, "is_device_path", lambda: False)
    pool = NotedPool()
    mover = kv_moves.make_mover(pool)
    mover.move(SLOTS, accepted())
    mover.move(SLOTS, accepted(torch.tensor([[0, 1, 2], [0, -1, -1]])))
    assert pool.moves == [([11], [12])]


@pytest.mark.usefixtures("on_device")
def test_another_pool_on_a_device_moves_all_rows_of_the_paths() -> None:
    """The host does not know which of them move; past the end of a path the root's moves onto itself."""
    pool = NotedPool()
    mover = kv_moves.make_mover(pool)
    mover.move(SLOTS, accepted())
    mover.move(SLOTS[:, :1], accepted())  # the root alone was verified
    assert pool.moves == [([10, 11, 10, 20, 21, 20], [10, 12, 10, 20, 21, 20])]


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_plain_pool_on_a_device_is_moved_by_the_kernel(dtype: torch.dtype) -> None:
    pool = plain_pool(dtype)
    mover = kv_moves.make_mover(pool)
    assert isinstance(mover, kv_moves.KernelMover)
    rows = mover.rows
    assert rows.data_ptrs.tolist() == pool.data_ptrs.tolist()
    assert rows.row_bytes.tolist() == pool.data_strides.tolist()


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize(
    "change",
    [
        {"kv_cache_layout": "hnd"},
        {"kv_cache_layout": "vectorized_5d"},
        {"quant_method": object()},
        {"use_native_move_kv_cache": True},
        {"layer_num": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_pool_of_another_form_moves_its_rows_itself(change: dict[str, Any]) -> None:
    pool = plain_pool()
    assert kv_moves.has_plain_rows(pool)
    for name, value in change.items():
        setattr(pool, name, value)
    assert isinstance(kv_moves.make_mover(pool), kv_moves.PoolMover)


@pytest.mark.usefixtures("on_device")
def test_pool_of_another_class_moves_its_rows_itself() -> None:
    """As those with sliding windows, latent keys or scales: they keep more per slot, or translate slots."""
    from ddtree_sglang.cpu_platform.kv_pool import CpuMHATokenToKVPool

    pool = object.__new__(CpuMHATokenToKVPool)
    pool.__dict__.update(plain_pool().__dict__)
    assert isinstance(kv_moves.make_mover(pool), kv_moves.PoolMover)


def windowed_pool(full_layers: int = 1) -> Any:
    """SGLang's pair of pools for a model with sliding windows, on the host."""
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    return SWAKVPool(
        size=30,
        size_swa=20,
        page_size=1,
        dtype=torch.bfloat16,
        head_num=2,
        head_dim=8,
        swa_head_num=1,
        swa_attention_layer_ids=[0, 2],
        full_attention_layer_ids=list(range(1, 2 * full_layers, 2)),
        device="cpu",
    )


@pytest.mark.usefixtures("on_device")
def test_pools_of_a_model_with_sliding_windows_are_moved_by_a_kernel_each() -> None:
    pool = windowed_pool()
    mover = kv_moves.make_mover(pool)
    assert isinstance(mover, kv_moves.WindowedMover)
    for part, held in ((mover.full, pool.full_kv_pool), (mover.sliding, pool.swa_kv_pool)):
        assert part.rows.data_ptrs.tolist() == held.data_ptrs.tolist()
    pool.register_mapping(torch.arange(31) % 20)
    assert torch.equal(mover.translate(SLOTS), SLOTS % 20)


@pytest.mark.usefixtures("on_device")
def test_pair_of_pools_with_one_that_is_not_plain_moves_its_rows_itself() -> None:
    """As where all layers have a sliding window, and the other pool has no buffer."""
    assert isinstance(kv_moves.make_mover(windowed_pool(full_layers=0)), kv_moves.PoolMover)


@pytest.mark.usefixtures("on_device")
def test_beside_recurrent_layers_the_pool_of_those_that_attend_is_moved_by_the_kernel() -> None:
    from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool

    both = object.__new__(HybridLinearKVPool)
    both.full_kv_pool = plain_pool()
    mover = kv_moves.make_mover(both)
    assert isinstance(mover, kv_moves.KernelMover)
    assert mover.rows.data_ptrs.tolist() == both.full_kv_pool.data_ptrs.tolist()
