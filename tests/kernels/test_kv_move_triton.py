"""Rows moved in one launch against core's plan carried out by torch, byte for byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.kv_commit import commit_plan
from ddtree_sglang.kernels.kv_move_triton import KVRows, move_accepted_rows

_ONE_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def _index(paths: list[list[int]], max_path_len: int) -> torch.Tensor:
    return torch.tensor([path + [-1] * (max_path_len - len(path)) for path in paths])


def _windows(batch_size: int, num_slots: int, pool_size: int, seed: int = 0) -> torch.Tensor:
    """`[B, W]` slots in no order, none twice, slot 0 in none."""
    order = torch.randperm(pool_size - 1, generator=torch.Generator().manual_seed(seed)) + 1
    return order[: batch_size * num_slots].view(batch_size, num_slots)


def _buffers(num_buffers: int, pool_size: int, row: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_buffers)
    width = torch.empty(row, dtype=dtype).nbytes
    return [
        torch.randint(256, (pool_size, width), dtype=torch.uint8, generator=generator).view(dtype).view(pool_size, *row)
        for _ in range(num_buffers)
    ]


def _bytes(buffer: torch.Tensor) -> torch.Tensor:
    return buffer.flatten(1).view(torch.uint8)


def _planned(buffers: list[torch.Tensor], slots: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
    """What core's plan makes of the buffers, all rows read before any is written."""
    lens = (index >= 0).sum(1)
    plan = commit_plan(AcceptedPath(index, lens - 1, lens, index, lens))
    sources, targets = (slots.gather(1, places).flatten() for places in (plan.source_slots, plan.target_slots))
    moved = [_bytes(buffer).clone() for buffer in buffers]
    for buffer in moved:
        buffer[targets] = buffer[sources]
    return moved


def _assert_moves_as_planned(
    device: torch.device, buffers: list[torch.Tensor], slots: torch.Tensor, index: torch.Tensor
) -> None:
    expected = _planned(buffers, slots, index)
    on_device = [buffer.to(device) for buffer in buffers]
    move_accepted_rows(KVRows.of(on_device), slots.to(device), index.to(device))
    for number, (found, planned) in enumerate(zip(on_device, expected, strict=True)):
        assert torch.equal(_bytes(found.cpu()), planned), f"buffer {number}"


PATHS = {
    "a slot is source and target": [0, 2, 3, 5],
    "nothing moves": [0, 1, 2, 3],
    "the root alone": [0],
    "from the window's end": [0, 11],
    "all but the root move by one": [0, 2, 3, 4, 5, 6, 7, 8],
    "the last one moves": [0, 1, 2, 3, 4, 5, 6, 9],
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_named_paths(device: torch.device, path: list[int]) -> None:
    buffers = _buffers(4, 40, (2, 8), torch.bfloat16)
    _assert_moves_as_planned(device, buffers, _windows(1, 12, 40), _index([path], 8))


def test_each_request_moves_by_its_own_path(device: torch.device) -> None:
    paths = list(PATHS.values())
    buffers = _buffers(2, 100, (1, 16), torch.bfloat16)
    _assert_moves_as_planned(device, buffers, _windows(len(paths), 12, 100), _index(paths, 8))


@pytest.mark.parametrize(
    ("row", "dtype"),
    [
        ((2, 64), torch.bfloat16),
        ((2, 64), torch.float16),
        ((2, 64), torch.uint8),  # as float8 is stored
        ((2, 64), torch.float8_e4m3fn),
        ((1, 80), torch.bfloat16),  # 160 bytes
        ((3, 33), torch.uint8),  # 99 bytes, no word fits
        ((1, 49), torch.bfloat16),  # 98
        ((1, 25), torch.float32),  # 100
        ((1, 125), torch.float64),  # 1000
        ((1, 1), torch.uint8),
        ((9, 128), torch.bfloat16),  # 2304 bytes: the second tile is not full
    ],
    ids=str,
)
def test_rows_of_every_size(device: torch.device, row: tuple[int, ...], dtype: torch.dtype) -> None:
    paths = [[0, 2, 3, 5, 6, 9], [0, 4]]
    _assert_moves_as_planned(device, _buffers(2, 50, row, dtype), _windows(2, 17, 50), _index(paths, 16))


def test_keys_and_values_of_different_width(device: torch.device) -> None:
    """The wider buffer has tiles that the narrower one has not, and the narrower one's rows are aligned worse."""
    keys, values = _buffers(2, 40, (3, 192), torch.bfloat16), _buffers(2, 40, (3, 2), torch.bfloat16)
    _assert_moves_as_planned(device, keys + values, _windows(1, 17, 40), _index([[0, 2, 3, 5]], 16))


def test_many_layers(device: torch.device) -> None:
    buffers = _buffers(64, 30, (1, 8), torch.bfloat16)
    _assert_moves_as_planned(device, buffers, _windows(1, 12, 30), _index([[0, 2, 3, 5]], 4))


def test_paths_are_padded_beyond_a_short_window(device: torch.device) -> None:
    """A round of fewer nodes than the drafter's block has positions."""
    buffers = _buffers(2, 20, (1, 8), torch.bfloat16)
    _assert_moves_as_planned(device, buffers, _windows(2, 3, 20), _index([[0, 2], [0]], 8))
    _assert_moves_as_planned(device, buffers, _windows(2, 1, 20), _index([[0], [0]], 8))


def test_buffers_that_start_at_an_odd_address(device: torch.device) -> None:
    whole = torch.randint(256, (40 * 32 + 3,), dtype=torch.uint8).to(device)
    buffer = whole[3:].view(40, 32)
    slots, index = _windows(1, 12, 40), _index([[0, 2, 3, 5]], 4)
    expected = _planned([buffer.cpu()], slots, index)[0]
    rows = KVRows.of([buffer])
    assert rows.alignment == 1
    move_accepted_rows(rows, slots.to(device), index.to(device))
    assert torch.equal(buffer.cpu(), expected)


@st.composite
def _rounds(draw: st.DrawFn) -> tuple[int, int, torch.Tensor]:
    """W, a seed, and paths `[B, P]`: ascending places of a window, from the root."""
    num_slots = draw(st.integers(1, 40))
    max_path_len = draw(st.integers(1, min(32, num_slots)))
    places = st.lists(st.integers(1, num_slots - 1), max_size=max_path_len - 1, unique=True).map(sorted)
    drafts = places if num_slots > 1 else st.just([])
    paths = draw(st.lists(drafts.map(lambda drafted: [0, *drafted]), min_size=1, max_size=4))
    return num_slots, draw(st.integers(0, 99)), _index(paths, max_path_len)


@_ONE_FIXTURE
@given(of_round=_rounds(), width=st.integers(1, 40))
def test_random_paths(device: torch.device, of_round: tuple[int, int, torch.Tensor], width: int) -> None:
    num_slots, seed, index = of_round
    pool_size = 1 + len(index) * num_slots + 5
    slots = _windows(len(index), num_slots, pool_size, seed)
    _assert_moves_as_planned(device, _buffers(2, pool_size, (width,), torch.uint8), slots, index)


def test_an_empty_batch_launches_nothing(device: torch.device) -> None:
    rows = KVRows.of([torch.zeros(4, 8, device=device)])
    empty = torch.zeros(0, 5, dtype=torch.int64, device=device)
    move_accepted_rows(rows, empty, empty)


@pytest.mark.parametrize(
    ("slots", "index", "message"),
    [
        (torch.zeros(2, 8), torch.zeros(2, 4, dtype=torch.int64), "slots must be 2-D int64"),
        (torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int32), "accept_index must be 2-D int64"),
        (torch.zeros(8, 2, dtype=torch.int64).T, torch.zeros(2, 4, dtype=torch.int64), "contiguous"),
        (
            torch.zeros(3, 8, dtype=torch.int64),
            torch.zeros(2, 4, dtype=torch.int64),
            r"for slots \(3, 8\)",
        ),
        (torch.zeros(2, 40, dtype=torch.int64), torch.zeros(2, 33, dtype=torch.int64), "P from 1 to 32"),
    ],
)
def test_what_the_kernel_would_misread_is_refused(slots: torch.Tensor, index: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        move_accepted_rows(KVRows.of([torch.zeros(4, 8)]), slots, index)


def test_buffers_without_contiguous_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="each contiguous"):
        KVRows.of([torch.zeros(4, 8)[:, ::2]])
    with pytest.raises(ValueError, match="at least one buffer"):
        KVRows.of([])


@pytest.mark.sglang
@pytest.mark.parametrize("path_len", [1, 4, 16])
def test_engines_pool_is_moved_as_by_itself(device: torch.device, path_len: int) -> None:
    """`KernelMover` on one pool of SGLang's, `PoolMover` on another that moves row by row."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    from ddtree_sglang.engine.stages.kv_moves import KernelMover, PoolMover

    index = _index([path[:path_len] for path in PATHS.values()], path_len)
    slots = _windows(len(index), 17, 120).to(device)
    lens = (index >= 0).sum(1)
    path = AcceptedPath(index.to(device), lens - 1, lens, index, lens)
    by_kernel, by_pool = (
        MHATokenToKVPool(120, 1, torch.bfloat16, 2, 24, 3, str(device), enable_memory_saver=False, v_head_dim=16)
        for _ in range(2)
    )
    by_pool.use_native_move_kv_cache = True
    buffers = [[*pool.k_buffer, *pool.v_buffer] for pool in (by_kernel, by_pool)]
    for one, other in zip(*buffers, strict=True):
        one.copy_(torch.randn(one.shape))
        other.copy_(one)
    before = by_kernel.k_buffer[0].clone()
    mover = KernelMover(KVRows.of(buffers[0]))
    mover.warm_up(path_len)
    assert torch.equal(by_kernel.k_buffer[0], before)
    mover.move(slots, path)
    PoolMover(by_pool).move(slots, path)
    assert torch.equal(by_kernel.k_buffer[0], before) == (path_len == 1)
    for one, other in zip(*buffers, strict=True):
        assert torch.equal(one, other)


@pytest.mark.sglang
def test_engines_pools_for_sliding_windows_are_moved_as_by_themselves(device: torch.device) -> None:
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    from ddtree_sglang.engine.stages import kv_moves

    slots, index = _windows(2, 17, 60).to(device), _index([[0, 2, 3, 5], [0, 1]], 8)
    lens = (index >= 0).sum(1)
    path = AcceptedPath(index.to(device), lens - 1, lens, index, lens)
    mapping = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(59) + 1]).to(device)
    by_kernel, by_pool = (
        SWAKVPool(
            60,
            60,
            1,
            torch.bfloat16,
            2,
            24,
            swa_attention_layer_ids=[0, 2],
            full_attention_layer_ids=[1],
            device=str(device),
        )
        for _ in range(2)
    )
    pools = [(pool.full_kv_pool, pool.swa_kv_pool) for pool in (by_kernel, by_pool)]
    for one, other in zip(*pools, strict=True):
        other.use_native_move_kv_cache = True
        for held, same in zip([*one.k_buffer, *one.v_buffer], [*other.k_buffer, *other.v_buffer], strict=True):
            held.copy_(torch.randn(held.shape))
            same.copy_(held)
    for pool in (by_kernel, by_pool):
        pool.register_mapping(mapping)
    full, sliding = (kv_moves.KernelMover(KVRows.of([*one.k_buffer, *one.v_buffer])) for one in pools[0])
    kv_moves.WindowedMover(full, sliding, by_kernel.translate_loc_from_full_to_swa).move(slots, path)
    kv_moves.PoolMover(by_pool).move(slots, path)
    for one, other in zip(*pools, strict=True):
        for held, same in zip([*one.k_buffer, *one.v_buffer], [*other.k_buffer, *other.v_buffer], strict=True):
            assert torch.equal(held, same)
