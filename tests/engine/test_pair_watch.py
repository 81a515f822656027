"""A drafter that never hits is warned of once, after enough rounds; one that hits now and then is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine import pair_watch
from ddtree_sglang.engine.admission.pair_facts import suspicions
from ddtree_sglang.engine.pair_watch import FEW_ROUNDS, METRIC, ROUNDS, PairWatch, watch_first_rounds
from tests.e2e.servers import Pair
from tests.engine.requests import request_of

pytestmark = pytest.mark.sglang

NUM_NODES = 17


def asked(**options: Any) -> Any:
    """A running request."""
    request = request_of(**options)
    request.is_retracted, request.finished = False, lambda: False
    return request


def watch(num_rounds: int = 100, found: tuple[str, ...] = ()) -> PairWatch:
    return PairWatch(found, NUM_NODES, num_rounds)


def play(one: PairWatch, request: Any, hits: list[int]) -> None:
    for hit in hits:
        one.count([request], [hit], NUM_NODES)


@pytest.mark.parametrize(
    ("hits", "length", "is_suspect"), [(0, 1.0, True), (5, 1.05, True), (6, 1.06, False), (100, 2.0, False)]
)
def test_the_mean_of_the_first_rounds_decides(hits: int, length: float, is_suspect: bool) -> None:
    one = watch()
    play(one, asked(), [1] * hits + [0] * (100 - hits))
    assert (one.is_done, one.is_suspect) == (False, False), "a request's newest round is not counted yet"
    play(one, asked(), [0, 0])
    assert one.is_done
    assert one.accept_length == pytest.approx(length if hits < 100 else 1.99)
    assert one.is_suspect == is_suspect


@pytest.mark.parametrize(("hits", "is_suspect"), [(0, True), (50, True), (60, False)])
def test_a_thousand_rounds_are_looked_at_and_no_more(hits: int, is_suspect: bool) -> None:
    one, request = watch(ROUNDS), asked()
    play(one, request, [1] * hits + [0] * (ROUNDS - hits))
    assert not one.is_done
    play(one, request, [15] * 50)
    assert one.is_done
    assert one.accept_length == 1 + hits / ROUNDS
    assert one.is_suspect == is_suspect


def test_last_rounds_are_left_out() -> None:
    """A request of one or two tokens gets one round, in which no drafter could hit."""
    one = watch()
    for _ in range(1000):
        one.count([asked(max_new_tokens=2)], [0], NUM_NODES)
    assert not one.is_done
    assert one.accept_length == 1


@pytest.mark.parametrize("left_out", ["retracted", "finished", "budget", "asked by the server"])
def test_rounds_without_a_draft_are_left_out(left_out: str) -> None:
    one = watch()
    options = {"budget": {"budget": 0}, "asked by the server": {"budget": 4, "adapt": False, "learn": False}}
    request = asked(custom_params={"ddtree": options[left_out]} if left_out in options else None)
    request.is_retracted = left_out == "retracted"
    request.finished = lambda: left_out == "finished"
    other = asked()
    for _ in range(101):
        one.count([request, other], [0, 1], NUM_NODES)
    assert one.is_done
    assert one.accept_length == 2


def test_a_policy_that_drafts_nothing_under_load_is_no_bad_drafter() -> None:
    one = watch()
    many = [asked() for _ in range(16)]
    for _ in range(200):
        one.count(many, [0] * 16, 1)
    assert not one.is_done
    for _ in range(101):
        one.count(many[:1], [1], NUM_NODES)
    assert one.accept_length == 2


def test_a_draft_now_and_then_counts_with_the_plain_round_behind_it() -> None:
    """As the policy "adaptive" drafts where drafts are in vain; the last draft of a request may end it."""
    one, request = watch(20), asked()
    for _ in range(20):
        assert not one.is_done
        one.count([request], [0], NUM_NODES)
        for _ in range(3):
            one.count([request], [0], 1)
    assert one.is_suspect
    one = watch(20)
    for _ in range(100):
        one.count([asked()], [0], NUM_NODES)
        one.count([asked()], [0], 1)
    assert not one.is_done


@pytest.mark.parametrize("how", ["finished", "retracted"])
def test_a_plain_round_that_was_in_flight_when_a_request_ended_counts_no_last_draft(how: str) -> None:
    one = watch(20)
    for _ in range(100):
        request = asked()
        one.count([request], [0], NUM_NODES)
        request.is_retracted, request.finished = how == "retracted", lambda: how == "finished"
        one.count([request], [0], 1)
    assert not one.is_done


@pytest.mark.parametrize(("policy", "num_rounds"), [("fixed", ROUNDS), ("load", ROUNDS), ("adaptive", FEW_ROUNDS)])
def test_fewer_rounds_are_waited_for_where_a_policy_hardly_drafts(
    policy: str, num_rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_watch, "suspicions", lambda *_: ())
    config = SimpleNamespace(hf_config=SimpleNamespace(to_dict=dict))
    runner = SimpleNamespace(model_config=config)
    monkeypatch.setattr(pair_watch, "get_parallel", lambda: SimpleNamespace(tp_rank=0))
    worker = SimpleNamespace(draft_model_runner=runner, model_runner=runner, num_nodes=NUM_NODES)
    worker.config = SimpleNamespace(policy=policy)
    assert pair_watch.PairWatch.of(worker).num_rounds == num_rounds


class Collector:
    """SGLang's collector, with a gauge that notes what it is told."""

    def __init__(self, values: dict[str, float]) -> None:
        self.labels = {"model_name": "tiny"}

        class Gauge:
            def __init__(self, name: str, documentation: str, labelnames: Any, multiprocess_mode: str) -> None:
                assert documentation
                assert multiprocess_mode == "mostrecent"
                self.name, self.labelnames = name, list(labelnames)

            def labels(self, **labels: str) -> Any:
                assert list(labels) == self.labelnames
                place = ",".join(labels.values())
                return SimpleNamespace(set=lambda value: values.update({f"{self.name}[{place}]": value}))

        self._gauge_cls = Gauge


@pytest.mark.parametrize(("rank", "hit"), [(0, 0), (0, 1), (1, 0)])
def test_the_log_is_told_once_by_the_first_rank_and_the_metric_by_each_that_has_one(
    rank: int, hit: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pair_watch, "get_parallel", lambda: SimpleNamespace(tp_rank=rank))
    monkeypatch.setattr(pair_watch, "serves_ddtree", lambda: True)
    values: dict[str, float] = {}
    worker = SimpleNamespace(pair_watch=watch(20, ("rope parameters: the drafter's rope_theta is 1, the target's 2",)))
    processor = SimpleNamespace(model_worker=worker, metrics_collector=Collector(values) if rank == 0 else None)
    batch = SimpleNamespace(reqs=[asked(), asked()])
    result = SimpleNamespace(num_correct_drafts_per_req_cpu=[hit, hit], num_nodes=NUM_NODES)
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            watch_first_rounds([], processor, result, batch)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (rank == 0 and hit == 0)
    assert values == ({f"{METRIC}[tiny]": float(hit == 0)} if rank == 0 else {})
    assert all(
        "20 rounds emitted 1.000 tokens each" in one and "rope_theta is 1, the target's 2" in one for one in told
    )


def test_another_algorithm_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_watch, "serves_ddtree", lambda: False)
    watch_first_rounds([], SimpleNamespace(), SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]


TARGET = {
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "bos_token_id": 151643,
    "eos_token_id": [151645, 151643],
}
DRAFTER = {
    **TARGET,
    "eos_token_id": 151645,
    "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"rope_theta": 1e4}, "the drafter's rope_theta is 10000.0, the target's 1000000.0"),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1e6}}, ""),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "rope_theta is 10000.0"),
        ({"max_position_embeddings": 2048}, "the drafter knows 2048, the target 40960"),
        ({"max_position_embeddings": 262144}, ""),
        ({"eos_token_id": 2}, "the drafter's eos_token_id is [2], the target's [151643, 151645]"),
        ({"dflash_config": {"mask_token_id": 151669}}, "the drafter names none"),
        ({"dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 9]}}, "do not ascend"),
        ({"dflash_config": {"target_layer_ids": [1, 9]}}, "names no mask_token_id"),
        ({"dflash_config": {"mask_token_id": 151645, "target_layer_ids": [1]}}, "151645 is the target's eos_token_id"),
    ],
)
def test_what_configurations_tell(change: dict[str, Any], told: str) -> None:
    for target in (TARGET, {"text_config": TARGET}, {"llm_config": TARGET}):
        found = suspicions({**DRAFTER, **change}, target)
        assert len(found) == bool(told), found
        assert told in "".join(found)


def test_scaled_rotations_are_compared_by_kind_and_factor() -> None:
    scaled = {**TARGET, "rope_scaling": {"type": "yarn", "factor": 32.0}}
    assert suspicions({**DRAFTER, "rope_scaling": {"rope_type": "yarn", "factor": 32.0}}, scaled) == []
    (told,) = suspicions({**DRAFTER, "rope_scaling": {"rope_type": "yarn", "factor": 64.0}}, scaled)
    assert "factor is 64.0, the target's 32.0" in told


def test_the_embedded_pair_gives_no_cause(pair: Pair) -> None:
    drafter, target = (json.loads((Path(one) / "config.json").read_text()) for one in (pair.draft, pair.model))
    assert suspicions(drafter, target) == []
