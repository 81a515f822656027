"""Recording for a replay, the made-up pair, and the predictions' tables, without a server."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import correction_gain, first_drop, forest_gain, predict, record_replay, replay_check, replay_rates
from benchmarks.harness.made_up_pair import CHAT, MATHS, Drafter
from ddtree_sglang.calibration.table import CostTable
from ddtree_sglang.simulator.costs import table_of_decode
from ddtree_sglang.simulator.recording import Answer, Tree, load_answers
from ddtree_sglang.simulator.systems import FixedTree, Plain
from deploy.local.server_process import ServerError
from tests.simulator.cases import Linear, answer
from tests.viewer.cases import a_round


def test_recorded_rounds_are_cut_to_the_recorded_requests_and_read_again(tmp_path: Path) -> None:
    lines = [
        a_round(0, 2, request_ids=["companion", "mine"], server={"model": "m"}, depths=[[0] * 7] * 2),
        a_round(1, 1, request_ids=["companion"]),
        a_round(2, 1, request_ids=["mine"], num_nodes=3),
        a_round(3, 1, request_ids=["mine"], prefix_lens=[13]),
    ]
    kept = record_replay.kept_rounds(lines, frozenset(["mine"]), 7)
    assert [one["round"] for one in kept] == [0, 3]
    assert kept[0]["request_ids"] == ["mine"]
    assert kept[0]["batch_size"] == 1
    assert len(kept[0]["path_probs"]) == 1
    record_replay.save(kept, tmp_path / "one.jsonl.gz")
    with gzip.open(tmp_path / "one.jsonl.gz", "rt") as lines_again:
        assert "packages" in json.loads(lines_again.readline())["server"]
    (one,) = load_answers(tmp_path / "one.jsonl.gz")
    assert (one.name, one.start, one.end) == ("mine", 10, 16)


def test_nothing_is_recorded_before_the_companion_has_trees_drafted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose first request takes its time: without a companion, recorded requests have no trees."""
    trace, asked = tmp_path / "trace.jsonl", list[str]()
    runs = threading.Event()

    def post(_url: str, path: str, body: dict[str, Any]) -> None:
        if path == "/abort_request":
            runs.set()
        elif body["rid"] == record_replay.COMPANION:
            time.sleep(0.3)
            trace.write_text(json.dumps({"request_ids": [record_replay.COMPANION]}) + "\n")
            asked.append("companion runs")
            runs.wait(10)
        else:
            asked.extend(body["rid"])

    monkeypatch.setattr(record_replay, "post", post)
    server = SimpleNamespace(url="", trace_path=trace)
    record_replay.record_wave(server, ["one", "two"], [[1], [2]], 4)
    assert asked == ["companion runs", "one", "two"]
    monkeypatch.setattr(record_replay, "COMPANION_S", 0.1)
    runs.clear()
    with pytest.raises(ServerError, match=r"served within 0\.1 s"):
        record_replay.record_wave(server, ["three"], [[3]], 4)
    assert "three" not in asked


def test_texts_of_more_requests_than_servers_know_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The companion is the eighth of them."""
    monkeypatch.setattr(record_replay, "prepare_pair", lambda *_: pytest.skip("asked for the pair"))
    with pytest.raises(ServerError, match=r"at most 7 requests .* got 8"):
        record_replay.run(record_replay.parse_args(["--ngrams"]))
    for few in (["--ngrams", "--at-once", "7"], ["--at-once", "8"]):
        with pytest.raises(pytest.skip.Exception, match="asked for the pair"):
            record_replay.run(record_replay.parse_args(few))


def test_a_made_up_drafter_is_as_good_as_its_own_word() -> None:
    """The tokens that its trees bring are the sum of their path probabilities, give or take the draw."""
    drafter = Drafter("test", block_size=5, steepness=0.8)
    answers = drafter.answers(2, 1500, 17)
    for num_nodes in (3, 17):
        trees = [tree for one in answers for at, tree in one.trees.items() if at + 5 < one.end]
        said = np.mean([sum(tree.path_probs[1:num_nodes]) for tree in trees])
        came = np.mean([len(tree.accepted(num_nodes)) - 1 for tree in trees])
        assert came == pytest.approx(said, rel=0.05)
    assert drafter.answers(1, 20, 5)[0].trees == drafter.answers(1, 20, 5)[0].trees


def test_the_made_up_pairs_accept_what_was_published() -> None:
    """The chain's as it was tuned; the trees', which were not, within a tenth."""
    for drafter, tokens, of_tree in ((MATHS, 7.79, 8.61), (CHAT, 4.28, None)):
        trees = [tree for one in drafter.answers(4, 600, 17) for at, tree in one.trees.items() if at + 16 < one.end]
        assert np.mean([tree.accepted_of_chain(16)[0] + 1 for tree in trees]) == pytest.approx(tokens, rel=0.05)
        if of_tree is not None:
            assert np.mean([len(tree.accepted(17)) for tree in trees]) == pytest.approx(of_tree, rel=0.1)


def test_the_prediction_stands_beside_what_was_measured() -> None:
    points = {(one["batch_size"], one["num_nodes"]): one for one in predict.compared()}
    assert points.keys() == {(size, nodes) for size in (1, 8, 32) for nodes in (1, 16, 17)}
    assert points[32, 17]["measured_steps"] == pytest.approx(3.73, abs=0.01)
    assert points[1, 16]["measured_steps"] == pytest.approx(1.27, abs=0.01)


def test_ratios_of_waves_are_compared() -> None:
    answers = [answer(("spine", "none", "none", "none"), name=name) for name in ("a-0", "a-1")]
    args = SimpleNamespace(batch_sizes=[1, 2], waves=1, block=4, budget=6, repeats=2)
    table = CostTable({(0, size, nodes): 1 + 0.1 * size * nodes for size in (1, 2) for nodes in (1, 4, 6)})
    # Four tokens: plain decoding takes four rounds, a tree of 5 besides the root one of twice the time at most.
    spent = {("plain", 1): [4.4, 4.0], ("tree 5", 1): [2.2, 2.5]}
    plain, tree = replay_check.result_lines(spent, table, answers, args)  # type: ignore[arg-type]
    assert (plain["measured_ratio"], plain["predicted_ratio"], plain["error"]) == (1.0, 1.0, 0.0)
    assert plain["predicted_s"] == pytest.approx(3 * 4 * 1.1), "three waves of one request"
    assert tree["measured_ratio"] == pytest.approx((2.0 + 1.6) / 2)
    assert tree["predicted_ratio"] == pytest.approx(4 * 1.1 / 1.6)
    assert tree["error"] == pytest.approx(4 * 1.1 / 1.6 / 1.8 - 1)
    assert "| 1 | tree 5 | 1.800 | 2.750 | +52.8% |" in replay_check.table_text([plain, tree])


def test_waves_have_other_prompts_as_long_as_there_are_some() -> None:
    assert replay_check.waves_of(["a", "b", "c"], 2, 2) == [["a", "b"], ["c", "a"]]
    assert replay_check.waves_of(["a", "b"], 1, 1) == [["a"], ["b"], ["a"]]


def test_systems_are_simulated_by_their_names() -> None:
    args = SimpleNamespace(batch_sizes=[1], block=4, budget=6)
    known = {one.name for one in replay_check.compared([5])}
    assert known == {"plain", "chain", "tree 5", "adaptive"}
    answers = [answer(("none",) * 8)]
    made = {name: replay_check.simulated(name, args, Linear(), answers) for name in known}  # type: ignore[arg-type]
    assert {name: one.name for name, one in made.items()} == {name: name for name in known}
    assert isinstance(made["plain"], Plain)
    assert isinstance(made["tree 5"], FixedTree)


def test_rates_of_a_run_are_replayed_from_its_own_costs() -> None:
    def line(system: str, dataset: str, ms: float, ratio: float) -> dict[str, Any]:
        spread = {"median": 3.1}
        facts = {"system": system, "dataset": dataset, "batch_size": 1, "num_prompts": 1, "num_tokens": 9}
        rates = {"decode_tokens_per_s": {"median": 1e3 / ms}, "ms_per_round": {"median": ms}}
        return {**facts, **rates, "accept_length": spread, "ratio_to_plain": ratio}

    lines = [line("plain", "a", 90, 1.0), line("ddtree-5", "a", 180, 1.25), line("ddtree-adaptive-5", "a", 1, 9.0)]
    lines += [line("plain", "b", 110, 1.0), line("ddtree-5", "b", 220, 1.0)]
    answers = [answer(("spine", "none", "none", "none", "sibling", "none", "none", "none"), name="a-0")]
    rows = list(replay_rates.compared(lines, answers, table_of_decode(lines, 4), 4, 9))
    together = {"up_together": ["plain", "ddtree-0", "ddtree-5", "ddtree-adaptive-5"]}
    asked = [{**one, **together} for one in [*lines, line("ddtree-0", "a", 95, 1.0)]]
    assert table_of_decode(asked, 4).seconds.keys() == {(0, 1, 1)}
    of_asked = table_of_decode(asked, 4, asked=True)
    assert list(replay_rates.compared(asked, answers, of_asked, 4, 9)) == rows
    # Eight tokens after the first in three rounds, each twice plain decoding's 100 ms.
    assert rows == [["1", "a", "ddtree-5", "1 of 1", "3.10", "3.00", "1.250", "1.333", "+6.7%"]]


def test_a_stop_at_the_first_drop_misses_what_lies_behind_a_cliff() -> None:
    rates = np.array([1.0, 2.0, 1.5, 3.0])
    assert first_drop.first_drop(rates, np.ones(4)) == 1
    assert first_drop.first_drop(np.array([1.0, 2.0, 3.0]), np.ones(3)) == 2
    answers = load_answers(Path(first_drop.REPO) / "benchmarks/results/replay-20261127.jsonl.gz")[:4]
    found = first_drop.compared(answers, first_drop.CURVES["a cliff"], 1)
    assert found["best"] > 1.03 * found["first drop"]


def test_orders_of_answers_tell_a_rules_gain_from_luck(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(first_drop, "ROUNDS", 60)
    monkeypatch.setattr(first_drop, "CURVES", {"convex": first_drop.CURVES["convex"]})
    asked: list[list[str]] = []
    compared = first_drop.compared

    def seen(answers: Any, costs: Any, requests: int) -> dict[str, float]:
        asked.append([one.name for one in answers])
        return compared(answers, costs, requests)

    monkeypatch.setattr(first_drop, "compared", seen)
    output = tmp_path / "lines.jsonl"
    flags = ["--requests", "2", "--output", str(output)]
    assert first_drop.main([*flags, "--orders", "3"]) == 0
    recorded = [one.name for one in load_answers(Path(first_drop.REPO) / "benchmarks/results/replay-20261127.jsonl.gz")]
    assert asked[0] == recorded
    assert len({tuple(one) for one in asked}) == 3
    assert {tuple(sorted(one)) for one in asked} == {tuple(sorted(recorded))}
    lines = [json.loads(line) for line in output.read_text().splitlines()][1:]
    assert [line["order"] for line in lines] == [0, 1, 2]
    ratios = [line["best"] / line["first drop"] for line in lines]
    shown = capsys.readouterr().out
    assert f"{sum(ratios) / 3:.3f}" in shown
    assert f"{min(ratios):.3f} to {max(ratios):.3f}" in shown
    assert first_drop.spread([1.2]) == ["1.200", "-", "1.200 to 1.200"]
    assert first_drop.main([*flags, "--orders", "0"]) == 1
    assert "--orders must be 1 or more, got 0" in capsys.readouterr().err


def test_a_drafter_that_is_too_sure_is_not_believed_once_it_is_corrected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says 0.9 of each token and is right every eighth time: plain decoding is best, and its word says a tree."""
    monkeypatch.setattr(first_drop, "ROUNDS", 400)
    monkeypatch.setattr(first_drop, "CURVES", {"dear": first_drop.Curve(lambda _, nodes: 0.02 + 0.005 * (nodes > 1))})
    right, wrong = (Tree((-1, 0), (0, 1), (1.0, 0.9), path, (0, 1), 2) for path in ((0, 1), (0,)))
    trees = {position: wrong if position % 8 else right for position in range(400)}
    monkeypatch.setattr(first_drop, "load_answers", lambda _: [Answer("a", 0, 400, trees)])
    output = tmp_path / "lines.jsonl"
    assert correction_gain.main(["--requests", "1", "--orders", "2", "--output", str(output)]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()][1:]
    drafted = {line["belief"]: 1 - line["widths"].get("1", 0) / sum(line["widths"].values()) for line in lines}
    assert len(lines) == 2 * len(drafted)
    assert drafted["as said"] > 0.9 > 0.3 > drafted["corrected"]
    assert "as said" in capsys.readouterr().out


def test_a_forest_gains_what_its_forwards_do_not_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest_gain, "ROUNDS", 60)
    answers = load_answers(Path(first_drop.REPO) / "benchmarks/results/replay-20261127.jsonl.gz")
    costs = first_drop.CURVES["convex"]
    found = {name: forest_gain.rate(answers, way, costs, 4) for name, way in forest_gain.WAYS.items()}
    rates = {name: one["tokens_per_s"] for name, one in found.items()}
    assert rates["ragged"] > rates["one width"] > rates["padded"]
    assert found["one width"]["padding"] == found["ragged"]["padding"] == 0 < found["padded"]["padding"]


def test_two_groups_pay_where_half_the_requests_want_trees_and_rows_are_dear() -> None:
    probs = np.zeros((8, forest_gain.WIDTHS[-1]))
    probs[:, 0], probs[::2, 1:9] = 1.0, 0.9
    asked = forest_gain.Asked(probs, 1.0, lambda size, width: 0.05 + 0.010 * size * width)
    assert forest_gain.one_width(asked).shares.tolist() == [1] * 8
    grouped = forest_gain.two_groups(asked)
    assert grouped.shares.tolist() == [9, 1] * 4
    assert grouped.seconds == pytest.approx(0.05 + 0.04 + 0.05 + 0.36)
    assert forest_gain.ragged(asked).rate > grouped.rate > forest_gain.one_width(asked).rate
