"""Every mode of the CPU attention backend against dense attention written from the definition."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from ddtree_sglang.cpu_platform.attention import backend
from ddtree_sglang.cpu_platform.attention.plan import WindowKind
from tests.cpu_platform import attention_cases as cases

pytestmark = pytest.mark.sglang

FLOAT32_TOLERANCE = 2e-5
"""Sums of at most 64 float32 terms of order one, in another order than the float64 oracle's."""


def assert_dense(bench: cases.Bench, outputs: list[torch.Tensor], allowed: list[torch.Tensor]) -> None:
    for request, (output, mask) in enumerate(zip(outputs, allowed, strict=True)):
        expected = cases.dense(bench, request, mask)
        torch.testing.assert_close(output.double(), expected, atol=FLOAT32_TOLERANCE, rtol=0)


def tree_input(windows: list[torch.Tensor], **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(ancestor_mask=torch.stack(windows), custom_mask=None, **fields)


def random_trees(count: int, num_nodes: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [cases.ancestors(cases.random_parents(num_nodes, generator)) for _ in range(count)]


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize(
    ("prefix_lens", "new_lens"),
    [([0], [7]), ([9], [5]), ([0, 0, 0], [3, 1, 8]), ([4, 0, 11], [1, 6, 2]), ([20], [1])],
)
def test_prefill_with_any_prefix_equals_dense(prefix_lens: list[int], new_lens: list[int], consecutive: bool) -> None:
    bench = cases.make_bench(prefix_lens, new_lens, consecutive=consecutive)
    outputs = cases.run(bench, ForwardMode.EXTEND)
    allowed = [cases.causal(p, n) for p, n in zip(prefix_lens, new_lens, strict=True)]
    assert_dense(bench, outputs, allowed)


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("prefix_lens", [[0], [17], [5, 5, 5], [1, 30, 0, 12]])
def test_decode_batch_equals_dense(prefix_lens: list[int], consecutive: bool) -> None:
    bench = cases.make_bench(prefix_lens, [1] * len(prefix_lens), consecutive=consecutive)
    outputs = cases.run(bench, ForwardMode.DECODE)
    assert_dense(bench, outputs, [cases.causal(p, 1) for p in prefix_lens])


@pytest.mark.parametrize("prefix_lens", [[6], [3, 19, 0, 8]])
def test_chain_verify_without_mask_is_causal(prefix_lens: list[int]) -> None:
    bench = cases.make_bench(prefix_lens, [5] * len(prefix_lens))
    outputs = cases.run(bench, ForwardMode.TARGET_VERIFY, SimpleNamespace(custom_mask=None))
    assert_dense(bench, outputs, [cases.causal(p, 5) for p in prefix_lens])


@pytest.mark.parametrize("num_nodes", [2, 9, 17])
@pytest.mark.parametrize("prefix_lens", [[0], [11], [3, 25, 0, 8]])
def test_tree_verify_follows_ancestors(prefix_lens: list[int], num_nodes: int) -> None:
    bench = cases.make_bench(prefix_lens, [num_nodes] * len(prefix_lens))
    windows = random_trees(len(prefix_lens), num_nodes, seed=num_nodes)
    outputs = cases.run(bench, ForwardMode.TARGET_VERIFY, tree_input(windows))
    allowed = [cases.with_prefix(w, p) for w, p in zip(windows, prefix_lens, strict=True)]
    assert_dense(bench, outputs, allowed)


@pytest.mark.parametrize("padding", [0, 13])
def test_flat_custom_mask_means_the_same_as_ancestors(padding: int) -> None:
    prefix_lens = [3, 10, 0]
    windows = random_trees(3, 6, seed=2)
    rows = [cases.with_prefix(w, p).flatten() for w, p in zip(windows, prefix_lens, strict=True)]
    flat = torch.cat([*rows, torch.ones(padding, dtype=torch.bool)])
    by_flat = cases.run(
        cases.make_bench(prefix_lens, [6] * 3), ForwardMode.TARGET_VERIFY, SimpleNamespace(custom_mask=flat)
    )
    by_ancestors = cases.run(cases.make_bench(prefix_lens, [6] * 3), ForwardMode.TARGET_VERIFY, tree_input(windows))
    for left, right in zip(by_flat, by_ancestors, strict=True):
        assert torch.equal(left, right)


def test_lower_triangular_tree_equals_chain_bit_for_bit() -> None:
    prefix_lens = [4, 13]
    chain = cases.run(
        cases.make_bench(prefix_lens, [6, 6]), ForwardMode.TARGET_VERIFY, SimpleNamespace(custom_mask=None)
    )
    tril = [torch.ones(6, 6, dtype=torch.bool).tril()] * 2
    tree = cases.run(cases.make_bench(prefix_lens, [6, 6]), ForwardMode.TARGET_VERIFY, tree_input(tril))
    for left, right in zip(chain, tree, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("prefix_lens", [[7], [2, 21, 0]])
def test_drafter_block_sees_prefix_and_whole_block(prefix_lens: list[int]) -> None:
    bench = cases.make_bench(prefix_lens, [8] * len(prefix_lens))
    outputs = cases.run(
        bench,
        ForwardMode.TARGET_VERIFY,
        SimpleNamespace(custom_mask=None),
        attn_type=AttentionType.ENCODER_ONLY,
    )
    assert_dense(bench, outputs, [torch.ones(8, p + 8, dtype=torch.bool) for p in prefix_lens])


@pytest.mark.parametrize("mode", [ForwardMode.EXTEND, ForwardMode.DECODE, ForwardMode.TARGET_VERIFY])
def test_sliding_window_hides_old_keys(mode: ForwardMode) -> None:
    prefix_lens, new, window = [3, 20], 1 if mode.is_decode() else 5, 4
    bench = cases.make_bench(prefix_lens, [new, new])
    spec_info = SimpleNamespace(custom_mask=None, positions=None)
    outputs = cases.run(bench, mode, spec_info, sliding_window_size=window)
    allowed = []
    for prefix in prefix_lens:
        mask = cases.causal(prefix, new)
        for i in range(new):
            mask[i, : max(0, prefix + i - window)] = False
        allowed.append(mask)
    assert_dense(bench, outputs, allowed)


def test_sliding_window_counts_tree_positions_not_rows() -> None:
    """Nodes 1 and 2 are siblings: node 3 below 2 is at depth 2, though it is the fourth row."""
    parents, prefix, window = [-1, 0, 0, 2], 6, 2
    tree = cases.ancestors(parents)
    depths = torch.tensor([0, 1, 1, 2])
    bench = cases.make_bench([prefix], [4])
    spec_info = tree_input([tree], positions=prefix + depths)
    outputs = cases.run(bench, ForwardMode.TARGET_VERIFY, spec_info, sliding_window_size=window)
    mask = cases.with_prefix(tree, prefix)
    for node, depth in enumerate(depths.tolist()):
        for key in range(prefix):
            mask[node, key] = key >= prefix + depth - window
    assert_dense(bench, outputs, [mask])


@pytest.mark.parametrize("hidden", [0, 4, 9])
def test_hiding_one_key_changes_exactly_the_queries_that_saw_it(hidden: int) -> None:
    """Overwrite one cached key: every query that may see it must notice, and no other."""
    prefix, num_nodes = 7, 5
    parents = [-1, 0, 0, 1, 2]
    tree = cases.ancestors(parents)
    allowed = cases.with_prefix(tree, prefix)
    bench = cases.make_bench([prefix], [num_nodes])
    (before,) = cases.run(bench, ForwardMode.TARGET_VERIFY, tree_input([tree]))
    bench.keys[0][hidden] += 3.0
    slot = int(bench.req_to_token[int(bench.rows[0]), hidden])
    bench.pool.k_buffer[0][slot] = bench.keys[0][hidden]
    (after,) = cases.run(bench, ForwardMode.TARGET_VERIFY, tree_input([tree]))
    changed = (before != after).flatten(1).any(1)
    assert torch.equal(changed, allowed[:, hidden])


def test_batched_equals_one_by_one() -> None:
    prefix_lens, num_nodes = [2, 18, 0, 9], 9
    windows = random_trees(4, num_nodes, seed=5)
    bench = cases.make_bench(prefix_lens, [num_nodes] * 4)
    together = cases.run(bench, ForwardMode.TARGET_VERIFY, tree_input(windows))
    for request in range(4):
        alone = cases.Bench(
            bench.backend,
            bench.pool,
            bench.req_to_token,
            [bench.keys[request]],
            [bench.values[request]],
            [bench.queries[request]],
            [prefix_lens[request]],
            bench.rows[request : request + 1],
        )
        (single,) = cases.run(alone, ForwardMode.TARGET_VERIFY, tree_input([windows[request]]))
        torch.testing.assert_close(single, together[request], atol=FLOAT32_TOLERANCE, rtol=0)


def test_stale_nan_in_other_slots_never_reaches_a_result() -> None:
    bench = cases.make_bench([3, 30], [4, 4])
    used = torch.cat([bench.req_to_token[r, : p + 4] for r, p in zip(bench.rows, [3, 30], strict=True)])
    unused = torch.ones(cases.NUM_SLOTS + 1, dtype=torch.bool)
    unused[used.long()] = False
    unused[0] = False  # SGLang's rubbish slot takes padding writes, which are finite
    bench.pool.k_buffer[0][unused] = float("nan")
    bench.pool.v_buffer[0][unused] = float("nan")
    outputs = cases.run(bench, ForwardMode.TARGET_VERIFY, SimpleNamespace(custom_mask=None))
    assert all(torch.isfinite(output).all() for output in outputs)


def test_bfloat16_stays_close_to_dense() -> None:
    bench = cases.make_bench([5, 14], [9, 9], dtype=torch.bfloat16)
    windows = random_trees(2, 9, seed=1)
    outputs = cases.run(bench, ForwardMode.TARGET_VERIFY, tree_input(windows))
    for request, (window, prefix) in enumerate(zip(windows, [5, 14], strict=True)):
        expected = cases.dense(bench, request, cases.with_prefix(window, prefix))
        # bf16 keeps 8 bits: one rounding of the weights and one of the result, values up to about 3.
        torch.testing.assert_close(outputs[request].double(), expected, atol=0.04, rtol=0)


def test_new_keys_land_in_their_slots() -> None:
    bench = cases.make_bench([4, 2], [3, 3])
    cases.run(bench, ForwardMode.TARGET_VERIFY, SimpleNamespace(custom_mask=None))
    assert torch.equal(bench.pool.k_buffer[0][bench.new_slots()], bench.new_parts(bench.keys))
    assert torch.equal(bench.pool.v_buffer[0][bench.new_slots()], bench.new_parts(bench.values))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"logit_cap": 30.0}, "soft-capping"),
        ({"is_cross_attention": True}, "cross attention"),
        ({"v_head_dim": 8}, "value heads"),
        ({"k_scale": 0.5}, "scaled KV cache"),
        ({"xai_temperature_len": 16}, "temperature"),
    ],
)
def test_layer_features_that_would_be_wrong_are_refused(changes: dict[str, Any], word: str) -> None:
    bench = cases.make_bench([2], [1])
    with pytest.raises(NotImplementedError, match=word):
        cases.run(bench, ForwardMode.DECODE, **changes)


def test_short_custom_mask_is_refused() -> None:
    bench = cases.make_bench([5], [3])
    with pytest.raises(ValueError, match="at least 24 cells"):
        cases.run(
            bench,
            ForwardMode.TARGET_VERIFY,
            SimpleNamespace(custom_mask=torch.ones(23, dtype=torch.bool)),
        )


def test_slots_that_only_end_like_a_run_are_not_read_as_one() -> None:
    """First and last slot as far apart as in a run of consecutive slots, but one in between lies elsewhere."""
    bench = cases.make_bench([6], [1], consecutive=True)
    row, elsewhere = int(bench.rows[0]), 300
    bench.req_to_token[row, 2] = elsewhere
    bench.pool.k_buffer[0][elsewhere] = bench.keys[0][2]
    bench.pool.v_buffer[0][elsewhere] = bench.values[0][2]
    bench.pool.k_buffer[0][3] = 50.0
    outputs = cases.run(bench, ForwardMode.DECODE)
    assert_dense(bench, outputs, [cases.causal(6, 1)])


@pytest.fixture
def nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_checked_window_kind", lambda _layer: WindowKind.CAUSAL)
    monkeypatch.setattr(backend, "_refuse_extras", lambda _extras: None)


@pytest.mark.usefixtures("nothing_is_refused")
@pytest.mark.parametrize(
    "changes",
    [
        {"logit_cap": 1.0},
        {"is_cross_attention": True},
        {"k_scale": 0.5, "v_scale": 4.0},
        {"xai_temperature_len": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_refused_feature_would_be_left_out(changes: dict[str, Any]) -> None:
    """The output is that of a layer which has none of it."""
    bench = cases.make_bench([6], [1])
    assert_dense(bench, cases.run(bench, ForwardMode.DECODE, **changes), [cases.causal(6, 1)])


@pytest.mark.usefixtures("nothing_is_refused")
def test_a_refused_argument_would_be_left_out() -> None:
    bench = cases.make_bench([6], [1])
    bench.backend.forward_decode = partial(bench.backend.forward_decode, sinks=torch.full((cases.NUM_HEADS,), 9.0))
    assert_dense(bench, cases.run(bench, ForwardMode.DECODE), [cases.causal(6, 1)])


@pytest.mark.usefixtures("nothing_is_refused")
def test_refused_value_heads_have_no_room_in_the_output() -> None:
    bench = cases.make_bench([2], [3])
    with pytest.raises(RuntimeError, match="must match the existing size"):
        cases.run(bench, ForwardMode.EXTEND, v_head_dim=cases.HEAD_DIM // 2)


@pytest.mark.parametrize("pool", ["SWAKVPool", "HybridLinearKVPool", "MLATokenToKVPool"])
def test_a_refused_pool_has_no_rows_to_write(pool: str) -> None:
    """Of layers with windows, with states, or with latent rows."""
    from sglang.srt.mem_cache import memory_pool, swa_memory_pool

    bench = cases.make_bench([2], [1])
    found = getattr(memory_pool, pool, None) or getattr(swa_memory_pool, pool)
    bench.backend.pool = object.__new__(found)
    with pytest.raises(AttributeError, match="write_rows"):
        cases.run(bench, ForwardMode.DECODE)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.uint8])
def test_rows_of_another_dtype_than_the_caches_cannot_be_written(kept: torch.dtype) -> None:
    """What the refusal of another `--kv-cache-dtype` is for; SGLang keeps fp8 as uint8."""
    bench = cases.make_bench([2], [1])
    bench.pool.k_buffer[0] = bench.pool.k_buffer[0].to(kept)
    with pytest.raises(RuntimeError, match="same dtype"):
        cases.run(bench, ForwardMode.DECODE)
