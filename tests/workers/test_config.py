"""`WorkerConfig`: what is refused, and what a replica's engine is started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from ddtree_sglang.config import REQUESTS_BY_DEFAULT_ENV
from workers.app import replica_environment
from workers.config import WorkerConfig, load_worker_config
from workers.replicas.rank_actor import rank_environment


def config(**fields: object) -> WorkerConfig:
    return WorkerConfig(**{"model": "m", "draft": "d", **fields})


def test_engine_gets_model_drafter_ranks_and_further_arguments() -> None:
    args = config(tp_size=2, dtype="float32", engine_args={"mem_fraction_static": 0.5}).server_args()
    assert args["speculative_algorithm"] == "DDTREE"
    assert args["speculative_draft_model_path"] == "d"
    assert (args["tp_size"], args["dtype"], args["mem_fraction_static"]) == (2, "float32", 0.5)
    assert "device" not in args  # auto: SGLang looks for itself


def test_every_engine_argument_is_a_field_of_sglangs_server_args() -> None:
    from sglang.srt.server_args import ServerArgs

    known = {name for cls in ServerArgs.__mro__ for name in getattr(cls, "__annotations__", {})}
    assert set(config(device="cpu").server_args()) <= known


def test_plain_decoding_asks_for_no_drafter() -> None:
    args = WorkerConfig(model="m", algorithm="NONE").server_args()
    assert not [name for name in args if name.startswith("speculative")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"draft": None}, "needs a drafter"),
        ({"replicas": 2}, "replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "at least min_replicas, got 2 < 3"),
        ({"tp_size": 3, "nnodes": 2}, "nnodes must divide tp_size, got 2 and 3"),
        ({"engine_args": {"tp_size": 2}}, "tp_size"),
        ({"engine_args": {"attn_dp_size": 2}}, "attn_dp_size.*not run on Ray"),
        ({"engine_args": {"disaggregation_mode": "decode"}}, "disaggregation_mode.*not run on Ray"),
        ({"ddtree": {"budgets": 3}}, "budgets"),
        ({"ddtree": {"budget": 0}}, "budget must be"),
        ({"algorithm": "DFLASH", "ddtree": {"budget": 3}}, "needs algorithm DDTREE"),
        ({"algorithm": "EAGLE"}, "DDTREE"),
        ({"stall_timeout_s": 0}, "stall_timeout_s"),
    ],
)
def test_bad_values_are_refused_by_name(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**fields)


def test_ddtree_knobs_travel_as_the_json_that_the_plugin_reads() -> None:
    from ddtree_sglang.config import load_config

    assert load_config(config(ddtree={"budget": 7, "policy": "load"}).ddtree_json()).budget == 7


def test_file_may_be_yaml_or_json_and_errors_name_it(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("model: m\ndraft: d\nddtree: {budget: 5}\n")
    assert load_worker_config(good).ddtree == {"budget": 5}
    as_json = tmp_path / "good.json"
    as_json.write_text(json.dumps({"model": "m", "draft": "d"}))
    assert load_worker_config(as_json).model == "m"
    for text in ("[1]", "model: [", "model: m\ntypo: 1\n"):
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        with pytest.raises(ValueError, match=r"bad\.yaml cannot be used"):
            load_worker_config(bad)


@pytest.mark.parametrize(("fields", "is_default"), [({}, True), ({"max_running_requests": 16}, False)])
def test_a_replicas_processes_know_whether_its_number_of_requests_was_named(
    fields: dict[str, int], is_default: bool
) -> None:
    """What is named is a promise, which a server with recurrent layers keeps or refuses at its start."""
    environment = replica_environment(config(**fields))
    assert (environment.get(REQUESTS_BY_DEFAULT_ENV) == "1") == is_default
    # As a rank gets it from its replica.
    assert (rank_environment(environment).get(REQUESTS_BY_DEFAULT_ENV) == "1") == is_default
