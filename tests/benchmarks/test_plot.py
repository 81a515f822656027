"""Pictures of result lines: nothing measured is left out of them, and one command draws every kind."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from benchmarks import plot
from benchmarks.acceptance_report import with_intervals
from benchmarks.harness.walks import read_walks
from benchmarks.pictures import curves, decode, style
from benchmarks.serving_report import result_lines
from benchmarks.surrogate import surrogate_record
from tests.benchmarks.made_up_traces import write_trace
from tests.benchmarks.test_serving import turns

ORIGIN = {
    "gpu": None,
    "cpu_model": "a processor",
    "cpu_cores": 2,
    "git_sha": "0123456789abcdef",
    "dirty": False,
    "packages": {"sglang": "0.5.23"},
    "date": "2026-11-27T00:00:00+00:00",
}


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures instead of files."""
    figures: list[Any] = []
    monkeypatch.setattr(style, "finish", lambda figure, *_rest, **_named: figures.append(figure))
    return figures


def line(system: str, rate: float, up_together: list[str], size: int = 1, **more: Any) -> dict[str, Any]:
    turn = {"median": rate / 10, "min": rate / 10 - 0.1, "max": rate / 10 + 0.1, "n": 3}
    return {
        "kind": "decode",
        "system": system,
        "dataset": "gsm8k",
        "batch_size": size,
        "up_together": up_together,
        "decode_tokens_per_s": {"median": rate, "min": rate - 1, "max": rate + 1, "n": 3},
        "ratio_to_plain": rate / 10,
        "ratios_of_turns": {"plain": turn, "chain": None},
        "accept_length": None if system == "plain" else {"median": 2.0, "min": 2.0, "max": 2.0, "n": 3},
        "stages": None,
        "provenance": ORIGIN,
        **more,
    }


def curve_of(axes: Any, label: str) -> list[tuple[float, float]]:
    (found,) = [one for one in axes.containers if one.get_label() == label]
    return [(float(x), round(float(y), 6)) for x, y in zip(*found.lines[0].get_data(), strict=True)]


def test_each_group_of_servers_keeps_its_own_baseline(tmp_path: Path, finished: list[Any]) -> None:
    wide, narrow = ["plain", "ddtree-16"], ["plain", "ddtree-8"]
    lines = [
        line("plain", 20, wide),
        line("ddtree-16", 25, wide),
        line("plain", 10, narrow),
        line("ddtree-8", 12, narrow),
    ]
    decode.plot_field(lines, "decode_tokens_per_s", "tokens/s", tmp_path / "speed.png")
    (figure,) = finished
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    plt.close(figure)
    assert heights == [[10, 12], [20, 25]]


def test_budget_curve_has_every_budget_and_the_chain_of_all_groups(tmp_path: Path, finished: list[Any]) -> None:
    lines = []
    for budget, rate in ((1, 11.0), (8, 15.0), (64, 9.0)):
        group = ["plain", "dflash", f"ddtree-{budget}"]
        lines += [
            line("plain", 10, group),
            line("dflash", 12 + budget / 8, group),
            line(f"ddtree-{budget}", rate, group),
        ]
    assert [path.name for path in curves.draw(lines, tmp_path / "sweep")] == ["sweep-budgets.png"]
    speed, accepted = finished[0].axes
    assert curve_of(speed, "DDTREE, gsm8k") == [(1, 1.1), (8, 1.5), (64, 0.9)]
    assert curve_of(accepted, "DDTREE, gsm8k") == [(1, 2.0), (8, 2.0), (64, 2.0)]
    chain = [one.get_ydata()[0] for one in speed.lines if one.get_linestyle() == "--" and len(one.get_ydata())]
    assert chain == [pytest.approx(1.3)], "the median of three groups"
    plt.close(finished[0])


def test_rounds_without_a_tree_have_a_place_on_the_axis_of_budgets(tmp_path: Path, finished: list[Any]) -> None:
    """A server that adapts is asked for 0 nodes, too; 0 has no logarithm, and all others were drawn in one place."""
    budgets = (0, 1, 2, 4, 64)
    group = ["plain", "dflash", *(f"ddtree-{budget}" for budget in budgets)]
    lines = [line(system, 10, group) for system in group]
    curves.plot_budgets(lines, tmp_path / "sweep.png")
    axes = finished[0].axes[0]
    places = [axes.transData.transform((budget, 1.0))[0] for budget in budgets]
    steps = [(after - before) / (places[-1] - places[0]) for before, after in pairwise(places)]
    assert steps == pytest.approx([1 / 7, 1 / 7, 1 / 7, 4 / 7], abs=0.01)
    plt.close(finished[0])


def test_course_over_requests_has_plain_as_one(tmp_path: Path, finished: list[Any]) -> None:
    group = ["plain", "dflash", "ddtree-8", "ddtree-adaptive-16"]
    rates = {"plain": 10.0, "dflash": 9.0, "ddtree-8": 14.0, "ddtree-adaptive-16": 15.0}
    lines = [line(system, rates[system] - size / 8, group, size) for size in (1, 8, 32) for system in group]
    assert [path.name for path in curves.draw(lines, tmp_path / "load")] == ["load-requests.png"]
    (axes,) = finished[0].axes
    assert curve_of(axes, "adaptive, at most 16 nodes") == [(1, 1.4875), (8, 1.4), (32, 1.1)]
    assert len(axes.containers) == 3
    plt.close(finished[0])


def test_of_many_loads_bars_show_the_ends(tmp_path: Path, finished: list[Any]) -> None:
    group = ["plain", "ddtree-8"]
    lines = [line(system, 10, group, size) for size in (1, 2, 8, 32) for system in group]
    decode.draw(lines, tmp_path / "load")
    assert [axes.get_title() for axes in finished[0].axes] == ["batch size 1", "batch size 32"]
    for figure in finished:
        plt.close(figure)


def test_lines_of_an_older_build_are_drawn_without_their_turns() -> None:
    old = line("ddtree-8", 14, ["plain", "ddtree-8"])
    del old["ratios_of_turns"]
    assert curves.ratio_to_plain([old]) == {"median": 1.4, "min": 1.4, "max": 1.4}
    assert curves.ratio_to_plain([{**old, "ratio_to_plain": None}]) is None


def test_systems_stand_in_one_order() -> None:
    names = ["ddtree-adaptive-8", "ddtree-16", "dflash", "ddtree-4", "plain"]
    ordered = ["plain", "dflash", "ddtree-4", "ddtree-16", "ddtree-adaptive-8"]
    assert sorted(names, key=style.system_order) == ordered
    assert len({str(style.system_colour(name, ordered)) for name in ordered}) == 5


def test_a_trees_twin_stands_beside_it_and_says_what_it_has() -> None:
    names = ["ddtree-adaptive-16-env", "ddtree-8-other", "ddtree-adaptive-16", "ddtree-8", "plain"]
    ordered = ["plain", "ddtree-8", "ddtree-8-other", "ddtree-adaptive-16", "ddtree-adaptive-16-env"]
    assert sorted(names, key=style.system_order) == ordered
    assert style.system_label("ddtree-8-other") == "DDTREE, 8 nodes, another drafter"
    assert style.system_label("ddtree-adaptive-16-env") == "adaptive, at most 16 nodes, another environment"
    assert style.system_label("ddtree-adaptive-16") == "adaptive, at most 16 nodes"
    assert len({str(style.system_colour(name, ordered)) for name in ordered}) == 5


def acceptance_lines(trace: Path) -> list[dict[str, Any]]:
    counts = {"plain": [], "dflash": [3, 1], "ddtree-4": [1, 2, 1]}
    lines = [
        {
            "kind": "acceptance",
            "system": system,
            "dataset": "gsm8k",
            "prompts": [
                {"key": str(i), "answer": "a", "tokens": 8, "rounds": sum(histogram) + i, "histogram": histogram}
                for i in range(2 if histogram else 0, 4)
            ],
        }
        for system, histogram in counts.items()
    ]
    lines[0]["prompts"] = [{"key": str(i), "answer": "a", "tokens": 8, "rounds": 0, "histogram": []} for i in (2, 3)]
    surrogate = {**surrogate_record(read_walks([trace])), "system": "ddtree-4"}
    return [{**one, "provenance": ORIGIN} for one in [*with_intervals(lines), surrogate]]


def test_one_command_draws_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = ["plain", "dflash", "ddtree-4"]
    files = {
        "decode": [line(system, 10, group, dtype=dtype) for dtype in ("float32", "bfloat16") for system in group],
        "acceptance": acceptance_lines(write_trace(tmp_path / "trace", 3, 12, 6)),
        "serving": result_lines(turns(plain=(10.0, 12.0), ddtree_4=(8.0, 9.0)), {}, ORIGIN),
    }
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert plot.main([str(tmp_path / f"{name}.jsonl") for name in files]) == 0
    drawn = [Path(path) for path in capsys.readouterr().out.splitlines()]
    assert [path.name for path in drawn] == [
        *(f"decode-{dtype}-{kind}.png" for dtype in ("float32", "bfloat16") for kind in ("speed", "ratio", "accept")),
        "acceptance-histogram.png",
        "acceptance-ddtree-4-surrogate.png",
        "serving-latency.png",
    ]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    assert not plt.get_fignums(), "figures are closed"


def test_each_dtype_is_drawn_of_its_own_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, list[str]]] = []

    def draw(lines: style.Lines, stem: Path) -> list[Path]:
        drawn.append((stem.name, [one["dtype"] for one in lines]))
        return [stem]

    monkeypatch.setitem(plot.DRAWERS, "decode", (draw,))
    file = tmp_path / "both.jsonl"
    lines = [line("plain", 10, ["plain"], dtype=dtype) for dtype in ("float32", "bfloat16", "float32")]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    plot.draw_file(file)
    assert drawn == [("both-float32", ["float32"] * 2), ("both-bfloat16", ["bfloat16"])]
    file.write_text(json.dumps(lines[0]) + "\n")
    plot.draw_file(file)
    assert drawn[-1] == ("both", ["float32"])


def test_a_file_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert plot.main([str(tmp_path / "empty.jsonl")]) == 1
    assert "holds no result line of decode, acceptance, surrogate, serving" in capsys.readouterr().err
    (tmp_path / "faults.jsonl").write_text(json.dumps({"kind": "fault"}) + "\n")
    assert plot.main([str(tmp_path / "faults.jsonl")]) == 1
