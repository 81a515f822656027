"""Costs of rounds: what was measured, what is guessed of the rest, and what no sample can spoil."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ddtree_sglang.core.cost_model import CostModel, context_class, first_guess

WIDTHS = (1, 2, 3, 5, 9, 17)


def measured(cells: dict[tuple[int, int], float], times: int = 5, mean_prefix: float = 100) -> CostModel:
    """A model that saw each cell (requests, nodes) so many times, in turns."""
    model = CostModel()
    for _ in range(times):
        for (batch_size, num_nodes), seconds in cells.items():
            model.observe(batch_size, mean_prefix, num_nodes, seconds)
    return model


def test_measured_cells_are_what_was_measured_cliffs_included() -> None:
    cells = {(1, 1): 0.020, (1, 2): 0.050, (1, 3): 0.021, (1, 5): 0.090, (1, 9): 0.022, (1, 17): 0.023}
    assert measured(cells, 40).seconds(1, 100, WIDTHS) == pytest.approx(list(cells.values()), rel=0.01)


def test_before_the_first_sample_more_rows_cost_more() -> None:
    seconds = CostModel().seconds(4, 100, WIDTHS)
    assert (np.diff(seconds) > 0).all()
    assert CostModel().seconds(8, 100, WIDTHS)[-1] > seconds[-1]


def test_an_unknown_cell_follows_what_its_neighbours_are_off_the_guess() -> None:
    """All rounds take 30 ms times the guess: one that was never run does, too."""
    cells = {(1, nodes): 0.03 * first_guess(1, nodes, 0) for nodes in (1, 3, 17)}
    model = measured(cells)
    assert model.seconds(1, 100, (9,))[0] == pytest.approx(0.03 * first_guess(1, 9, 0), rel=1e-3)
    assert model.seconds(32, 100, (9,))[0] == pytest.approx(0.03 * first_guess(32, 9, 0), rel=1e-3)


def test_near_cells_count_more_than_far_ones() -> None:
    model = measured({(1, 1): first_guess(1, 1, 0), (32, 17): 4 * first_guess(32, 17, 0)})
    off = [
        model.seconds(*at, (nodes,))[0] / first_guess(at[0], nodes, 0) for at, nodes in [((1, 100), 2), ((32, 100), 13)]
    ]
    assert off[0] < 1.3
    assert off[1] > 3


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, -math.inf, math.nan])
def test_what_no_clock_can_give_is_dropped(seconds: float) -> None:
    model = measured({(1, 1): 0.02})
    before = model.seconds(1, 100, WIDTHS)
    model.observe(1, 100, 1, seconds)
    model.observe(1, 100, 17, seconds)
    assert (model.seconds(1, 100, WIDTHS) == before).all()


@pytest.mark.parametrize("seconds", [1e-6, 3600.0])
def test_a_clock_that_jumps_once_changes_no_choice(seconds: float) -> None:
    """All cells move a little and together, their ratios hardly."""
    model = measured({(1, nodes): 0.02 + 0.001 * nodes for nodes in WIDTHS})
    before = model.seconds(1, 100, WIDTHS)
    model.observe(1, 100, 5, seconds)
    after = model.seconds(1, 100, WIDTHS)
    assert after / after[0] == pytest.approx(before / before[0], rel=0.02)
    assert after[0] == pytest.approx(before[0], rel=0.2)


def test_a_machine_that_slows_down_slows_what_is_not_measured_now() -> None:
    model = measured({(1, 1): 0.020, (1, 9): 0.030})
    for _ in range(40):
        model.observe(1, 100, 9, 0.060)
    plain, tree = model.seconds(1, 100, (1, 9))
    assert tree == pytest.approx(0.060, rel=0.02)
    assert plain == pytest.approx(0.040, rel=0.15)


def test_a_cell_that_alone_has_changed_is_found_out_by_measuring_it() -> None:
    model = measured({(1, 1): 0.020, (1, 9): 0.030})
    for _ in range(80):
        model.observe(1, 100, 1, 0.020)
        model.observe(1, 100, 9, 0.015)
    plain, tree = model.seconds(1, 100, (1, 9))
    assert tree / plain == pytest.approx(0.75, rel=0.05)


def test_what_is_done_once_by_the_first_round_of_a_kind_does_not_stick() -> None:
    """A kernel is compiled, memory is touched for the first time: eight times as long, once."""
    model = measured({(1, 1): 0.02})
    model.observe(1, 100, 9, 0.24)
    model.observe(1, 100, 9, 0.03)
    assert model.seconds(1, 100, (9,))[0] < 0.04


def test_many_batch_sizes_are_few_cells_and_keep_their_order() -> None:
    model = CostModel()
    for batch_size in range(1, 257):
        model.observe(batch_size, 100, 5, 0.01 * first_guess(batch_size, 5, 0))
    assert len(model.cells) < 24
    seconds = [model.seconds(batch_size, 100, (5,))[0] for batch_size in range(1, 257)]
    assert seconds == sorted(seconds)
    assert seconds == pytest.approx([0.01 * first_guess(size, 5, 0) for size in range(1, 257)], rel=0.01)


def test_context_counts_by_powers_of_two() -> None:
    assert [context_class(length) for length in (0, 1, 256, 300, 600, 1024, 32768)] == [0, 0, 0, 0, 1, 2, 7]
    model = measured({(1, 1): 0.02, (1, 9): 0.03})
    for _ in range(40):
        model.observe(1, 8000, 9, 0.30)
        model.observe(1, 8000, 1, 0.03)
        model.observe(1, 100, 1, 0.02)
        model.observe(1, 100, 9, 0.03)
    near, far = (model.seconds(1, length, (1, 9)) for length in (100, 8000))
    assert near[1] / near[0] == pytest.approx(1.5, rel=0.05)
    assert far[1] / far[0] == pytest.approx(10, rel=0.05)


def test_a_table_is_kept_and_read_again() -> None:
    model = measured({(1, 1): 0.020, (4, 9): 0.030})
    again = CostModel.from_json(json.loads(json.dumps(model.to_json())))
    assert again.cells == pytest.approx(model.cells, rel=0.05)
    assert again.seconds(4, 100, WIDTHS) == pytest.approx(model.seconds(4, 100, WIDTHS), rel=0.05)


def test_a_stale_table_is_outvoted_where_rounds_are_served() -> None:
    stale = CostModel.from_json([[1, 1, 0, 0.002], [1, 9, 0, 0.001]])
    for _ in range(4):
        stale.observe(1, 100, 1, 0.020)
        stale.observe(1, 100, 9, 0.040)
    plain, tree = stale.seconds(1, 100, (1, 9))
    assert tree / plain == pytest.approx(2.0, rel=0.1)


def test_samples_behind_a_burst_are_compared_with_those_of_the_same_time() -> None:
    """A neighbour makes all rounds three times as long while some widths are measured for the first time."""
    model, rng = CostModel(), np.random.default_rng(0)
    truth = {width: 0.030 + 0.0005 * width for width in WIDTHS}

    def serve(widths: tuple[int, ...], times: int, factor: float) -> None:
        for _ in range(times):
            for width in widths:
                model.observe(1, 100, width, factor * truth[width] * math.exp(0.03 * rng.standard_normal()))

    serve((1, 17), 4, 1.0)
    serve((5, 9, 17), 4, 3.0)
    serve((1, 17), 10, 1.0)
    measured_widths = (1, 5, 9, 17)
    seconds = model.seconds(1, 100, measured_widths)
    assert seconds / seconds[0] == pytest.approx([truth[width] / truth[1] for width in measured_widths], rel=0.06)


def test_noise_does_not_decide_between_neighbours() -> None:
    """Each width was measured again, off by 10 %: neighbours correct each other, a third of the error goes at least."""
    guess = {width: first_guess(1, width, 0) for width in range(2, 18)}
    own, thought = [], []
    for seed in range(40):
        rng, model = np.random.default_rng(seed), CostModel(variance=0.01)
        noise = 0.1 * rng.standard_normal(len(guess))
        for width, seconds in guess.items():
            model.observe(1, 100, width, seconds)
        for (width, seconds), off in zip(guess.items(), noise, strict=True):
            model.observe(1, 100, width, seconds * math.exp(off))
        offs = np.log(model.seconds(1, 100, list(guess)) / np.array(list(guess.values())))
        own.append(np.std(noise))
        thought.append(np.std(offs))
    assert np.mean(thought) < 0.67 * np.mean(own)


def test_doubts_are_of_what_was_not_measured() -> None:
    model = measured({(1, 1): 0.020, (1, 17): 0.030})
    doubts = dict(zip(WIDTHS, model.of_rounds(1, 100, WIDTHS).doubts, strict=True))
    assert max(doubts[1], doubts[17]) < 0.05
    assert 0.1 < doubts[2] < doubts[5]
    for _ in range(5):
        model.observe(1, 100, 5, 0.025)
    assert model.of_rounds(1, 100, WIDTHS).doubts[3] < 0.05


def test_before_the_first_sample_all_is_doubted_alike() -> None:
    assert CostModel().of_rounds(1, 100, WIDTHS).doubts == pytest.approx(0.0)


def test_what_was_measured_long_ago_is_doubted_again() -> None:
    model = measured({(1, 1): 0.020, (1, 9): 0.030})
    before = model.of_rounds(1, 100, (1, 9)).doubts[1]
    for _ in range(1000):
        model.observe(1, 100, 1, 0.020)
    assert before + 0.02 < model.of_rounds(1, 100, (1, 9)).doubts[1] < 0.2


def test_widths_that_come_later_follow_their_neighbours() -> None:
    """A row's first look asks for few widths, as a request may allow itself few."""
    model = measured({(1, 1): 0.020, (1, 3): 0.060, (1, 5): 0.060})
    late = model.seconds(1, 100, (4,))[0]
    assert late == pytest.approx(0.060, rel=0.1)


def test_a_table_that_is_of_something_else_is_dropped_whole() -> None:
    """Trees are thought to be 25 times as dear as they are: two of one width say so, and the other rows go, too."""
    rows = [[size, nodes, 0, 0.02 if nodes == 1 else 0.5] for size in (1, 4) for nodes in WIDTHS]
    model = CostModel.from_json(rows)
    for _ in range(3):
        for _ in range(3):
            model.observe(1, 100, 1, 0.020)
        model.observe(1, 100, 9, 0.025)
    assert model.seconds(1, 100, (17,))[0] < 0.1
    assert model.seconds(4, 100, (17,))[0] < 0.2


def test_spikes_do_not_refute_a_file() -> None:
    """A right table, and a round in fifty that takes four times as long."""
    rows = [[1, width, 0, 0.02 + 0.001 * width] for width in WIDTHS] + [[4, 9, 0, 0.1]]
    model, rng = CostModel.from_json(rows), np.random.default_rng(0)
    for turn in range(2000):
        width = int(rng.choice(WIDTHS))
        factor = 4.0 if turn % 50 == 49 else math.exp(0.03 * rng.standard_normal())
        model.observe(1, 100, width, factor * (0.02 + 0.001 * width))
    assert (4, 9, 0) in model.cells


def test_two_small_hiccups_do_not_refute_a_file() -> None:
    """Once 1.4 times as long and once 2.3 times: both must be much, as for a table of something else."""
    model = CostModel.from_json([[1, 1, 0, 0.02], [1, 9, 0, 0.03], [4, 9, 0, 0.1]])
    for seconds in (0.03, 0.03, 0.042, 0.07):
        for _ in range(3):
            model.observe(1, 100, 1, 0.02)
        model.observe(1, 100, 9, seconds)
    assert (4, 9, 0) in model.cells


def test_a_cell_that_is_far_off_twice_with_others_as_expected_between_has_changed() -> None:
    """The machine's mood has not: the others stay where they are."""
    model = measured({(1, 1): 0.10, (1, 9): 0.12}, times=6)
    assert not model.observe(1, 100, 9, 0.12)
    for _ in range(2):
        assert model.observe(1, 100, 1, 0.05)
        for _ in range(3):
            model.observe(1, 100, 9, 0.12)
    plain, tree = model.seconds(1, 100, (1, 9))
    assert plain == pytest.approx(0.05, rel=0.25)
    assert tree == pytest.approx(0.12, rel=0.05)


def test_spikes_with_the_cells_own_rounds_between_do_not_refute_a_file() -> None:
    """One sample as expected takes back what the spike before it said of its cell."""
    model = CostModel.from_json([[1, 1, 0, 0.02], [1, 9, 0, 0.03], [4, 9, 0, 0.1]])
    for num_nodes, seconds in [(9, 0.03), (1, 0.02), (9, 0.12), (9, 0.03), (1, 0.02), (1, 0.02), (9, 0.12)]:
        model.observe(1, 100, num_nodes, seconds)
    assert (4, 9, 0) in model.cells


def test_a_row_that_is_learned_moves_no_other() -> None:
    model = measured({(1, width): 0.02 + 0.001 * width for width in WIDTHS}, times=20)
    before = model.seconds(1, 100, WIDTHS)
    for _ in range(30):
        for width in WIDTHS:
            model.observe(8, 100, width, 5 * (0.02 + 0.004 * width))
    assert model.seconds(1, 100, WIDTHS) == pytest.approx(before)


def test_shapes_that_are_compiled_first_leave_no_trace() -> None:
    """With eight requests each width's first round takes five times as long; then plain decoding is the cheapest."""
    model = measured({(1, width): 0.03 * first_guess(1, width, 0) for width in WIDTHS})
    truth = {1: 0.034, 2: 0.070, 13: 0.120}
    for width, seconds in truth.items():
        model.observe(8, 100, width, 5 * seconds)
    for _ in range(2):
        for width, seconds in truth.items():
            model.observe(8, 100, width, seconds)
    seconds = model.seconds(8, 100, list(truth))
    assert seconds / seconds[0] == pytest.approx([found / truth[1] for found in truth.values()], rel=0.15)


def test_a_far_sample_is_hardly_believed_and_many_are() -> None:
    model = measured({(1, 1): 0.02, (1, 17): 0.02, (1, 9): 0.02})
    model.observe(1, 100, 9, 0.30)
    plain, tree = model.seconds(1, 100, (1, 9))
    assert tree / plain == pytest.approx(1.0, rel=0.03)
    for _ in range(30):
        model.observe(1, 100, 1, 0.02)
        model.observe(1, 100, 9, 0.30)
    plain, tree = model.seconds(1, 100, (1, 9))
    assert tree / plain == pytest.approx(15.0, rel=0.1)


@pytest.mark.parametrize(
    "rows",
    [
        {},
        None,
        "x",
        [1],
        [[1, 1, 0]],
        [[1, 1, 0, "a"]],
        [[1, 1, 0, True]],
        [[0, 1, 0, 1.0]],
        [[1, 0, 0, 1.0]],
        [[1, 1, -1, 1.0]],
        [[1.5, 1, 0, 1.0]],
        [[1, 1, 0, 0.0]],
        [[1, 1, 2000, 0.01]],
        [[1, 10**9, 0, 0.01]],
        [[1, 1, 0, 10**400]],
        [[1, 1, 0, 1e308]],
        [[1, 1, 0, math.nan]],
        [[1, 1, 0, math.inf]],
    ],
)
def test_what_is_no_table_is_refused(rows: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        CostModel.from_json(rows)


def ratio(model: CostModel, first: int = 17, second: int = 9) -> float:
    """What rounds of so many nodes take over those of others."""
    one, other = model.seconds(1, 100, (first, second))
    return float(one / other)


def test_slow_rounds_of_a_width_that_is_served_alone_do_not_make_it_unknown() -> None:
    """Only level and cell together are seen then, and what comes next decides about both."""
    model = measured({(1, 1): 0.020, (1, 9): 0.044, (1, 17): 0.051}, 40)
    for number in range(480):
        model.observe(1, 100, 1, 0.020 * (3.5 if number % 10 == 0 else 1.0))
    # Another mood while it is still served alone.
    for _ in range(6):
        model.observe(1, 100, 1, 0.020 * 1.4)
    for _ in range(4):
        model.observe(1, 100, 9, 0.044)
    assert ratio(model, 9, 1) == pytest.approx(0.044 / 0.020, rel=0.1)


def test_two_slow_rounds_of_a_width_are_no_change_of_it() -> None:
    model = measured({(1, 1): 0.020, (1, 9): 0.044, (1, 17): 0.051}, 40)
    for _ in range(2):
        model.observe(1, 100, 17, 0.120)
        for nodes in (1, 9, 1, 9):
            model.observe(1, 100, nodes, {1: 0.020, 9: 0.044}[nodes])
    assert ratio(model) == pytest.approx(0.051 / 0.044, rel=0.25)
    for _ in range(3):
        model.observe(1, 100, 17, 0.120)
        for nodes in (1, 9, 1, 9):
            model.observe(1, 100, nodes, {1: 0.020, 9: 0.044}[nodes])
    assert ratio(model) == pytest.approx(0.120 / 0.044, rel=0.1), "five are"


@pytest.mark.parametrize("rested", [0.0, 20.0])
def test_another_mood_behind_a_rest_is_not_charged_to_what_was_long_not_served(rested: float) -> None:
    model = measured({(1, 1): 0.020, (1, 9): 0.044, (1, 17): 0.051}, 40)
    for _ in range(520):
        model.observe(1, 100, 1, 0.020)
    model.rest(rested)
    for _ in range(3):
        model.observe(1, 100, 9, 0.044 * 1.055)
    off = abs(math.log(ratio(model, 9, 17) / (0.044 / 0.051)))
    assert (off < 0.02) is bool(rested)


def test_many_rests_are_not_more_than_a_long_one() -> None:
    one, other = (measured({(1, 1): 0.020, (1, 9): 0.044}, 40) for _ in range(2))
    for _ in range(200):
        one.rest(1.0)
    other.rest(3600.0)
    levels = [model.rows[1, 0].covariance[0, 0] for model in (one, other)]
    assert levels[0] == pytest.approx(levels[1], rel=1e-3)
    for model in (one, other):
        model.observe(1, 100, 1, 0.020)
    one.rest(3600.0)
    assert one.rows[1, 0].covariance[0, 0] > 0.5 * levels[0], "behind a sample the next rest counts"
