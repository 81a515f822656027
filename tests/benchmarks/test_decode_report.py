"""The arithmetic between measurements and published numbers."""

from __future__ import annotations

import json

import pytest

from benchmarks.decode_report import Measurement, result_lines, table
from benchmarks.stage_times import StageSummary
from deploy.local.client import Batch, Generation


def generation(num_tokens: int, decode_s: float, num_rounds: int = 0) -> Generation:
    return Generation(tuple(range(num_tokens)), 0.5, decode_s, num_rounds, "length")


def measurement(system: str, *generations: Generation, repeat: int = 0, wall_s: float = 10.0) -> Measurement:
    return Measurement(system, "gsm8k", 1, repeat, Batch(generations, wall_s), None, others_cpu_s=0.1)


def test_decode_rate_leaves_the_first_token_and_its_time_out() -> None:
    one = measurement("plain", generation(11, decode_s=2.0), generation(31, decode_s=3.0))
    assert one.decode_tokens_per_s == pytest.approx((10 + 30) / 5.0)
    assert one.output_tokens_per_s == pytest.approx(42 / 10.0)
    assert one.accept_length is None
    assert one.ms_per_round is None


def test_accept_length_weighs_requests_by_their_rounds() -> None:
    one = measurement("dflash", generation(40, 2.0, num_rounds=10), generation(20, 2.0, num_rounds=20))
    assert one.accept_length == pytest.approx(60 / 30)
    assert one.ms_per_round == pytest.approx(1e3 * 4.0 / 30)


def test_ratios_are_of_medians_within_dataset_and_batch_size() -> None:
    rates = {"plain": (10.0, 20.0, 12.0), "dflash": (24.0, 24.0, 24.0), "ddtree-8": (48.0, 6.0, 36.0)}
    measurements = [
        measurement(system, generation(13, decode_s=12 / rate, num_rounds=3), repeat=repeat)
        for system, values in rates.items()
        for repeat, rate in enumerate(values)
    ]
    lines = {line["system"]: line for line in result_lines(measurements, {"ddtree-8": 2}, {"git_sha": "abc"})}
    tree = lines["ddtree-8"]
    assert tree["decode_tokens_per_s"] == pytest.approx({"median": 36.0, "min": 6.0, "max": 48.0, "n": 3})
    assert tree["ratio_to_plain"] == pytest.approx(3.0)
    assert tree["ratio_to_chain"] == pytest.approx(1.5)
    assert tree["prompts_unlike_plain"] == 2
    assert lines["plain"]["prompts_unlike_plain"] == 0
    assert tree["provenance"] == {"git_sha": "abc"}
    json.dumps(list(lines.values()))


def test_missing_baseline_gives_no_ratio() -> None:
    (line,) = result_lines([measurement("ddtree-4", generation(5, 1.0, 2))], {}, {})
    assert line["ratio_to_plain"] is None
    assert line["ratio_to_chain"] is None


def test_table_shows_share_of_tree_work() -> None:
    stages = StageSummary(1, 4, 50.0, {"draft": 10.0, "verify": 38.0, "build": 2.0}, tree_share=0.04)
    one = Measurement("ddtree-4", "gsm8k", 1, 0, Batch((generation(5, 1.0, 2),), 2.0), stages, 0.0)
    assert "4.0 %" in table(result_lines([one], {}, {}))


def test_adaptive_stands_beside_the_best_other_of_its_own_turns() -> None:
    """The chain is best by its median, although plain decoding was faster in the last turn."""
    rates = {"plain": (10.0, 10.0, 40.0), "dflash": (20.0, 20.0, 20.0), "ddtree-adaptive-16": (22.0, 19.0, 18.0)}
    measurements = [
        measurement(system, generation(13, decode_s=12 / rate, num_rounds=3), repeat=repeat)
        for system, values in rates.items()
        for repeat, rate in enumerate(values)
    ]
    lines = result_lines(measurements, {}, {"settings": {"dtype": "float32"}})
    found = {line["system"]: line["best_other"] for line in lines}
    assert found["ddtree-adaptive-16"]["system"] == "dflash"
    assert found["ddtree-adaptive-16"]["median"] == pytest.approx(0.95)
    assert found["dflash"]["system"] == "ddtree-adaptive-16"
    shown = table(lines)
    assert "| 1 | gsm8k | float32 | dflash | 0.95 | 0.90-1.10 |" in shown
    assert shown.endswith("Least: 0.950 (gsm8k, requests at once: 1).")
    alone = result_lines([one for one in measurements if one.system == "plain"], {}, {})
    assert alone[0]["best_other"] is None
    assert "Adaptive" not in table(alone)


def test_ratios_of_turns_pair_each_turn_with_its_own_baseline() -> None:
    """A machine that slows down between turns changes both sides: the spread is of ratios, not of rates."""
    rates = {"plain": (10.0, 5.0), "dflash": (20.0, 15.0), "ddtree-8": (30.0, 20.0)}
    measurements = [
        measurement(system, generation(13, decode_s=12 / rate, num_rounds=3), repeat=repeat)
        for system, values in rates.items()
        for repeat, rate in enumerate(values)
    ]
    lines = {line["system"]: line["ratios_of_turns"] for line in result_lines(measurements, {}, {})}
    assert lines["ddtree-8"]["plain"] == pytest.approx({"median": 3.5, "min": 3.0, "max": 4.0, "n": 2})
    assert lines["ddtree-8"]["chain"] == pytest.approx({"median": 17 / 12, "min": 4 / 3, "max": 1.5, "n": 2})
    alone = result_lines([one for one in measurements if one.system == "plain"], {}, {})
    assert alone[0]["ratios_of_turns"]["chain"] is None
