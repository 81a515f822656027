"""Rounds, tokens and seconds of a replay, counted by hand; the adaptive budget among them."""

from __future__ import annotations

import pytest

from ddtree_sglang.calibration.table import CostTable
from ddtree_sglang.core.cost_model import CostModel
from ddtree_sglang.simulator.costs import TableCosts, known_model, table_of_decode
from ddtree_sglang.simulator.predictions import Scene, chart, remarks, rows_of, terminal, to_json
from ddtree_sglang.simulator.replay import replay, replay_wave
from ddtree_sglang.simulator.systems import Adaptive, Chain, FixedTree, Plain, round_trees
from tests.simulator.cases import PARENTS, Linear, answer

WALKS = ("spine", "none", "none", "none", "sibling", "none", "none", "none")
"""Positions 10 to 17. Six nodes: spine takes 10 to 14, sibling 14 to 17, then a token ends it. Three rounds."""


def test_plain_decoding_takes_a_round_for_each_token() -> None:
    found = replay_wave([answer(WALKS)], Plain(), Linear())
    assert (found.tokens, found.request_rounds, found.accept_length) == (8, 8, 1.0)
    assert found.seconds == pytest.approx(8 * 1.05)
    assert found.tokens_per_s == pytest.approx(1 / 1.05)


def test_a_tree_takes_the_rounds_that_its_walks_leave() -> None:
    found = replay_wave([answer(WALKS)], FixedTree(5), Linear())
    assert (found.tokens, found.request_rounds) == (8, 3)
    assert found.seconds == pytest.approx(3 * (1.25 + 0.05 * 6))
    # Four nodes hold 1 and 2 of the spine, so it brings 3 tokens, and node 1 of the sibling's walk.
    # 10 to 13, 13 to 14, 14 to 16, 16, 17.
    assert replay_wave([answer(WALKS)], FixedTree(3), Linear()).request_rounds == 5
    assert replay_wave([answer(WALKS)], FixedTree(6), Linear()).mean_nodes == 7


def test_the_chain_follows_the_spine_alone_and_says_where_its_record_ends() -> None:
    found = replay_wave([answer(WALKS)], Chain(8), Linear())
    # 10 to 14 by the spine; of the sibling's walk node 1: 14 to 16; then 16, 17.
    assert (found.tokens, found.request_rounds, found.beyond) == (8, 4, 1)
    assert found.seconds == pytest.approx(4 * (1.25 + 0.05 * 8))
    assert replay_wave([answer(WALKS)], Chain(3), Linear()).beyond == 0


def test_requests_of_a_wave_end_one_after_another_and_rounds_get_cheaper() -> None:
    short = answer(("none", "none"), name="short")
    found = replay_wave([answer(WALKS), short], Plain(), Linear())
    assert found.tokens == 10
    assert found.seconds == pytest.approx(2 * 1.1 + 6 * 1.05)


def test_an_ended_request_is_replaced_by_the_next_answer() -> None:
    found = replay([answer(WALKS), answer(("none",) * 4, name="two")], Plain(), Linear(), 2, 50)
    assert set(found.widths) == {1}
    assert found.tokens == found.request_rounds == 100, "two requests in each round, whichever end"
    assert found.seconds == pytest.approx(50 * 1.1)


def test_a_tree_that_is_not_there_is_stood_in_for_and_told() -> None:
    one = answer(WALKS, trees=lambda position: position == 10)
    found = replay_wave([one], FixedTree(5), Linear())
    assert (found.tokens, found.request_rounds, found.stand_ins) == (8, 2, 1)


def test_a_text_ends_with_its_last_token_however_much_was_accepted() -> None:
    """Three tokens, all of them drafted: there is none after them."""
    found = replay_wave([answer(("spine", "none", "none"))], FixedTree(5), Linear())
    assert (found.tokens, found.request_rounds) == (3, 1)


@pytest.mark.parametrize("on_device", [False, True])
def test_the_adaptive_budget_measures_the_rounds_that_it_is_given(on_device: bool) -> None:
    system = Adaptive((1, 2, 5), CostModel(), on_device=on_device)
    replay([answer(("spine", "none", "none", "none") * 40)], system, Linear(), 2, 60)
    seconds = system.budget.costs.seconds(2, 90.0, (1, 2, 5))
    assert seconds == pytest.approx([Linear().seconds(2, 90.0, nodes) for nodes in (1, 2, 5)], rel=0.02)


def test_no_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="a replay needs answers"):
        replay([], Plain(), Linear(), 1, 10)


@pytest.mark.parametrize("on_device", [False, True])
def test_the_adaptive_budget_drafts_where_it_pays_and_nowhere_else(on_device: bool) -> None:
    good = [answer(("spine", "none", "none", "none") * 40)]
    bad = [answer(("none",) * 160)]
    for answers, most_of_rounds in ((good, lambda nodes: nodes >= 5), (bad, lambda nodes: nodes == 1)):
        model = known_model(Linear(), [1], (10, 90, 170), (1, 2, 3, 5, 7))
        system = Adaptive((1, 2, 3, 5, 7), model, on_device=on_device)
        replay(answers, system, Linear(), 1, 100)
        found = replay(answers, system, Linear(), 1, 200)
        share = sum(count for nodes, count in found.widths.items() if most_of_rounds(nodes)) / found.widths.total()
        assert share > 0.8, found.widths


def test_trees_become_the_arrays_that_the_budget_reads() -> None:
    trees = [answer(WALKS).trees[10]]
    made = round_trees(trees, 4)
    assert made.parents.tolist() == [list(PARENTS[:4])]
    assert made.depths.tolist() == [[0, 1, 2, 1]]
    assert round_trees(trees, 9).parents.tolist() == [[*PARENTS, -1, -1]]


def test_a_measured_table_gives_its_own_cells_back() -> None:
    table = CostTable({(0, 1, 1): 0.02, (0, 1, 9): 0.05, (0, 8, 9): 0.2, (1, 1, 9): 0.07})
    costs = TableCosts(table)
    for (context, size, width), spent in table.seconds.items():
        assert costs.seconds(size, 256 * 2**context, width) == pytest.approx(spent)
    assert 0.02 < costs.seconds(1, 100, 5) < 0.07, "between, as the server estimates it"


def test_result_lines_of_decode_become_a_table() -> None:
    def line(system: str, size: int, rate: float, ms: float | None) -> dict[str, object]:
        per_round = None if ms is None else {"median": ms}
        return {
            "system": system,
            "batch_size": size,
            "decode_tokens_per_s": {"median": rate},
            "ms_per_round": per_round,
        }

    lines = [line("plain", 8, 200.0, None), line("dflash", 8, 1.0, 7.2), line("ddtree-16", 8, 1.0, 8.8)]
    lines += [line("plain", 8, 100.0, None), line("ddtree-adaptive-16", 8, 1.0, 5.0)]
    table = table_of_decode(lines, 16)
    assert table.seconds == pytest.approx({(0, 8, 1): 0.0075, (0, 8, 16): 0.0072, (0, 8, 17): 0.0088})


def scene() -> Scene:
    walks = ("spine", "none", "none", "none") * 20
    return Scene([answer(walks)], Linear(), block_size=4, budgets=(2, 5), most=6)


def test_a_scene_has_every_system_at_every_concurrency() -> None:
    found = scene().predict([1, 4])
    assert [one.system for one in found[:5]] == ["plain", "chain", "tree 2", "tree 5", "adaptive"]
    rates = {(one.system, one.concurrency): one.tokens_per_s for one in found}
    assert rates["plain", 1] == pytest.approx(1 / 1.05)
    assert rates["plain", 4] == pytest.approx(4 / 1.2)
    # Four tokens, all of the spine, in each round.
    assert rates["chain", 1] == pytest.approx(4 / (1.25 + 0.2), rel=0.01)
    assert rates["tree 5", 1] == pytest.approx(4 / (1.25 + 0.3), rel=0.01)
    assert rates["adaptive", 1] > 0.95 * rates["tree 5", 1]
    rows = rows_of(found)
    assert rows[0] == ["requests", "plain", "chain", "tree 2", "tree 5", "adaptive"]
    assert rows[1][:2] == ["1", "1 (1.00)"]
    line = chart(found, "t").lines[1]
    assert line.points[0] == (1.0, pytest.approx(4 * 1.05 / 1.45, rel=0.01))
    assert "adaptive verified nodes of each request" in terminal(found)
    assert to_json(found[0])["tokens_per_s"] == pytest.approx(0.95, abs=0.01)
    assert remarks(found) == []


def test_a_tree_wider_than_recorded_is_refused() -> None:
    with pytest.raises(
        ValueError, match="must not be wider than the 7 nodes of the narrowest round that drafted, got a budget of 7"
    ):
        Scene([answer(WALKS)], Linear(), 4, budgets=(7,), most=2)
