"""Policy "adaptive"'s compiled loops beside the same arithmetic by NumPy, a whole array at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddtree_sglang.core.compiled import compiled
from ddtree_sglang.core.cost_model import CostModel
from ddtree_sglang.core.cost_row import CostRow
from ddtree_sglang.core.honest_probs import KINDS, HonestProbs, RoundTrees, classify, trials
from ddtree_sglang.core.hope import CURIOSITY, LEAST_LOSS, OPTIMISM
from ddtree_sglang.core.round_loops import BINS, EDGES, MAX_DEPTH, add_request
from ddtree_sglang.core.width_choice import best_width, drafted_tokens
from ddtree_sglang.core.width_tries import hopeful_tries
from tests.core.test_honest_probs import accept, trees_of

SHAPES = [(1, 1, 0), (1, 2, 1), (1, 17, 2), (3, 8, 3), (5, 33, 4)]


def padded(trees: RoundTrees, rng: np.random.Generator) -> RoundTrees:
    """The same with some last nodes of each row left out."""
    logprobs, parents, depths = trees.logprobs.copy(), trees.parents.copy(), trees.depths.copy()
    for row in range(len(parents)):
        first = int(rng.integers(1, parents.shape[1] + 1))
        logprobs[row, first:], parents[row, first:], depths[row, first:] = -np.inf, -1, 0
    return RoundTrees(logprobs, parents, depths)


def classes_by_numpy(trees: RoundTrees) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Conditional, cells and parents, `[B, N]` each; ancestors by jumps that double."""
    batch_size, num_nodes = trees.parents.shape
    index, rows = np.arange(num_nodes), np.arange(batch_size)[:, None]
    real = trees.parents >= 0
    parents = np.where(real, trees.parents, index)
    with np.errstate(invalid="ignore"):
        conditional = np.exp(np.minimum(trees.logprobs - trees.logprobs[rows, parents], 0.0))
    conditional[~real] = 0.0
    conditional[:, 0] = 1.0
    first_child = np.full(batch_size * num_nodes, num_nodes)
    places = rows * num_nodes + parents
    np.minimum.at(first_child, places[:, 1:].ravel(), np.tile(index[1:], batch_size))
    is_first = first_child[places] == index
    is_first[:, 0] = True
    on_spine, jump = is_first, parents
    for _ in range(int(num_nodes).bit_length()):
        on_spine = on_spine & on_spine[rows, jump]
        jump = jump[rows, jump]
    depth = np.clip(trees.depths, 1, MAX_DEPTH) - 1
    kind = (depth * 2 + ~on_spine[rows, parents]) * 2 + ~is_first
    bins = np.minimum(np.searchsorted(EDGES, conditional, side="right") - 1, BINS - 1)
    return conditional, kind * BINS + bins, parents


@pytest.mark.parametrize(("batch_size", "num_nodes", "seed"), SHAPES)
@pytest.mark.parametrize("with_padding", [False, True])
def test_classes_of_nodes(batch_size: int, num_nodes: int, seed: int, with_padding: bool) -> None:
    trees = trees_of(batch_size, num_nodes, seed)
    if with_padding:
        trees = padded(trees, np.random.default_rng(seed))
    found, (conditional, cells, parents) = classify(trees), classes_by_numpy(trees)
    np.testing.assert_allclose(found.conditional, conditional, rtol=1e-12)
    np.testing.assert_array_equal(found.cells, cells)
    np.testing.assert_array_equal(found.parents, parents)


@pytest.mark.parametrize(("batch_size", "num_nodes", "seed"), SHAPES)
def test_paths_of_corrected_probabilities(batch_size: int, num_nodes: int, seed: int) -> None:
    trees, rng = padded(trees_of(batch_size, num_nodes, seed), np.random.default_rng(seed)), np.random.default_rng(9)
    probs = HonestProbs()
    probs.base, probs.slope = rng.random(KINDS * BINS), rng.random(KINDS * BINS)
    of_nodes, expected = probs.of_nodes(trees), np.ones(trees.parents.shape)
    for row, parents in enumerate(trees.parents):
        for node in range(1, num_nodes):
            expected[row, node] = of_nodes[row, node] * expected[row, parents[node]] if parents[node] >= 0 else 0.0
    np.testing.assert_allclose(probs.of_paths(trees), expected, rtol=1e-12)


@pytest.mark.parametrize(("batch_size", "num_nodes", "seed"), SHAPES)
def test_trials_that_are_counted(batch_size: int, num_nodes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    trees = padded(trees_of(batch_size, num_nodes, seed), rng)
    whole = trees_of(batch_size, num_nodes + 5, seed)
    for looked_at in (trees, whole.first(num_nodes)):
        paths, probs = accept(looked_at, rng, 1.0), HonestProbs()
        counted = rng.random((batch_size, num_nodes)) < 0.8
        probs.learn(looked_at, paths, counted)
        tried, accepted = trials(looked_at, paths, counted)
        cells = looked_at.classes.cells[tried]
        for table, values in (
            (probs._trials, np.ones(len(cells))),
            (probs._said, looked_at.classes.conditional[tried]),
            (probs._hits, accepted[tried].astype(np.float64)),
        ):
            np.testing.assert_allclose(table, np.bincount(cells, values, minlength=KINDS * BINS), atol=1e-12)


@pytest.mark.parametrize(("batch_size", "num_nodes", "seed"), SHAPES)
def test_sums_to_widths(batch_size: int, num_nodes: int, seed: int) -> None:
    probs = np.random.default_rng(seed).random((batch_size, num_nodes))
    widths = np.array([1, 2, 3, 5, 9, 17, 65])
    expected = probs.cumsum(1)[:, np.minimum(widths, num_nodes) - 1] - probs[:, :1]
    np.testing.assert_allclose(drafted_tokens(probs, widths), expected, atol=1e-12)


def test_a_requests_tokens_end_at_its_own_limit() -> None:
    tokens, drafted = np.full(4, 2.0), np.array([0.0, 1.0, 2.0, 3.0])
    add_request(tokens, drafted, 0.5, 2)
    assert tokens.tolist() == [2.0, 2.5, 3.0, 3.0]


def test_the_best_width_is_the_first_of_the_highest_rates() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        tokens, seconds = rng.integers(1, 9, 7).astype(float), rng.integers(1, 9, 7).astype(float)
        assert best_width(tokens, seconds) == (tokens / seconds).argmax()


def test_a_sample_of_a_cell_is_a_kalman_filters() -> None:
    rng = np.random.default_rng(0)
    row = CostRow([1, 2, 4, 8], rng.random(4), (-3.0, 2.0), 0.3)
    row.observe(1, -3.0, 0.4, 1)
    for rounds in range(2, 40):
        state, covariance = row.state.copy(), row.covariance.copy()
        diagonal = np.minimum(np.maximum(row._most - covariance.diagonal(), 0.0), row._drift)
        covariance[np.arange(5), np.arange(5)] += diagonal
        place, noise = int(rng.integers(1, 5)), 0.4
        value = float(state[0] + state[place] + 0.01 * rng.standard_normal())
        first = row.samples[place - 1] == 0
        row.observe(place, value, noise, rounds)
        noise = 0.5 if first else noise
        seen = covariance[:, 0] + covariance[:, place]
        gain = seen / (seen[0] + seen[place] + noise**2)
        np.testing.assert_allclose(row.state, state + gain * (value - state[0] - state[place]), rtol=1e-9)
        np.testing.assert_allclose(row.covariance, covariance - gain[:, None] * seen, rtol=1e-9, atol=1e-12)
    places, guesses = row.places([2, 8]), np.array([2.0, 3.0])
    np.testing.assert_allclose(row.seconds(places, guesses), guesses * np.exp(row.offs(places)))


@pytest.mark.parametrize("only_plain", [False, True])
def test_the_most_hopeful_width_and_what_its_try_loses(only_plain: bool) -> None:
    rng, found = np.random.default_rng(0), set[str]()
    for _ in range(300):
        model, widths = CostModel(), (1, 2, 4, 8)
        for _ in range(int(rng.integers(1, 9))):
            model.observe(1, 100, int(rng.choice(widths)), float(0.03 + 0.03 * rng.random()))
        costs, tokens = model.of_rounds(1, 100, widths), 1 + rng.random(4).cumsum()
        rates, samples = tokens / costs.seconds, np.array(costs.samples)
        best, limits = int(rates.argmax()), (4.0, float(rng.random()))
        learned = CURIOSITY * costs.doubts**2 / np.sqrt(costs.doubts**2 + costs.noise**2)
        hoped = np.where(samples < 2, np.array(OPTIMISM)[np.minimum(samples, 1)] * costs.doubts, learned)
        hopes = rates * np.exp(hoped)
        losses = costs.seconds * np.exp(costs.doubts) / costs.seconds[best] - tokens / tokens[best]
        losses = np.maximum(losses, LEAST_LOSS)
        if only_plain:
            hopes[1:] = 0.0
        hopes[best] = rates[best]
        for most, one in zip(limits, hopeful_tries(tokens, costs, best, limits, only_plain=only_plain), strict=True):
            affordable = np.where(losses <= most, hopes, 0.0)
            place = int(affordable.argmax())
            if affordable[place] > hopes[best]:
                assert one is not None
                assert one.place == place
                assert one.loss == pytest.approx(losses[place])
            else:
                assert one is None
            found.add(type(one).__name__)
    assert found == {"Try", "NoneType"}


def test_who_does_not_ask_does_not_import_numba() -> None:
    told = "import sys, ddtree_sglang.core.cost_model, ddtree_sglang.core.honest_probs; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("error", [RuntimeError("no locator available"), EOFError("Ran out of input"), OSError(28, "")])
def test_where_no_file_can_be_kept_each_process_compiles_for_itself(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numba

    made, njit = [], numba.njit

    def without_a_file(signatures: list[str], **options: bool) -> object:
        if options.get("cache"):
            raise error
        made.append(signatures)
        return njit(signatures)

    monkeypatch.setattr(numba, "njit", without_a_file)

    @compiled("float64(float64)")
    def doubled(value: float) -> float:
        return 2 * value

    assert [doubled(1.5), doubled(2.0)] == [3.0, 4.0]
    assert made == [["float64(float64)"]]


def test_a_damaged_file_is_not_the_end_of_a_server(tmp_path: Path) -> None:
    """numba renames its files without waiting for the disk: a power cut leaves empty ones."""
    told = "from ddtree_sglang.core import compiled, width_choice as w; compiled.compile_loops(); import numpy as n;"
    told += "print(w.best_width(n.array([1.0, 3.0]), n.array([1.0, 2.0])))"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", told], capture_output=True, text=True, env=environment, check=True
        )
        assert ended.stdout == "1\n"
        kept = list(tmp_path.rglob("*.nbi"))
        assert kept
        for path in kept:
            path.write_bytes(b"")


def test_nodes_that_no_tree_has_are_an_error() -> None:
    """Machine code looks at no bounds by itself."""
    trees = RoundTrees(np.zeros((1, 3)), np.array([[-1, 0, 0]]), np.array([[0, 1, 1]]))
    with pytest.raises(IndexError, match="nodes of its tree"):
        HonestProbs().learn(trees, np.array([[0, 2, 7]]), np.ones((1, 3), dtype=np.bool_))
    with pytest.raises(IndexError, match="behind its parent"):
        classify(RoundTrees(np.zeros((1, 3)), np.array([[-1, 7, 0]]), np.array([[0, 1, 1]])))


def test_without_numba_the_loop_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)

    @compiled("float64(float64)")
    def doubled(value: float) -> float:
        return 2 * value

    assert doubled(1.5) == 3.0
    assert doubled("ab") == "abab", "no machine code would take a word"


def test_a_loop_that_is_compiled_is_called_by_its_name_without_a_detour() -> None:
    told = """
from ddtree_sglang.core import compiled, round_loops
detour = round_loops.expect_round
compiled._compilers[detour]()
names = "expect_round expect_tokens add_request honesty most_per_second".split()
print([type(getattr(round_loops, name)).__name__ for name in names], type(round_loops.keep_round).__name__)
print(compiled._compilers[detour]() is round_loops.expect_round)
"""
    ended = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ended.stdout == f"{['CPUDispatcher'] * 5} function\nTrue\n", "and those that it calls"


def test_loops_are_compiled_before_the_first_round() -> None:
    told = """
import sys
from ddtree_sglang.core import compiled, cost_model, honest_probs, width_tries
before = "numba" in sys.modules
compiled.compile_loops()
print(before, all(loop().nopython_signatures for loop in compiled._compilers.values()), len(compiled._compilers) > 8)
"""
    ended = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ended.stdout == "False True True\n"
