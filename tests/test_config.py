"""The knobs: ranges, sources, and what a mistake is told."""

from __future__ import annotations

import json

import pytest

from ddtree_sglang.config import CONFIG_ENV, DDTreeConfig, load_config
from ddtree_sglang.exceptions import DDTreeConfigError


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"budget": 0}, "budget"),
        ({"budget": 256}, "budget"),
        ({"budget": True}, "budget"),
        ({"budget": 8.0}, "budget"),
        ({"top_k": 0}, "top_k"),
        ({"policy": "clever"}, "policy"),
        ({"verify_tokens": 0, "policy": "load"}, "verify_tokens"),
        ({"verify_tokens": 32}, "belongs to policy 'load'"),
        ({"measure_seconds": -1, "policy": "adaptive"}, "from 0 to 3600, got -1"),
        ({"measure_seconds": 5, "policy": "fixed"}, "belongs to policy 'adaptive'"),
        ({"check_ranks": "yes"}, "check_ranks"),
        ({"check_sync": 1}, "check_sync"),
        ({"untested_engine": "yes"}, "untested_engine"),
        ({"check_sync": True, "trace": "trace.jsonl"}, "give one of them"),
        ({"trace": "/no/such/folder/t.jsonl"}, "trace"),
        ({"trace_every": 0, "trace": "t.jsonl"}, "--speculative-ddtree-trace-every"),
        ({"trace_every": 2.0, "trace": "t.jsonl"}, "trace_every"),
        ({"trace_mib": 0, "trace": "t.jsonl"}, "--speculative-ddtree-trace-mib"),
        ({"trace_mib": 64}, "trace_mib=64 needs a trace"),
    ],
)
def test_config_out_of_range_names_the_knob_and_the_value(values: dict[str, object], named: str) -> None:
    with pytest.raises(DDTreeConfigError) as caught:
        DDTreeConfig(**values)  # type: ignore[arg-type]
    assert named in str(caught.value)
    assert repr(next(iter(values.values()))) in str(caught.value)


@pytest.mark.parametrize("budget", [1, 255])
def test_config_accepts_the_ends_of_the_range(budget: int) -> None:
    assert DDTreeConfig(budget=budget).budget == budget


def test_config_json_round_trip_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DDTreeConfig(budget=7, top_k=3)
    monkeypatch.setenv(CONFIG_ENV, config.to_json())
    assert DDTreeConfig.from_env() == config


def test_config_unset_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_ENV, raising=False)
    assert DDTreeConfig.from_env() == DDTreeConfig()


def test_config_file_is_read_and_unknown_keys_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "ddtree.json"
    path.write_text(json.dumps({"budget": 31}))
    assert load_config(str(path)).budget == 31
    path.write_text(json.dumps({"buget": 31}))
    with pytest.raises(DDTreeConfigError, match="buget"):
        load_config(str(path))


@pytest.mark.parametrize("text", ["{", "[1]", "/no/such/file.json"])
def test_config_malformed_source_is_refused(text: str) -> None:
    with pytest.raises(DDTreeConfigError):
        load_config(text)


def test_candidates_per_depth_defaults_to_the_budget() -> None:
    assert DDTreeConfig().candidates_per_depth(17) == 16
    assert DDTreeConfig(top_k=4).candidates_per_depth(17) == 4
