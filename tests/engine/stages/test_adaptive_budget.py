"""Policy adaptive on made-up servers: where it ends, how soon, what it pays for looking, and what cannot mislead it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.cost_model import CostModel
from ddtree_sglang.core.round_loops import PACE, PROMISED
from ddtree_sglang.core.second_looks import RARELY
from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget
from ddtree_sglang.engine.stages.request_records import RequestRecord
from ddtree_sglang.engine.stages.round_records import RoundRecord
from tests.engine.stages.served_rounds import Served, host_trees, running_request

pytestmark = pytest.mark.sglang

WIDTHS = (1, 2, 3, 5, 9, 17)
SEEDS = range(8)
"""Of what hangs on a request's luck."""
Cost = Callable[[int, int], float]


def flat(_requests: int, nodes: int) -> float:
    """A forward that waits for memory: nodes cost nothing."""
    return 0.020 + (0.004 if nodes > 1 else 0.0)


def steep(requests: int, nodes: int) -> float:
    """Every row is paid for."""
    return 0.020 + 0.010 * requests * nodes + (0.008 if nodes > 1 else 0.0)


def cliff(_requests: int, nodes: int) -> float:
    """Dear from 3 to 9 nodes, cheap at 17: a captured width, or a kernel of its own."""
    return (0.021 if nodes <= 2 else 0.060 if nodes <= 9 else 0.024) + (0.004 if nodes > 1 else 0.0)


def served(cost: Cost, size: int, lag: int, num_rounds: int = 300, **options: Any) -> Served:
    one = Served(AdaptiveBudget(WIDTHS, lag=lag), cost, **options)
    return one.rounds(num_rounds, [running_request() for _ in range(size)])


def share_of(one: Served, is_meant: Callable[[int], bool], last: int = 120) -> float:
    return sum(map(is_meant, one.widths[-last:])) / last


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(
    ("cost", "size", "truth", "is_meant"),
    [
        (flat, 1, 1.0, lambda nodes: nodes >= 9),
        (flat, 4, 1.0, lambda nodes: nodes >= 9),
        (cliff, 1, 1.0, lambda nodes: nodes == 17),
        (steep, 8, 1.0, lambda nodes: nodes == 1),
        (flat, 1, 100.0, lambda nodes: nodes == 1),
    ],
    ids=["one", "four", "behind-a-cliff", "many", "never-hits"],
)
def test_it_ends_where_the_rate_is_best(
    cost: Cost, size: int, truth: float, is_meant: Callable[[int], bool], lag: int
) -> None:
    one = served(cost, size, lag, truth=truth)
    assert share_of(one, is_meant) > 0.9


@pytest.mark.parametrize("lag", [0, 1])
def test_looking_costs_two_per_cent_at_most(lag: int) -> None:
    """A pair that never hits, where each draft is a loss: plain decoding's rate, nearly."""
    one = served(flat, 1, lag, num_rounds=300, truth=100.0)
    tokens, seconds = one.tokens, one.seconds
    one.rounds(500, [running_request()])
    rate = (one.tokens - tokens) / (one.seconds - seconds)
    assert rate > 0.98 / flat(1, 1)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_first_rounds_are_no_disaster(lag: int) -> None:
    one = served(flat, 1, lag, num_rounds=100, truth=100.0)
    assert one.rate > 0.85 / flat(1, 1)


@pytest.mark.parametrize("lag", [0, 1])
def test_texts_that_get_easier_are_noticed(lag: int) -> None:
    one, reqs = served(flat, 1, lag, truth=100.0), [running_request()]
    assert share_of(one, lambda nodes: nodes == 1) > 0.9
    one.truth = 1.0
    one.rounds(400, reqs)
    assert share_of(one, lambda nodes: nodes > 5) > 0.9


@pytest.mark.parametrize("lag", [0, 1])
def test_a_pair_that_stops_to_hit_ends_in_plain_decoding(lag: int) -> None:
    rates, plain = [], []
    for seed in range(6):
        one, reqs = served(flat, 1, lag, seed=seed), [running_request()]
        one.truth = 100.0
        one.rounds(130, reqs)
        tokens, seconds = one.tokens, one.seconds
        one.rounds(250, reqs)
        rates.append((one.tokens - tokens) / (one.seconds - seconds) * flat(1, 1))
        plain.append(share_of(one, lambda nodes: nodes == 1))
    assert np.mean(rates) > 0.975
    assert np.mean(plain) > 0.9


def test_a_drafter_that_is_too_sure_is_not_believed() -> None:
    """By its own word a tree pays, by what is accepted it does not."""

    def dear(requests: int, nodes: int) -> float:
        return 0.020 + (0.016 if nodes > 1 else 0.0)

    honest, boastful = served(dear, 1, 0, sureness=4.0), served(dear, 1, 0, sureness=4.0, truth=8.0)
    assert share_of(honest, lambda nodes: nodes > 1) > 0.9
    assert share_of(boastful, lambda nodes: nodes == 1) > 0.85


def test_one_request_that_keeps_nothing_does_not_end_the_others_trees() -> None:
    """Of two requests one is sampled hot: what it expects is corrected by its own record."""
    budget = AdaptiveBudget(WIDTHS)
    one = Served(budget, flat)
    good, bad = running_request(), running_request()
    one.rounds(60, [good])
    one.truth = 100.0
    one.rounds(60, [bad])
    assert budget._requests[bad].honesty(1.0) < 0.6 * budget._requests[good].honesty(1.0)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_neighbour_that_comes_and_goes_changes_no_choice(lag: int) -> None:
    factor = [1.0]
    one = served(lambda requests, nodes: factor[0] * flat(requests, nodes), 1, lag)
    reqs = [running_request()]
    for factor[0] in (2.5, 1.0, 3.0, 1.0):
        one.rounds(60, reqs)
        assert share_of(one, lambda nodes: nodes >= 9, 60) > 0.85


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_a_neighbour_while_a_server_begins_spoils_nothing(seed: int, lag: int) -> None:
    """What widths took while it was there is compared with what others took then."""
    busy = np.random.default_rng(seed)
    there = [True]

    def cost(requests: int, nodes: int) -> float:
        true = 0.030 + 0.0009 * nodes + (0.008 if nodes > 1 else 0.0)
        return true * (busy.choice([1.0, 2.0, 3.0]) if there[0] else 1.0)

    one, reqs = Served(AdaptiveBudget((*WIDTHS, 33), lag=lag), cost, seed=seed), [running_request()]
    one.rounds(40, reqs)
    there[0] = False
    one.rounds(150, reqs)
    tokens, seconds = one.tokens, one.seconds
    one.rounds(300, reqs)
    fixed = max(fixed_rate(cost, width, seed) for width in (5, 9, 17))
    assert (one.tokens - tokens) / (one.seconds - seconds) > 0.96 * fixed


def fixed_rate(cost: Cost, num_nodes: int, seed: int) -> float:
    """Tokens per second of a fixed budget, one request."""
    one = Served(AdaptiveBudget((1, num_nodes)), cost, seed=seed)
    trees = [one.drafted(1, num_nodes) for _ in range(300)]
    return sum(int(one.accepted(tree).commit_lens.sum()) for tree in trees) / (300 * cost(1, num_nodes))


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_jumps_changes_no_choice(jump: float) -> None:
    one, reqs = served(flat, 1, 0), [running_request()]
    for _ in range(5):
        one.now += jump
        one.rounds(20, reqs)
    assert share_of(one, lambda nodes: nodes >= 9, 100) > 0.85


@pytest.mark.parametrize("lag", [0, 1])
def test_long_prompts_end_in_plain_decoding_by_themselves(lag: int) -> None:
    """Where each node reads a long text: costs of short ones are not believed of it for long, nor its of theirs."""
    long = 16_000.0

    def cost(_requests: int, nodes: int) -> float:
        return flat(1, nodes) if one.mean_prefix < long else 0.040 + (0.060 + 0.030 * nodes if nodes > 1 else 0.0)

    one = Served(AdaptiveBudget(WIDTHS, lag=lag), cost)
    one.rounds(100, [running_request()])
    assert share_of(one, lambda nodes: nodes > 1, 50) > 0.85
    one.mean_prefix = long
    one.rounds(100, [running_request()])
    assert share_of(one, lambda nodes: nodes == 1, 70) > 0.9
    one.mean_prefix = 300.0
    one.rounds(60, [running_request()])
    assert share_of(one, lambda nodes: nodes > 1, 40) > 0.85


def test_a_wrong_table_is_found_out() -> None:
    """It says that plain decoding is ten times as fast as it is, and trees dear."""
    wrong = CostModel.from_json([[1, 1, 0, 0.002], *([1, nodes, 0, 0.5] for nodes in WIDTHS[1:])])
    one = Served(AdaptiveBudget(WIDTHS, wrong), flat)
    one.rounds(400, [running_request()])
    assert share_of(one, lambda nodes: nodes >= 9) > 0.85


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("factor", [2.0, 3.0, 5.0, 10.0])
def test_a_table_that_has_trees_too_dear_is_found_out_by_the_first_drafts(factor: float, lag: int) -> None:
    """One of another machine, or of a busy one: plain decoding is right in it, so that no plain round refutes it."""

    def speed(table_factor: float) -> float:
        rates = []
        for seed in range(3):
            table = [[1, nodes, 0, flat(1, nodes) * (table_factor if nodes > 1 else 1.0)] for nodes in WIDTHS]
            one = Served(AdaptiveBudget(WIDTHS, CostModel.from_json(table), lag=lag), flat, seed=seed)
            one.rounds(150, [running_request()])
            rates.append(one.tokens / one.seconds)
        return float(np.mean(rates))

    assert speed(factor) > 0.88 * speed(1.0)


@pytest.mark.parametrize("lag", [0, 1])
def test_drafts_that_are_as_dear_as_the_table_says_stay_rare(lag: int) -> None:
    def dear(_requests: int, nodes: int) -> float:
        return 0.020 if nodes == 1 else 0.120

    table = [[1, nodes, 0, dear(1, nodes)] for nodes in WIDTHS]
    one = Served(AdaptiveBudget(WIDTHS, CostModel.from_json(table), lag=lag), dear)
    one.rounds(200, [running_request()])
    assert sum(nodes > 1 for nodes in one.widths) <= 4


@pytest.mark.parametrize("lag", [0, 1])
def test_requests_that_come_and_go_every_round_are_served(lag: int) -> None:
    plain, wide = [], []
    for seed in range(3):
        one, rng = Served(AdaptiveBudget(WIDTHS, lag=lag), flat, seed=seed), np.random.default_rng(seed)
        for _ in range(200):
            one.round([running_request() for _ in range(rng.integers(1, 9))])
        assert len(one.budget._requests) <= 16, "ended requests are forgotten"
        plain.append(share_of(one, lambda nodes: nodes == 1))
        wide.append(share_of(one, lambda nodes: nodes >= 5))
    assert np.mean(plain) < 0.1
    assert np.mean(wide) > 0.8


def test_no_more_nodes_than_a_request_allows_itself() -> None:
    one, reqs = served(flat, 1, 0, num_rounds=100), [running_request()]
    assert max(one.round(reqs, limit=3, most=3) for _ in range(50)) <= 3
    assert all(one.round(reqs, limit=1, most=1) == 1 for _ in range(20))


def test_ended_requests_teach_nothing() -> None:
    """Where an end cut a path, the target's other choice did not."""
    budget = AdaptiveBudget(WIDTHS)
    one, ended = Served(budget, flat), running_request()
    ended.finished = lambda: True
    one.rounds(40, [ended])
    assert budget.probs.table() == []


def test_a_prefill_between_rounds_is_no_sample() -> None:
    one, reqs = Served(AdaptiveBudget(WIDTHS), flat), [running_request()]
    for _ in range(60):
        one.budget.interrupt()
        one.now += 5.0
        one.round(reqs)
    assert one.budget.costs.cells == {}


def test_without_a_hit_drafts_become_rare() -> None:
    counts = []
    for seed in SEEDS:
        one = served(flat, 1, 0, num_rounds=400, truth=100.0, seed=seed)
        counts.append(sum(nodes > 1 for nodes in one.widths[101:]))
    assert min(counts) >= 1
    assert fmean(counts) <= 11


def crowded(_requests: int, nodes: int) -> float:
    """Of 16 requests on two cores (benchmarks/results, 2026-11-30): drafts nearly pay."""
    return 0.041 if nodes == 1 else 0.045 + 0.0163 * nodes


@pytest.mark.parametrize("lag", [0, 1])
def test_drafts_that_nearly_pay_are_not_repeated_for_their_luck(lag: int) -> None:
    """Three nodes have 0.96 of plain decoding's rate, so that one round of three brings more than it costs."""
    rates = []
    for seed in SEEDS:
        table = CostModel.from_json([[16, nodes, 0, crowded(16, nodes)] for nodes in WIDTHS])
        one = Served(AdaptiveBudget(WIDTHS, table, lag=lag), crowded, sureness=4.0, seed=seed)
        one.rounds(200, [running_request() for _ in range(16)])
        rates.append(one.rate * crowded(16, 1) / 16)
    assert fmean(rates) > 0.985


def test_what_one_clients_fixed_trees_gain_pays_for_nobody_elses_drafts() -> None:
    """Trees that one request asks for are no try of the policy's, whose own drafts do not pay here."""
    one = served(flat, 1, 0, truth=100.0)
    budget, reqs = one.budget, [running_request()]
    budget._for_drafts = 0.0
    for _ in range(20):
        budget.begin_fixed(reqs, [5], 300.0, 5)
        tree = one.drafted(1, 5)
        path = AcceptedPath(torch.tensor([[0, 1]]), *(torch.tensor([value]) for value in (1, 2, 0, 0)))
        budget.end(RoundRecord.of(reqs, [5], tree, path))
        one.now += flat(1, 5)
    assert budget._for_drafts == 0.0


@pytest.mark.parametrize("lag", [0, 1])
def test_plain_decoding_that_was_measured_beside_a_neighbour_is_found_out(lag: int) -> None:
    """At start a neighbour made plain rounds twice as long, and had gone when trees were measured."""

    def cost(_requests: int, nodes: int) -> float:
        return 0.050 if nodes == 1 else 0.078 + 0.005 * nodes

    wrong = {(8, nodes, 0): cost(8, nodes) * (2.0 if nodes == 1 else 1.0) for nodes in WIDTHS}
    shares = []
    for seed in SEEDS:
        one = Served(AdaptiveBudget(WIDTHS, CostModel.of_cells(wrong), lag=lag), cost, seed=seed)
        reqs = [running_request() for _ in range(8)]
        one.rounds(12, reqs)
        assert share_of(one, lambda nodes: nodes > 1, 12) > 0.7
        one.rounds(150, reqs)
        shares.append(share_of(one, lambda nodes: nodes == 1, 60))
    assert fmean(shares) > 0.9


@pytest.mark.parametrize("lag", [0, 1])
def test_plain_decoding_that_a_file_has_four_times_too_dear_is_found_out(lag: int) -> None:
    """Drafts pay by more than three by that file, and take what it says, so that nothing else speaks against it."""

    def cost(_requests: int, nodes: int) -> float:
        return 0.050 if nodes == 1 else 0.078 + 0.005 * nodes

    wrong = {(8, nodes, 0): cost(8, nodes) * (4.0 if nodes == 1 else 1.0) for nodes in WIDTHS}
    shares = []
    for seed in SEEDS:
        one = Served(AdaptiveBudget(WIDTHS, CostModel.of_cells(wrong), lag=lag), cost, seed=seed)
        reqs = [running_request() for _ in range(8)]
        one.rounds(100, reqs)
        assert share_of(one, lambda nodes: nodes > 1, 100) == 1.0
        one.rounds(RARELY, reqs)
        one.rounds(200, reqs)
        shares.append(share_of(one, lambda nodes: nodes == 1, 200))
    assert fmean(shares) > 0.9


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(("nodes", "factor"), [(9, 1.3), (17, 0.75)])
def test_a_tree_whose_cost_is_known_wrongly_is_looked_at_again(nodes: int, factor: float, lag: int) -> None:
    """As often measured as a width may be, and wrong all the same: too dear it would never be served again."""

    def cost(_requests: int, width: int) -> float:
        return {1: 0.030, 2: 0.040, 3: 0.041, 5: 0.043, 9: 0.044, 17: 0.058}[width]

    offs, served_shares = [], []
    for seed in SEEDS:
        known = {(1, width, 0): cost(1, width) * (factor if width == nodes else 1.0) for width in WIDTHS}
        one = Served(AdaptiveBudget(WIDTHS, CostModel.of_cells(known), lag=lag), cost, seed=seed)
        one.rounds(1000, [running_request()])
        thought = one.budget.costs.seconds(1, 300, WIDTHS)
        right = np.array([cost(1, width) for width in WIDTHS])
        off = np.log(thought / right)
        offs.append(abs(off[WIDTHS.index(nodes)] - np.median(off)))
        served_shares.append(share_of(one, lambda width: width == nodes, 300))
    assert fmean(offs) < 0.5 * abs(np.log(factor))
    assert (fmean(served_shares) > 0.3) if factor > 1 else (fmean(served_shares) < 0.3)


def test_plain_rounds_of_two_lengths_are_not_looked_at_for_ever() -> None:
    """Every second one takes twice as long, so each is unexpected; drafts pay all the same."""
    turns = [0]

    def cost(_requests: int, nodes: int) -> float:
        turns[0] += nodes == 1
        return flat(1, nodes) * (2.0 if nodes == 1 and turns[0] % 2 else 1.0)

    one = served(cost, 1, 0, num_rounds=100)
    one.rounds(500, [running_request()])
    assert share_of(one, lambda nodes: nodes == 1, 500) < 0.04


def test_where_a_draft_pays_by_far_plain_decoding_is_not_looked_at() -> None:
    one = served(flat, 1, 0, num_rounds=150, sureness=12.0)
    one.rounds(300, [running_request()])
    assert share_of(one, lambda nodes: nodes == 1, 300) == 0.0
    one.rounds(2 * RARELY, [running_request()])
    assert one.widths.count(1) - one.widths[:150].count(1) <= 2


def test_a_rest_between_rounds_is_told_to_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, rests = served(flat, 1, 0, num_rounds=20), []
    monkeypatch.setattr(one.budget.costs, "rest", rests.append)
    one.rounds(5, [running_request()])
    assert rests == []
    for _ in range(2):
        one.budget.interrupt()
        one.now += 10.0
    one.rounds(5, [running_request()])
    assert rests == [pytest.approx(20.0, abs=0.2)]


def test_a_pause_is_no_round_and_a_slower_machine_is_noticed() -> None:
    one, reqs = served(flat, 1, 0, num_rounds=60), [running_request()]
    before = one.budget.costs.seconds(1, 300, WIDTHS)
    spent = one.budget.totals.seconds
    one.now += 60.0
    one.round(reqs)
    one.round(reqs)
    assert one.budget.costs.seconds(1, 300, WIDTHS) == pytest.approx(before, rel=0.1)
    assert one.budget.totals.seconds < spent + 1.0
    one.seconds_of = lambda size, nodes: 100 * flat(size, nodes)
    one.rounds(40, reqs)
    assert one.budget.costs.seconds(1, 300, (1,))[0] > 1.0


def test_a_batch_that_wants_few_nodes_says_nothing_of_wider_trees() -> None:
    """Where trees are at hand on the host, too, no width counts as seen that the tree did not have."""
    budget = AdaptiveBudget(WIDTHS)
    one = Served(budget, flat)
    reqs = [running_request()]
    for _ in range(40):
        tree = one.drafted(1, 2)
        budget.begin(reqs, [2], 300.0, 2, narrows=True)
        budget.narrow(reqs, [2], host_trees(tree.logprobs, tree.parents, tree.depths))
        budget.end(None)
    assert budget._requests.usual.drafted[-1] > budget._requests.usual.drafted[1] + 0.3
    assert budget._requests.usual.seen == 2


def test_decisions_are_counted_and_named() -> None:
    totals = served(flat, 2, 0, num_rounds=200).budget.totals
    assert set(totals.rounds) <= {"plain", "plain (try)", "tree", "tree (try)"}
    assert sum(totals.rounds.values()) == 200
    assert totals.expected_tokens == pytest.approx(totals.tokens, rel=0.1)
    assert totals.expected_seconds == pytest.approx(totals.seconds, rel=0.1)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_server_that_knows_its_costs_still_looks_whether_texts_have_changed(lag: int) -> None:
    """From a file every width is known, so nothing is left to try but a draft now and then."""
    table = CostModel.from_json([[1, nodes, 0, flat(1, nodes)] for nodes in WIDTHS])
    one = Served(AdaptiveBudget(WIDTHS, table, lag=lag), flat, truth=100.0)
    reqs = [running_request()]
    one.rounds(300, reqs)
    assert share_of(one, lambda nodes: nodes == 1) > 0.9
    one.truth = 1.0
    one.rounds(400, reqs)
    assert share_of(one, lambda nodes: nodes > 5) > 0.9


@pytest.mark.parametrize("lag", [0, 1])
def test_a_slow_first_round_of_each_width_hides_no_cliff(lag: int) -> None:
    seen: set[int] = set()

    def cold(requests: int, nodes: int) -> float:
        factor = 1.0 if nodes in seen else 8.0
        seen.add(nodes)
        return factor * cliff(requests, nodes)

    one = served(cold, 1, lag, num_rounds=500)
    assert share_of(one, lambda nodes: nodes == 17) > 0.9


def test_requests_that_want_no_tree_say_nothing_of_the_others() -> None:
    """Seven of eight requests allow themselves the root alone; a new one without a limit is drafted for."""
    budget = AdaptiveBudget(WIDTHS)
    one = Served(budget, flat)
    reqs = [running_request() for _ in range(8)]
    for _ in range(40):
        tree = one.drafted(8, 17)
        budget.begin(reqs, [17, *[1] * 7], 300.0, 17, narrows=True)
        budget.narrow(reqs, [17, *[1] * 7], host_trees(tree.logprobs, tree.parents, tree.depths))
        budget.end(None)
    assert budget._requests.usual.drafted[-1] > 1.0


@pytest.mark.parametrize(("sureness", "best"), [(6.0, 9), (4.0, 5)], ids=["wide", "narrow"])
def test_where_a_tree_is_seen_no_wider_than_it_is_verified_the_best_width_is_found_all_the_same(
    sureness: float, best: int
) -> None:
    """Costs are known from a file, so nothing is tried for their sake; five nodes seem best until nine were seen."""
    times = {1: 0.020, 2: 0.024, 3: 0.024, 5: 0.025, 9: 0.032, 17: 0.052}
    known = CostModel.of_cells({(8, nodes, 0): spent for nodes, spent in times.items()})
    one = Served(AdaptiveBudget(WIDTHS, known, lag=1), lambda _, nodes: times[nodes], sureness=sureness)
    for _ in range(15):
        one.rounds(20, [running_request() for _ in range(8)])
    assert share_of(one, lambda nodes: nodes == best) > 0.75


def test_a_width_that_was_seen_once_is_not_hoped_for_again() -> None:
    record = RequestRecord(np.zeros(4))
    record.follow(np.array([0.0, 0.8, 1.2, 1.2]), 3, np.array([1, 2, 3, 5]))
    # A part of the way: 0.8 a node, then 0.4, and half of that for each of two more.
    assert record.drafted.tolist() == pytest.approx([0.0, PACE * 0.8, PACE * 1.2, PACE * (1.2 + 2 * 0.2)])
    reached = PACE * np.array([0.0, 0.8, 1.2, 1.2])
    record.follow(reached, 4, np.array([1, 2, 3, 5]))
    assert record.seen == 4
    before = record.drafted.copy()
    record.follow(reached, 3, np.array([1, 2, 3, 5]))
    assert record.drafted.tolist() == pytest.approx(before.tolist()), "it keeps its distance"


def test_of_one_width_the_next_is_hoped_to_bring_half_a_node_and_no_tree_promises_nothing() -> None:
    record = RequestRecord(np.zeros(3))
    record.follow(np.array([0.0, 0.8, 0.8]), 2, np.array([1, 2, 3]))
    assert record.drafted.tolist() == pytest.approx([0.0, PACE * 0.8, PACE * (0.8 + 0.4)])
    empty = RequestRecord(np.zeros(4))
    empty.follow(np.zeros(4), 3, np.array([1, 2, 3, 5]))
    assert empty.drafted.tolist() == [0.0] * 4


def test_rounds_at_a_fixed_budget_save_nothing_up_for_tries() -> None:
    one, reqs = served(flat, 1, 0), [running_request()]
    budget = one.budget
    budget._saved_for_best = budget._saved_for_others = 0.0
    for _ in range(200):
        budget.begin_fixed(reqs, [5], 300.0, 5)
        one.now += flat(1, 5)
        budget.end(None)
    assert (budget._saved_for_best, budget._saved_for_others) == (0.0, 0.0)
    one.rounds(1, reqs)
    assert budget._saved_for_best > 0


def test_where_drafts_pay_one_round_of_three_teaches_what_to_believe(monkeypatch: pytest.MonkeyPatch) -> None:
    one, reqs = served(flat, 1, 0), [running_request()]
    taught: list[int] = []
    monkeypatch.setattr(one.budget.probs, "learn", lambda *_: taught.append(len(one.widths)))
    one.rounds(90, reqs)
    drafted = sum(width > 1 for width in one.widths[-90:])
    assert drafted / 3 - 2 <= len(taught) <= drafted / 3 + 2
    # Where none pays, few are drafted, and each teaches.
    one.truth = 100.0
    one.rounds(300, reqs)
    taught.clear()
    one.rounds(200, reqs)
    drafted = sum(width > 1 for width in one.widths[-200:])
    assert 0 < drafted < 60
    assert len(taught) >= drafted - 1


@pytest.mark.parametrize(("num_trees", "num_nodes"), [(3, 9), (1, 9), (2, 17), (2, 1)])
def test_trees_of_other_sizes_than_the_rounds_are_refused(num_trees: int, num_nodes: int) -> None:
    """What looks at them looks at no bounds."""
    budget = AdaptiveBudget(WIDTHS)
    one, reqs = Served(budget, flat), [running_request() for _ in range(2)]
    budget.begin(reqs, [9, 9], 300.0, 9, narrows=True)
    tree = one.drafted(num_trees, num_nodes)
    with pytest.raises(ValueError, match=rf"trees must be \[2, 2 to 9\], got \[{num_trees}, {num_nodes}\]"):
        budget.narrow(reqs, [9, 9], host_trees(tree.logprobs, tree.parents, tree.depths))


def test_each_request_has_a_limit() -> None:
    with pytest.raises(ValueError, match="each of 2 requests must have a limit of nodes, got 1 limits"):
        AdaptiveBudget(WIDTHS).begin([running_request() for _ in range(2)], [9], 300.0, 9, narrows=True)


def test_what_a_request_kept_is_learned_although_the_batch_has_changed() -> None:
    """A round behind the device, another batch may be asked about before."""
    budget = AdaptiveBudget(WIDTHS, lag=1)
    one, reqs = Served(budget, flat), [running_request() for _ in range(2)]
    tree = one.drafted(2, 17)
    budget.begin(reqs, [17, 17], 300.0, 17, narrows=True)
    num_nodes = budget.narrow(reqs, [17, 17], host_trees(tree.logprobs, tree.parents, tree.depths))
    budget.end(RoundRecord.of(reqs, [17, 17], None, one.accepted(tree.first_nodes(num_nodes))))
    for _ in range(3):
        budget.begin(reqs[::-1], [17, 17], 300.0, 17, narrows=False)
        budget.end(None)
    assert all(budget._requests[req].row[PROMISED] > 0 for req in reqs)
