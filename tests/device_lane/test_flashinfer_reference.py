"""FlashInfer's wrappers over the references against dense attention, and every rule of the contract broken once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.device_lane import doors, flashinfer_masks
from tests.device_lane.dense import HEAD_SIZE, HEADS, KV_HEADS, Paged, ancestors, causal, dense, indptr, paged, queries
from tests.device_lane.flashinfer_plan import HEADER
from tests.device_lane.install import install_flashinfer
from tests.device_lane.violations import LaneViolation

if TYPE_CHECKING:
    from types import ModuleType

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
FLOAT: dict[str, Any] = {"q_data_type": torch.float32, "kv_data_type": torch.float32}
SHAPE = (HEADS, KV_HEADS, HEAD_SIZE)


@pytest.fixture(scope="module")
def flashinfer() -> ModuleType:
    """FlashInfer with references under its wrappers."""
    install_flashinfer()
    import flashinfer

    return flashinfer


def workspace() -> torch.Tensor:
    """The float workspace of a wrapper; the references leave it alone."""
    return torch.empty(1024, dtype=torch.uint8)


def csr(batch: Paged) -> dict[str, torch.Tensor]:
    """A batch in FlashInfer's arrays."""
    pages = [-(-int(length) // batch.page_size) for length in batch.kv_lens]
    return {
        "paged_kv_indptr": indptr(pages),
        "paged_kv_indices": torch.cat([batch.pages[b, :count] for b, count in enumerate(pages)]),
        "paged_kv_last_page_len": (batch.kv_lens - 1) % batch.page_size + 1,
    }


def prefill(flashinfer: ModuleType, batch: Paged, q_lens: list[int], **options: Any) -> Any:
    """A planned wrapper outside graphs."""
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace(), "NHD", backend="fa2")
    arrays = csr(batch)
    wrapper.plan(indptr(q_lens), *arrays.values(), *SHAPE, batch.page_size, **FLOAT, **options)
    return wrapper


def check(
    out: torch.Tensor, lse: torch.Tensor | None, batch: Paged, q_lens: list[int], masks: list[torch.Tensor]
) -> None:
    """Equal to dense attention; `lse` has base 2."""
    for request, rows in enumerate(queries(sum(q_lens)).split(q_lens)):
        want, want_lse = dense(rows, *batch.owned(request), masks[request])
        torch.testing.assert_close(out.split(q_lens)[request], want, **CLOSE)
        if lse is not None:
            torch.testing.assert_close(lse.split(q_lens)[request], want_lse / math.log(2), **CLOSE)


@pytest.mark.parametrize("page_size", [1, 16])
def test_paged_prefill_equals_dense(flashinfer: ModuleType, page_size: int) -> None:
    kv_lens, q_lens = [5, 33, 16], [5, 7, 1]
    batch = paged(kv_lens, page_size)
    wrapper = prefill(flashinfer, batch, q_lens)
    out, lse = wrapper.forward_return_lse(queries(sum(q_lens)), (batch.keys, batch.values), causal=True)
    check(out, lse, batch, q_lens, [causal(rows, keys) for rows, keys in zip(q_lens, kv_lens, strict=True)])


def test_window_that_was_compiled_in_equals_dense(flashinfer: ModuleType) -> None:
    batch = paged([20], 1)
    wrapper = prefill(flashinfer, batch, [3], window_left=4)
    out = wrapper.forward(queries(3), (batch.keys, batch.values), causal=True, window_left=4)
    check(out, None, batch, [3], [causal(3, 20) & ~too_far(3, 20, 4)])


def test_window_holds_under_a_custom_mask(flashinfer: ModuleType) -> None:
    batch = paged([20], 1)
    wrapper = prefill(flashinfer, batch, [3], window_left=4, custom_mask=torch.ones(60, dtype=torch.bool))
    out = wrapper.forward(queries(3), (batch.keys, batch.values), causal=True, window_left=4)
    check(out, None, batch, [3], [~too_far(3, 20, 4)])


def too_far(rows: int, keys: int, left: int) -> torch.Tensor:
    """[rows, keys] bool: the key lies more than `left` before the row."""
    return torch.arange(keys) < torch.arange(rows)[:, None] + keys - rows - left


@pytest.mark.parametrize("page_size", [1, 16])
def test_tree_mask_is_read_bit_by_bit(flashinfer: ModuleType, page_size: int) -> None:
    #      0
    #     / \
    #    1   2
    #    |
    #    3
    tree, prefix_lens = ancestors([-1, 0, 0, 1]), [7, 18, 1]
    batch = paged([prefix + 4 for prefix in prefix_lens], page_size)
    masks = [torch.cat([torch.ones(4, prefix, dtype=torch.bool), tree], dim=1) for prefix in prefix_lens]
    mask = torch.cat([rows.flatten() for rows in masks])
    wrapper = prefill(flashinfer, batch, [4] * 3, custom_mask=mask)
    # SGLang's verify runs it as causal: the mask takes the place of that.
    out = wrapper.forward(queries(12), (batch.keys, batch.values), causal=True)
    check(out, None, batch, [4] * 3, masks)


@pytest.mark.parametrize("use_tensor_cores", [False, True])
@pytest.mark.parametrize("page_size", [1, 16])
def test_decode_equals_dense(flashinfer: ModuleType, page_size: int, use_tensor_cores: bool) -> None:
    kv_lens = [6, 17, 1]
    batch = paged(kv_lens, page_size)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace(), "NHD", backend="fa2", use_tensor_cores=use_tensor_cores
    )
    wrapper.plan(*csr(batch).values(), *SHAPE, page_size, data_type=torch.float32, q_data_type=torch.float32)
    out, lse = wrapper.forward_return_lse(queries(3), (batch.keys, batch.values))
    check(out, lse, batch, [1] * 3, [torch.ones(1, keys, dtype=torch.bool) for keys in kv_lens])


def test_ragged_rows_merge_with_the_cached_prefix(flashinfer: ModuleType) -> None:
    """SGLang's extend: new keys ragged and causal, cached keys paged, merged; the second request has no prefix."""
    prefix_lens, q_lens = [9, 0, 3], [2, 4, 1]
    batch = paged(prefix_lens, 1)
    new_k, new_v = queries(7, seed=5)[:, :KV_HEADS], queries(7, seed=6)[:, :KV_HEADS]
    ragged = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace(), "NHD")
    ragged.plan(indptr(q_lens), indptr(q_lens), *SHAPE, q_data_type=torch.float32)
    new = ragged.forward_return_lse(queries(7), new_k, new_v, causal=True)
    cached = prefill(flashinfer, batch, q_lens).forward_return_lse(queries(7), (batch.keys, batch.values))
    from flashinfer.cascade import merge_state, merge_states

    out, lse = merge_state(*new, *cached)
    for request, rows in enumerate(queries(7).split(q_lens)):
        k, v = batch.owned(request)
        k, v = torch.cat([k, new_k.split(q_lens)[request]]), torch.cat([v, new_v.split(q_lens)[request]])
        want, want_lse = dense(rows, k, v, causal(len(rows), len(k)))
        torch.testing.assert_close(out.split(q_lens)[request], want, **CLOSE)
        torch.testing.assert_close(lse.split(q_lens)[request], want_lse / math.log(2), **CLOSE)
    pairs = [torch.stack([new[part], cached[part]], dim=1) for part in range(2)]
    torch.testing.assert_close(merge_states(*pairs), (out, lse))


def test_packed_masks_are_numpys(flashinfer: ModuleType) -> None:
    import numpy as np

    lens = [4, 3, 17, 0, 8]
    bits = torch.randint(0, 2, (sum(lens),), generator=torch.Generator().manual_seed(0)).bool()
    for order in ("little", "big"):
        packed, starts = flashinfer.segment_packbits(bits, indptr(lens), bitorder=order)
        want = [np.packbits(part.numpy(), bitorder=order) for part in bits.split(lens)]
        assert packed.tolist() == np.concatenate(want).tolist()
        assert starts.tolist() == [0, 1, 2, 5, 5, 6]


class Graph:
    """A wrapper in graph mode for two requests of `width` rows, with its run recorded."""

    def __init__(self, flashinfer: ModuleType, width: int, has_mask: bool) -> None:
        self.width, self.has_mask = width, has_mask
        masks = {
            "custom_mask_buf": torch.zeros(512, dtype=torch.uint8),
            "mask_indptr_buf": torch.zeros(3, dtype=torch.int32),
        }
        self.wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            workspace(),
            "NHD",
            use_cuda_graph=True,
            backend="fa2",
            qo_indptr_buf=torch.zeros(3, dtype=torch.int32),
            paged_kv_indptr_buf=torch.zeros(3, dtype=torch.int32),
            paged_kv_indices_buf=torch.zeros(256, dtype=torch.int32),
            paged_kv_last_page_len_buf=torch.ones(2, dtype=torch.int32),
            **(masks if has_mask else {}),
        )

    def plan(self, batch: Paged, mask: torch.Tensor | None = None) -> None:
        """Plan the wrapper for a batch."""
        self.wrapper.plan(
            indptr([self.width] * 2), *csr(batch).values(), *SHAPE, batch.page_size, custom_mask=mask, **FLOAT
        )

    def capture(self, batch: Paged) -> tuple[torch.Tensor, Callable[[], None]]:
        """Run once, and return what the run wrote with what runs it again."""
        told: list[Any] = []
        doors.on_call = lambda *call: told.append(call)
        out = self.wrapper.forward(queries(2 * self.width), (batch.keys, batch.values), causal=True)
        ((fn, args, kwargs, _),) = told
        doors.on_call = None
        return out, lambda: fn(*args, **kwargs)


@pytest.fixture(autouse=True)
def _recorder_of_before() -> Iterator[None]:
    before = doors.on_call
    yield
    doors.on_call = before


def test_replayed_run_reads_the_plan_and_the_buffers_of_now(flashinfer: ModuleType) -> None:
    graph, tree = Graph(flashinfer, 3, has_mask=True), ancestors([-1, 0, 0])
    batch = paged([9, 17], 1)
    captured = dataclasses.replace(batch, kv_lens=torch.tensor([4, 5], dtype=torch.int32))
    graph.plan(captured, torch.ones(3 * 9, dtype=torch.bool))
    out, replay = graph.capture(captured)
    masks = [torch.cat([torch.ones(3, keys - 3, dtype=torch.bool), tree], dim=1) for keys in (9, 17)]
    graph.plan(batch, torch.cat([mask.flatten() for mask in masks]))
    replay()
    check(out, None, batch, [3, 3], masks)


def test_replay_after_a_plan_from_other_host_lengths_is_a_violation(flashinfer: ModuleType) -> None:
    """A plan copies the device's indptr into its buffers; a fast plan is told lengths by the host."""
    batch = paged([9, 17], 1)
    graph = Graph(flashinfer, 3, has_mask=False)
    graph.plan(batch)
    _, replay = graph.capture(batch)
    replay()
    graph.wrapper._paged_kv_indptr_buf.copy_(indptr([8, 17]))
    with pytest.raises(LaneViolation, match=r"kv lengths .* planned \[9, 17\], on the device \[8, 17\]"):
        replay()
    graph.wrapper._paged_kv_indptr_buf.copy_(indptr([9, 17]))
    graph.wrapper._qo_indptr_buf.copy_(indptr([2, 3]))
    with pytest.raises(LaneViolation, match=r"query lengths .* planned \[3, 3\], on the device \[2, 3\]"):
        replay()


def test_idle_rows_behind_a_batch_may_be_planned_with_one_key(flashinfer: ModuleType) -> None:
    """SGLang's fill value, to which a drafter's block is added on the device alone."""
    batch = paged([9, 4], 1)
    graph = Graph(flashinfer, 3, has_mask=False)
    graph.plan(batch)
    _, replay = graph.capture(batch)
    planned = graph.wrapper._int_workspace_buffer.view(torch.int32)[HEADER + 2 :]
    planned[1] = 1
    replay()
    planned[1] = 2
    with pytest.raises(LaneViolation, match=r"planned \[9, 2\], on the device \[9, 4\]"):
        replay()
    planned[:2] = torch.tensor([6, 1])
    with pytest.raises(LaneViolation, match=r"planned \[6\], on the device \[9\]"):
        replay()


def test_replay_with_a_mask_of_another_round_is_a_violation(flashinfer: ModuleType) -> None:
    batch, shorter = paged([9, 17], 1), paged([8, 17], 1)
    graph = Graph(flashinfer, 3, has_mask=True)
    graph.plan(batch, torch.ones(3 * 26, dtype=torch.bool))
    _, replay = graph.capture(batch)
    # The buffer keeps its bits when a plan brings none.
    graph.plan(shorter)
    with pytest.raises(LaneViolation, match="a bit for each row and key"):
        replay()


def test_plan_of_another_shape_under_a_captured_run_is_a_violation(flashinfer: ModuleType) -> None:
    batch = paged([9, 17], 1)
    graph = Graph(flashinfer, 3, has_mask=False)
    graph.plan(batch)
    _, replay = graph.capture(batch)
    graph.wrapper.plan(indptr([3, 3]), *csr(batch).values(), *SHAPE, 1, causal=True, **FLOAT)
    with pytest.raises(LaneViolation, match="shape of the plan in its workspace"):
        replay()


def test_run_before_a_plan_is_a_violation(flashinfer: ModuleType) -> None:
    batch = paged([9, 17], 1)
    wrapper = prefill(flashinfer, batch, [1, 1])
    wrapper._int_workspace_buffer.zero_()
    with pytest.raises(LaneViolation, match="planned before it runs"):
        wrapper.forward(queries(2), (batch.keys, batch.values))


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any, Paged], None]:
    """Replace a buffer of a planned wrapper."""

    def apply(wrapper: Any, batch: Paged) -> None:
        setattr(wrapper, name, change(getattr(wrapper, name)))

    return apply


def set_cell(index: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Write one entry of an array."""

    def change(array: torch.Tensor) -> torch.Tensor:
        array = array.clone()
        array[index] = value
        return array

    return change


def forget(wrapper: Any, batch: Paged) -> None:
    """A slot of the second request was never written."""
    batch.values[batch.pages[1, 5].long()] = math.nan


INDICES, STARTS, LAST = "_paged_kv_indices_buf", "_paged_kv_indptr_buf", "_paged_kv_last_page_len_buf"


@pytest.mark.parametrize(
    ("rule", "breaks"),
    {
        "slot outside": ("slots lie in the pool", changed(INDICES, set_cell(3, 1000))),
        "negative slot": ("slots lie in the pool", changed(INDICES, set_cell(8, -1))),
        "padding among": ("no padding slot", changed(INDICES, set_cell(3, 0))),
        "twice": ("each slot once", changed(INDICES, lambda array: set_cell(3, int(array[4]))(array))),
        "short indices": ("ends within paged_kv_indices", changed(INDICES, lambda array: array[:-1])),
        "int64 indices": ("paged_kv_indices is int32", changed(INDICES, lambda array: array.long())),
        "unwritten": ("written by their owner", forget),
        "not monotone": ("is monotone", changed(STARTS, set_cell(1, 20))),
        "not from 0": ("starts at 0", changed(STARTS, set_cell(0, 1))),
        "int64 indptr": ("paged_kv_indptr is int32", changed(STARTS, lambda array: array.long())),
        "longer batch": ("has 3 entries", changed(STARTS, lambda array: torch.cat([array, array[-1:]]))),
        "last page": ("is 1 to 1", changed(LAST, set_cell(0, 2))),
        "last page 0": ("is 1 to 1", changed(LAST, set_cell(1, 0))),
    }.values(),
)
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_broken_arrays_are_a_violation(
    flashinfer: ModuleType, kind: str, rule: str, breaks: Callable[[Any, Paged], None]
) -> None:
    batch = paged([6, 9], 1)
    if kind == "prefill":
        wrapper = prefill(flashinfer, batch, [1, 1])
    else:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace(), "NHD", backend="fa2")
        wrapper.plan(*csr(batch).values(), *SHAPE, 1, data_type=torch.float32, q_data_type=torch.float32)
    wrapper.forward(queries(2), (batch.keys, batch.values))
    breaks(wrapper, batch)
    with pytest.raises(LaneViolation, match=rule):
        wrapper.forward(queries(2), (batch.keys, batch.values))


@pytest.mark.parametrize("cells", [25, 27])
def test_mask_of_the_wrong_size_is_a_violation(flashinfer: ModuleType, cells: int) -> None:
    with pytest.raises(LaneViolation, match=f"needed 26, has {cells}"):
        prefill(flashinfer, paged([6, 7], 1), [2, 2], custom_mask=torch.ones(cells, dtype=torch.bool))


def test_causal_plan_with_a_mask_is_a_violation(flashinfer: ModuleType) -> None:
    batch = paged([6, 7], 1)
    wrapper = prefill(flashinfer, batch, [2, 2], custom_mask=torch.ones(26, dtype=torch.bool), causal=True)
    with pytest.raises(LaneViolation, match="with a custom mask is not causal"):
        wrapper.forward(queries(4), (batch.keys, batch.values))


def test_window_or_cap_that_was_not_compiled_in_is_a_violation(flashinfer: ModuleType) -> None:
    batch = paged([6, 7], 1)
    wrapper = prefill(flashinfer, batch, [1, 1])
    with pytest.raises(LaneViolation, match="compiled with window=False"):
        wrapper.forward(queries(2), (batch.keys, batch.values), window_left=3)
    with pytest.raises(LaneViolation, match="soft cap"):
        wrapper.forward(queries(2), (batch.keys, batch.values), logits_soft_cap=3.0)


def test_pool_of_another_dtype_or_page_size_is_a_violation(flashinfer: ModuleType) -> None:
    batch = paged([6, 7], 1)
    wrapper = prefill(flashinfer, batch, [1, 1])
    with pytest.raises((LaneViolation, ValueError), match="dtype"):
        wrapper.forward(queries(2), (batch.keys.bfloat16(), batch.values.bfloat16()))
    with pytest.raises(LaneViolation, match="q, keys, values and out are"):
        wrapper.forward(queries(2), (batch.keys, batch.values.bfloat16()))
    paired = [pool[:14].reshape(7, 2, KV_HEADS, HEAD_SIZE) for pool in (batch.keys, batch.values)]
    with pytest.raises(LaneViolation, match="page size is the plan's"):
        wrapper.forward(queries(2), tuple(paired))
    with pytest.raises(LaneViolation, match="query heads are the plan's"):
        wrapper.forward(queries(2)[:, :2], (batch.keys, batch.values))


def test_packed_bits_that_are_too_few_are_a_violation() -> None:
    lens = torch.tensor([3])
    mask, starts = torch.zeros(1, dtype=torch.uint8), torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(LaneViolation, match="ends within the mask"):
        flashinfer_masks.unpacked_mask(mask, starts, lens, lens, (1, 3, 3))
    with pytest.raises(LaneViolation, match="is uint8"):
        flashinfer_masks.unpacked_mask(mask.bool(), starts, lens, lens, (1, 3, 3))
