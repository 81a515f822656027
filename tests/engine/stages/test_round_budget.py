"""What the worker asks of a policy: a fixed one answers at once, the adaptive one by its first rank."""

from __future__ import annotations

import itertools
import json
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.core.acceptance import walk_tree
from ddtree_sglang.engine.stages import round_budget
from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
from ddtree_sglang.engine.stages.cost_file import CostFile
from ddtree_sglang.engine.stages.round_budget import COST_FACTS, AdaptiveRounds, RoundBudget, make_round_budget
from ddtree_sglang.engine.stages.round_ends import BatchEnds
from ddtree_sglang.engine.stages.round_times import RoundTimes
from tests.core.tree_cases import build, random_candidates
from tests.engine.stages.served_rounds import running_request

pytestmark = pytest.mark.sglang

NODES = 9
POLICY = BudgetPolicy.adaptive(NODES, any_width=True)
LENS = torch.tensor([40, 60])
ADAPTIVE = DDTreeConfig(policy="adaptive")


def parallel(monkeypatch: pytest.MonkeyPatch, rank: int = 0, size: int = 1, group: Any = None) -> None:
    fake = SimpleNamespace(tp_rank=rank, tp_size=size, tp_group=SimpleNamespace(cpu_group=group))
    monkeypatch.setattr(round_budget, "get_parallel", lambda: fake)


def batch_of_two(*, has_grammar: bool = False) -> Any:
    reqs = [running_request(), running_request()]
    info = SimpleNamespace(has_custom_logit_processor=False)
    for req in reqs:
        req.return_sampling_mask = False
    return SimpleNamespace(reqs=reqs, has_grammar=has_grammar, after_idle_gap=False, sampling_info=info)


def ends_of(*limits: int, adapts: bool = True, learns: bool = True) -> Any:
    return BatchEnds(None, limits, adapts, learns)  # type: ignore[arg-type]


def rounds(lag: int = 0) -> AdaptiveRounds:
    return AdaptiveRounds(POLICY, CostFile(None, {}), lag=lag)


def play(one: AdaptiveRounds, batch: Any, ends: Any) -> int:
    """A round whose targets accept nothing; its nodes."""
    num_nodes = one.begin(batch, ends, LENS)
    tree = build(random_candidates(batch_size=2, depth=4, vocab=12, num_candidates=8, seed=0), num_nodes)
    if num_nodes > 1 and one.cut is not None:
        tree = tree.first_nodes(one.cut(tree))
    one.end(tree, walk_tree(tree, torch.full(tree.token_ids.shape, -7), 5))
    return tree.num_nodes


def test_a_fixed_budget_asks_nobody() -> None:
    one = make_round_budget(BudgetPolicy.fixed(NODES), DDTreeConfig(policy="fixed"), None, ())
    assert type(one) is RoundBudget
    assert one.begin(batch_of_two(), ends_of(NODES, NODES), LENS) == NODES
    assert (one.cut, one.facts(), one.totals) == (None, {}, None)


def test_under_dp_attention_all_groups_requests_count_and_no_groups_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_budget, "attends_in_groups", lambda: True)
    one = RoundBudget(BudgetPolicy.by_load(NODES, 18))
    batch = batch_of_two()
    for requests, num_nodes in (([2, 0], NODES), ([2, 2], 3), ([2, 7], 2), ([2, 90], 1)):
        batch.global_num_tokens = requests
        assert one.begin(batch, ends_of(2, 1), LENS) == num_nodes
        assert one.of_all_groups(batch) == num_nodes


def test_the_adaptive_one_is_made_of_the_servers_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch)
    monkeypatch.setenv("DDTREE_COSTS", "")
    graphs = SimpleNamespace(decode=SimpleNamespace(backend="full", bs=[1, 2]))
    values = {**dict.fromkeys(COST_FACTS, "x"), "cuda_graph_config": graphs}
    for is_disabled, lag in ((True, 0), (False, 1)):
        one = make_round_budget(
            POLICY, ADAPTIVE, SimpleNamespace(**values | {"disable_overlap_schedule": is_disabled}), ()
        )
        assert isinstance(one, AdaptiveRounds)
        assert one.budget._lag == lag
        assert type(one.budget.times) is RoundTimes


def test_on_a_device_its_events_time_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch)
    monkeypatch.setenv("DDTREE_COSTS", "")
    monkeypatch.setattr(round_budget, "is_device_path", lambda: True)
    recorded: list[dict[str, Any]] = []

    class Event:
        def __init__(self, **options: Any) -> None:
            recorded.append(options)

        def record(self) -> None:
            pass

        def query(self) -> bool:
            return True

        def elapsed_time(self, _end_event: Any) -> float:
            return 125.0

    modules, module_of = {"cuda": SimpleNamespace(Event=Event)}, torch.get_device_module
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: modules.get(device) or module_of(device))
    graphs = SimpleNamespace(decode=SimpleNamespace(backend="full", bs=[1, 2]))
    values = {**dict.fromkeys(COST_FACTS, "x"), "cuda_graph_config": graphs, "device": "cuda"}
    arguments = SimpleNamespace(**values | {"disable_overlap_schedule": False})
    one = make_round_budget(POLICY, ADAPTIVE, arguments, ())
    assert isinstance(one, AdaptiveRounds)
    one.budget.times.clock = lambda: 0.0
    for _ in range(4):
        play(one, batch_of_two(), ends_of(4, 4, adapts=False))
    assert recorded == 4 * [{"enable_timing": True}]
    assert one.facts()["measured"]["ms"] == 125.0
    one.interrupt()
    play(one, batch_of_two(), ends_of(4, 4, adapts=False))
    assert "measured" not in one.facts(), "a prefill was run between"
    assert one._costs.path is None
    # A grammar's round waits for the one before it, so that its launching says nothing.
    waits = [one._budget_of(batch_of_two(has_grammar=has)).times._host_waits for has in (False, True)]  # type: ignore[attr-defined]
    assert waits == [False, True]


def test_rounds_are_narrowed_learned_from_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch)
    one, batch = rounds(), batch_of_two()
    widths = {play(one, batch, ends_of(NODES, NODES)) for _ in range(40)}
    assert widths <= set(POLICY.node_counts)
    assert len(widths) > 2
    assert one.budget.probs.table(), "what was accepted is learned"
    assert one.totals is not None
    assert sum(one.totals.rounds.values()) == 40
    assert set(one.facts()) == {"decision", "expected_tokens", "expected_ms", "measured"}


@pytest.mark.parametrize("lag", [0, 1])
def test_a_line_tells_what_an_earlier_round_took_and_was_expected_to(lag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch)
    monkeypatch.setattr(round_budget, "is_device_path", lambda: bool(lag))
    one, now = rounds(lag=lag), [0.0]
    one.budget.times.clock = lambda: now[0]
    lines = []
    for spent in (0.5, 0.25, 0.125, 0.0625):
        play(one, batch_of_two(), ends_of(4, 4, adapts=False))
        lines.append(one.facts())
        now[0] += spent
    # Where scheduling overlaps, what lies between two beginnings is the time of the last but one.
    told = [None, None if lag else 500.0, 250.0, 125.0]
    assert [line.get("measured", {}).get("ms") for line in lines] == told
    assert {line["measured"]["rounds_ago"] for line in lines if "measured" in line} == {1 + lag}
    assert lines[3]["measured"]["expected_ms"] == lines[2 - lag]["expected_ms"]
    one.interrupt()
    play(one, batch_of_two(), ends_of(4, 4, adapts=False))
    assert "measured" not in one.facts(), "a prefill was run between"


def test_what_a_server_asks_itself_is_timed_and_teaches_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch)
    one, batch = rounds(), batch_of_two()
    usual = one.budget.usual_drafted
    for _ in range(20):
        assert play(one, batch, ends_of(4, 4, adapts=False, learns=False)) == 4
    assert [cell[:2] for cell in one.costs()["cells"]] == [[2, 4]]
    assert one.costs()["nodes"] == [1, 2, 3, 4, 5, 6, 7, NODES]
    assert one.costs()["steps"] == [1, 2, 3, 5, NODES]
    assert one.budget.usual_drafted == usual
    assert one.budget.probs.table() == []
    assert one.totals is not None
    assert (one.totals.rounds, one.totals.tokens, one.totals.seconds) == ({}, 0.0, 0.0)
    play(one, batch, ends_of(4, 4, adapts=False))
    assert sum(one.totals.rounds.values()) == 1


@pytest.mark.parametrize("works", ["grammar", "processor", "sampling mask"])
def test_rounds_in_which_the_host_works_for_each_node_have_costs_of_their_own(
    works: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take longer by width. Otherwise each change between such and others would look like a noisy neighbour."""
    parallel(monkeypatch)
    one, now = rounds(), [0.0]
    plain, other = batch_of_two(), batch_of_two(has_grammar=works == "grammar")
    other.sampling_info.has_custom_logit_processor = works == "processor"
    other.reqs[0].return_sampling_mask = works == "sampling mask"
    for _ in range(60):
        for batch, seconds in ((plain, 0.02), (other, 0.05)):
            one._budget_of(batch).times.clock = lambda: now[0]
            for _ in range(4):
                play(one, batch, ends_of(4, 4, adapts=False))
                # The round that follows another kind's takes no time of it.
                now[0] += seconds
    ((_, _, _, ordinary),) = one.costs()["cells"]
    assert ordinary == pytest.approx(0.02, rel=0.01)
    ((_, _, _, slow),) = one._budget_of(other).costs.to_json()
    assert slow == pytest.approx(0.05, rel=0.05)
    assert one.totals is not None
    assert one.totals.rounds == {"tree": 480}, "both are told of together"


def test_the_time_of_an_idle_server_is_no_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that runs out of memory waits for requests to end, and goes on without a prefill."""
    parallel(monkeypatch)
    one, batch, now = rounds(), batch_of_two(), [0.0]
    one.budget.times.clock = lambda: now[0]
    for place in range(6):
        batch.after_idle_gap = place == 5
        play(one, batch, ends_of(4, 4, adapts=False))
        now[0] += 0.5 if place == 4 else 0.02
    ((_, _, _, seconds),) = one.costs()["cells"]
    assert seconds == pytest.approx(0.02, rel=0.01)


def test_under_a_grammar_the_width_is_chosen_before_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch)
    one, batch = rounds(), batch_of_two(has_grammar=True)
    for _ in range(10):
        num_nodes = one.begin(batch, ends_of(NODES, NODES), LENS)
        assert one.cut is None
        tree = build(random_candidates(batch_size=2, depth=4, vocab=12, num_candidates=8, seed=0), num_nodes)
        one.end(tree, walk_tree(tree, torch.full(tree.token_ids.shape, -7), 5))


def test_requests_of_small_trees_have_no_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel(monkeypatch)
    one, batch = rounds(), batch_of_two()
    assert max(play(one, batch, ends_of(3, 2)) for _ in range(30)) <= 3
    assert {play(one, batch, ends_of(1, 1)) for _ in range(5)} == {1}


def test_the_other_ranks_do_what_the_first_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with clocks and costs of their own, as threads over one mailbox."""
    told: list[int] = []
    turn = threading.Semaphore(0)

    def broadcast(tensor: torch.Tensor, *, src: int, group: str) -> None:
        assert (src, group) == (0, "ranks")
        if threading.current_thread().name == "first":
            told.append(int(tensor))
            turn.release()
        else:
            turn.acquire()
            tensor.fill_(told[len(heard)])
            heard.append(int(tensor))

    heard: list[int] = []
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    monkeypatch.setattr(torch.distributed, "get_global_rank", lambda _group, rank: rank)
    ranks = []
    for rank in range(2):
        parallel(monkeypatch, rank, 2, "ranks")
        ranks.append(rounds())
        # The machine's own, when busy, may make every other number of nodes look too dear to be tried.
        ranks[rank].budget.times = RoundTimes(clock=partial(next, itertools.count(step=0.01 + 0.02 * rank)))
    played: dict[str, list[int]] = {}

    def serve(name: str, one: AdaptiveRounds) -> None:
        batch = batch_of_two()
        played[name] = [play(one, batch, ends_of(NODES, NODES)) for _ in range(30)]

    threads = [
        threading.Thread(target=serve, args=(name, one), name=name, daemon=True)
        for name, one in zip(("first", "second"), ranks, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert played["first"] == played["second"]
    assert len(set(played["first"])) > 2
    assert told == heard
    assert ranks[1].totals is None
    assert ranks[1].budget.probs.table() == [], "only the first rank learns"


@pytest.mark.parametrize(("device", "lag"), [(False, 0), (True, 1)])
def test_requests_that_want_their_budget_as_it_is_get_it_in_each_round_and_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, device: bool, lag: int
) -> None:
    parallel(monkeypatch)
    monkeypatch.setattr(round_budget, "is_device_path", lambda: device)
    one, batch = rounds(lag), batch_of_two()
    for limit in (4, 1, NODES):
        assert {play(one, batch, ends_of(limit, limit, adapts=False)) for _ in range(12)} == {limit}
    assert {(size, nodes) for size, nodes, _, _ in one.costs()["cells"]} == {(2, 4), (2, 1), (2, NODES)}
    assert len({play(one, batch, ends_of(NODES, NODES)) for _ in range(400)}) > 1, "others are chosen for again"


def test_who_asks_is_told_what_rounds_cost_and_finds_it_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parallel(monkeypatch)
    one = AdaptiveRounds(POLICY, CostFile.of({"model_path": "m"}, tmp_path), lag=0)
    for _ in range(40):
        play(one, batch_of_two(), ends_of(NODES, NODES))
    told = one.costs()
    assert told["nodes"] == list(POLICY.node_counts)
    assert len(told["drafted"]) == len(told["nodes"])
    assert told["drafted"][0] == 0
    assert told["file"] == str(one._costs.path)
    assert json.loads(Path(told["file"]).read_text())["cells"] == told["cells"] != []
    assert AdaptiveRounds(POLICY, CostFile(None, {}), lag=0).costs()["file"] is None
    parallel(monkeypatch, rank=1)
    assert AdaptiveRounds(POLICY, CostFile(None, {}), lag=0).costs() == {}
    assert RoundBudget(POLICY).costs() == {}
