"""The kernels that rank logits against core, ids exactly: sizes that cut anywhere, ties, masks, NaN, shards."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddtree_sglang.core.candidates import DraftCandidates, LogitTransform, rank_logits
from ddtree_sglang.engine.stages.candidates import VocabShard, rank_candidates_on_device
from ddtree_sglang.kernels.candidates_triton import (
    compile_cases,
    merge_shards_triton,
    rank_logits_triton,
    rank_shard_triton,
)
from tests.engine.stages.test_candidates import head, on_every_rank, shard, shards_of

PLAIN = LogitTransform()
CAPPED = LogitTransform(scale=0.7, softcap=5.0)
NOTHING = -math.inf


def logits_of(rows: int, vocab_size: int, dtype: torch.dtype, seed: int = 0, padding: int = 0) -> torch.Tensor:
    """Random logits; behind each row's end is padding that would win if it were read."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, vocab_size + padding, generator=generator)
    logits[:, vocab_size:] = 1000.0
    return logits.to(dtype)[:, :vocab_size]


def in_shards(logits: torch.Tensor, top_k: int, transform: LogitTransform, rows: int) -> DraftCandidates:
    """Ranked as tensor-parallel ranks of `rows` tokens each would; the last has fewer, or none."""
    starts = range(0, max(1, logits.shape[1]) + 1, rows)
    packed = [
        rank_shard_triton(logits[:, start : start + rows], top_k, transform, vocab_start=start) for start in starts
    ]
    return merge_shards_triton(torch.stack(packed), transform)


def assert_same(found: DraftCandidates, expected: DraftCandidates) -> None:
    assert torch.equal(found.topk_ids.cpu(), expected.topk_ids)
    # The kernels' exponentials are approximate; log-probabilities below are sums of some thousand of them.
    torch.testing.assert_close(found.topk_logprobs.cpu(), expected.topk_logprobs, rtol=1e-6, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("rows", "vocab_size", "top_k", "dtype", "padding", "transform"),
    [
        (2, 3000, 64, torch.bfloat16, 72, PLAIN),
        (3, 2048, 16, torch.bfloat16, 0, PLAIN),  # one tile, no mask
        (2, 2049, 16, torch.float32, 0, CAPPED),  # one token in the last tile, its padding capped
        (2, 5000, 33, torch.float16, 24, CAPPED),
        (2, 4096, 255, torch.bfloat16, 0, PLAIN),  # fewer groups than K
        (1, 12000, 200, torch.float32, 8, PLAIN),
        (1, 40000, 64, torch.bfloat16, 64, PLAIN),
        (2, 8, 16, torch.float32, 56, PLAIN),  # fewer tokens than K
        (1, 1, 1, torch.float32, 0, PLAIN),
        (3, 100, 1, torch.bfloat16, 0, CAPPED),
    ],
)
def test_sizes(
    device: torch.device,
    rows: int,
    vocab_size: int,
    top_k: int,
    dtype: torch.dtype,
    padding: int,
    transform: LogitTransform,
) -> None:
    logits = logits_of(rows, vocab_size, dtype, padding=padding)
    assert_same(rank_logits_triton(logits.to(device), top_k, transform), rank_logits(logits, top_k, transform))


def test_several_tiles_to_a_program(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large batches have; here 3 tiles in chunks of 2."""
    monkeypatch.setattr("ddtree_sglang.kernels.candidates_triton._PROGRAMS", 3)
    for vocab_size in (4097, 6144):
        logits = logits_of(2, vocab_size, torch.bfloat16)
        # The largest logit in the second tile: what the first tile added up must shrink.
        logits[:, 3000] = 20.0
        assert_same(rank_logits_triton(logits.to(device), 16, PLAIN), rank_logits(logits, 16, PLAIN))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12)
@given(data=st.data())
def test_ties_and_values_that_are_no_numbers(device: torch.device, data: st.DataObject) -> None:
    """Few values, so that ties cross the boundaries of winners, groups, tiles and shards."""
    vocab_size, top_k = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 40))
    values = data.draw(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, NOTHING, math.inf, math.nan]), min_size=1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.tensor(values)[torch.randint(len(values), (1, vocab_size), generator=generator)]
    logits = logits.to(data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))
    expected = rank_logits(logits, top_k, PLAIN)
    assert_same(rank_logits_triton(logits.to(device), top_k, PLAIN), expected)
    rows = data.draw(st.integers(1 + vocab_size // 3, vocab_size + 1))
    assert_same(in_shards(logits.to(device), top_k, PLAIN, rows), expected)


@pytest.mark.parametrize("value", [0.0, NOTHING, math.nan, math.inf, 3.0])
def test_a_row_of_one_value_gives_the_first_ids(device: torch.device, value: float) -> None:
    logits = torch.full((1, 3000), value, dtype=torch.bfloat16)
    expected = rank_logits(logits, 20, PLAIN)
    assert expected.topk_ids.tolist() == [list(range(20))]
    assert_same(rank_logits_triton(logits.to(device), 20, PLAIN), expected)
    assert_same(in_shards(logits.to(device), 20, PLAIN, 1500), expected)


def test_masked_vocabulary_leaves_the_few_tokens_that_are_allowed(device: torch.device) -> None:
    logits = torch.full((2, 2500), NOTHING)
    logits[0, [7, 2400]] = torch.tensor([1.0, 2.0])
    found = rank_logits_triton(logits.to(device), 4, PLAIN)
    assert_same(found, rank_logits(logits, 4, PLAIN))
    assert found.topk_ids[0].tolist() == [2400, 7, 0, 1]
    assert found.topk_logprobs[0, 2:].tolist() == [NOTHING, NOTHING]
    assert found.topk_logprobs[1].isnan().all()  # the distribution of nothing


def test_the_kth_place_is_shared_by_tokens_of_many_groups(device: torch.device) -> None:
    logits = torch.zeros(1, 6000, dtype=torch.bfloat16)
    logits[0, [5900, 130, 4000]] = 1.0
    logits[0, 1::2] -= 1.0
    for top_k in (2, 3, 4, 30):
        assert_same(rank_logits_triton(logits.to(device), top_k, PLAIN), rank_logits(logits, top_k, PLAIN))


def test_nan_does_not_hide_its_neighbours(device: torch.device) -> None:
    logits = logits_of(1, 3000, torch.float32)
    best = int(logits.argmax())
    logits[0, [best - 1, best + 1, 5]] = math.nan
    found = rank_logits_triton(logits.to(device), 4, PLAIN)
    assert_same(found, rank_logits(logits, 4, PLAIN))
    assert int(found.topk_ids[0, 0]) == best


def test_both_zeros_are_equal(device: torch.device) -> None:
    logits = torch.tensor([-0.0, 0.0, -1.0]).repeat(1, 400)
    assert_same(rank_logits_triton(logits.to(device), 30, PLAIN), rank_logits(logits, 30, PLAIN))


@triton.jit
def _rounds_badly(logits, scale, softcap, HAS_SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """A cap whose every second step of 1/64 comes out too low."""
    return logits - 0.05 * ((logits * 64).to(tl.int32) % 2).to(tl.float32)


def test_log_probabilities_descend_though_a_cap_rounds_badly(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cuda":
        pytest.skip("a compiled kernel does not take another function; a GPU's own exponential may or may not round so")
    monkeypatch.setattr("ddtree_sglang.kernels.candidates_kernels._transformed", _rounds_badly)
    logits = torch.arange(900).flip(0)[None] / 64
    found = rank_logits_triton(logits, 100, CAPPED)
    assert found.topk_ids.tolist() == [list(range(100))]
    assert (found.topk_logprobs.diff() <= 0).all()


@pytest.mark.parametrize(
    ("vocab_size", "top_k", "rows"), [(3000, 16, 1504), (2500, 64, 900), (8, 16, 4), (100, 100, 64)]
)
@pytest.mark.parametrize("transform", [PLAIN, CAPPED])
def test_shards_give_what_one_rank_gives(
    device: torch.device, vocab_size: int, top_k: int, rows: int, transform: LogitTransform
) -> None:
    logits = logits_of(1, vocab_size, torch.bfloat16)
    assert_same(in_shards(logits.to(device), top_k, transform, rows), rank_logits(logits, top_k, transform))


def test_results_go_where_they_are_wanted_and_nowhere_else(device: torch.device) -> None:
    logits, top_k = logits_of(2, 300, torch.float32), 5
    held = DraftCandidates(torch.full((3, 1, top_k), -7, device=device), torch.full((3, 1, top_k), 7.0, device=device))
    out = DraftCandidates(held.topk_ids[:2], held.topk_logprobs[:2])
    assert rank_logits_triton(logits.to(device), top_k, PLAIN, out) is out
    expected = rank_logits(logits, top_k, PLAIN)
    assert torch.equal(held.topk_ids[:2, 0].cpu(), expected.topk_ids)
    assert held.topk_ids[2].tolist() == [[-7] * top_k]
    assert held.topk_logprobs[2].tolist() == [[7.0] * top_k]
    packed = rank_shard_triton(logits.to(device), top_k, PLAIN, vocab_start=0)[None]
    held.topk_ids[:2] = 0
    assert merge_shards_triton(packed, PLAIN, out) is out
    assert torch.equal(held.topk_ids[:2, 0].cpu(), expected.topk_ids)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_block_is_ranked_from_the_heads_own_output(device: torch.device, num_ranks: int) -> None:
    """Through the LM head, with one gather of one tensor; every rank has the same."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(1, 2, 8, generator=generator), torch.randn(40, 8, generator=generator)
    expected = rank_logits((hidden[0] @ weight.T), 6, PLAIN)
    hidden, weight = hidden.to(device), weight.to(device)
    if num_ranks == 1:
        results = [rank_candidates_on_device(hidden, shard(head(weight)), 6)]
    else:
        results = on_every_rank(lambda one: rank_candidates_on_device(hidden, one, 6), shards_of(weight, 2, 24))
    for found in results:
        assert found.topk_ids.shape == (1, 2, 6)
        assert_same(DraftCandidates(found.topk_ids[0], found.topk_logprobs[0]), expected)
        assert torch.equal(found.topk_logprobs, results[0].topk_logprobs)


def test_no_copy_of_the_logits_is_made(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a call allocates is far smaller than the logits."""
    sizes: list[int] = []
    empty = torch.empty

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        made = empty(*args, **kwargs)  # type: ignore[call-overload]
        sizes.append(made.numel() * made.element_size())
        return made

    logits = logits_of(2, 10000, torch.bfloat16).to(device)
    monkeypatch.setattr(torch, "empty", counted)
    rank_logits_triton(logits, 16, PLAIN)
    assert 0 < sum(sizes) < logits.numel() * logits.element_size() / 10


def test_an_empty_batch_launches_nothing(device: torch.device) -> None:
    empty = torch.empty(0, 50, device=device)
    assert rank_logits_triton(empty, 4, PLAIN).topk_ids.shape == (0, 4)
    packed = rank_shard_triton(empty, 4, PLAIN, 0)
    assert merge_shards_triton(packed[None], PLAIN).topk_ids.shape == (0, 4)


def test_what_is_compiled_does_not_depend_on_the_batch() -> None:
    from ddtree_sglang.kernels.candidates_triton import _Cut

    cuts = [_Cut.of(rows, 151_936, 16, torch.bfloat16, False) for rows in (1, 7, 120, 720)]
    assert len({cut.num_chunks for cut in cuts}) > 1
    fixed = [replace(cut, tiles_per_chunk=0, num_chunks=0) for cut in cuts]
    assert all(cut == fixed[0] for cut in fixed)
    assert all(cut.num_chunks <= cut.select_constants["CHUNKS"] for cut in cuts)


def test_every_kernel_is_among_the_compile_cases() -> None:
    assert len({id(case.kernel) for case in compile_cases()}) == 3


@pytest.mark.parametrize(
    ("logits", "top_k", "message"),
    [
        (torch.zeros(2, 3, 4), 2, r"must be \[rows, V\] in float32"),
        (torch.zeros(2, 3, dtype=torch.float64), 2, "got .* torch.float64"),
        (torch.zeros(3, 2).T, 2, "tokens side by side"),
        (torch.zeros(2, 600), 257, "takes 1 to 256 candidates, got 257"),
        (torch.zeros(1, 1).expand(1, 600_000), 64, "side by side"),
        (torch.zeros(1, 8192 * 64 + 1), 64, "up to 524288 tokens with 64 candidates, got 524289"),
    ],
)
def test_what_the_kernels_are_not_made_for_is_refused(logits: torch.Tensor, top_k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_logits_triton(logits, top_k, PLAIN)


def test_results_and_packed_rows_of_a_wrong_shape_are_refused(device: torch.device) -> None:
    logits = torch.zeros(2, 30, device=device)
    wrong = SimpleNamespace(topk_ids=torch.zeros(2, 3, dtype=torch.int64), topk_logprobs=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="ids must be 2 contiguous rows of 4"):
        rank_logits_triton(logits, 4, PLAIN, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"packed must be contiguous \[ranks, rows, 2 K \+ 1\]"):
        merge_shards_triton(torch.zeros(2, 5, 8, dtype=torch.int32), PLAIN)


def test_vocab_shard_hands_out_rows_of_the_padded_head() -> None:
    one: VocabShard = shard(head(torch.zeros(64, 8), rows=50))
    assert one.logits(torch.zeros(2, 8)).stride() == (64, 1)
