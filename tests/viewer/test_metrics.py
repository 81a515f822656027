"""A server's own words as values: Prometheus' text, and `/server_info`."""

from __future__ import annotations

import pytest

from ddtree_sglang.viewer.metrics import Sample, describe, parse_info, parse_metrics
from tests.viewer.cases import DATA

RECORDED = (DATA / "metrics.txt").read_text(encoding="utf-8")
"""Of a server with two requests at work, less what is not read."""


def test_recorded_metrics_are_read() -> None:
    assert parse_metrics(RECORDED) == Sample(
        running=2.0,
        waiting=0.0,
        tokens_per_s=14.842271681168713,
        accept_length=2.4761904761904763,
        most_nodes=17.0,
        kv_usage=0.01153564453125,
        finished_tokens=28.0,
        finished_rounds=11.0,
        finished_requests=2.0,
    )


def test_ranks_of_one_model_count_once_and_data_parallel_ranks_add_up() -> None:
    def gauge(name: str, value: float, tp: int, dp: int) -> str:
        return f'sglang:{name}{{dp_rank="{dp}",tp_rank="{tp}"}} {value}\n'

    text = "".join(
        gauge("num_running_reqs", 2 + dp, tp, dp) + gauge("spec_accept_length", 2.0 + dp, tp, dp)
        for tp in (0, 1)
        for dp in (0, 1)
    )
    found = parse_metrics(text)
    assert (found.running, found.accept_length) == (5.0, 2.5)


def test_first_rank_of_a_group_counts_under_attention_in_groups() -> None:
    text = "".join(f'sglang:num_running_reqs{{dp_rank="{tp // 2}",tp_rank="{tp}"}} {tp + 1}\n' for tp in range(4))
    assert parse_metrics(text).running == 1 + 3


def test_what_policy_adaptive_exports_is_read() -> None:
    names = ("nodes", "expected_tokens", "realised_tokens", "expected_round_seconds", "measured_round_seconds")
    found = parse_metrics("".join(f"ddtree_{name} {place + 1}\n" for place, name in enumerate(names)))
    told = (found.num_nodes, found.expected_tokens, found.realised_tokens, found.expected_s, found.measured_s)
    assert told == (1, 2, 3, 4, 5)


def test_every_series_of_this_project_is_shown_by_its_telling_labels() -> None:
    text = (
        "# TYPE ddtree_suspect_pair gauge\n"
        'ddtree_suspect_pair{model_name="m",tp_rank="0",pid="7"} 1\n'
        "# TYPE ddtree_rounds counter\n"
        'ddtree_rounds_total{model_name="m",decision="plain"} 5\n'
        'ddtree_rounds_total{model_name="m",decision="tree"} 7\n'
        "ddtree_rounds_created 1.7e9\n"
        "# TYPE ddtree_round_seconds histogram\n"
        'ddtree_round_seconds_bucket{le="1"} 3\nddtree_round_seconds_bucket{le="+Inf"} 3\n'
        "ddtree_round_seconds_count 3\nddtree_round_seconds_sum 1.5\n"
        "ddtree_undefined NaN\n"
    )
    assert parse_metrics(text).ours == {
        "ddtree_suspect_pair": 1.0,
        "ddtree_rounds_total (decision=plain)": 5.0,
        "ddtree_rounds_total (decision=tree)": 7.0,
        "ddtree_round_seconds_count": 3.0,
    }


def test_zeros_of_a_server_that_has_not_reported_are_no_values() -> None:
    found = parse_metrics(
        "sglang:spec_accept_length 0.0\nsglang:spec_num_draft_tokens 0.0\nsglang:gen_throughput NaN\n"
    )
    assert (found.accept_length, found.most_nodes, found.tokens_per_s) == (None, None, None)


@pytest.mark.parametrize("text", ["", "some_other_series 3\n"])
def test_metrics_of_something_else_are_an_empty_look(text: str) -> None:
    assert parse_metrics(text) == Sample()


@pytest.mark.parametrize("text", ["<html>not found</html>", '{"detail": "x"}', "sglang:a{ 3"])
def test_other_formats_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_metrics(text)


def test_server_info_tells_two_values_and_what_is_served() -> None:
    info = {
        "served_model_name": "/models/Qwen3-8B/",
        "speculative_algorithm": "DDTREE",
        "speculative_num_draft_tokens": 17,
        "dtype": "bfloat16",
        "attention_backend": "fa3",
        "internal_states": [
            {"last_gen_throughput": 100.0, "avg_spec_accept_length": 2.0},
            {"last_gen_throughput": 50.0, "avg_spec_accept_length": 3.0},
        ],
    }
    assert parse_info(info) == Sample(tokens_per_s=150.0, accept_length=2.5)
    assert describe(info) == "Qwen3-8B, DDTREE, N up to 17, bfloat16, fa3"
    assert describe({"model_path": "m", "speculative_algorithm": None}) == "m, plain decoding"
    assert (parse_info({}), parse_info({"internal_states": ["x"]}), describe({})) == (
        Sample(),
        Sample(),
        "",
    )
