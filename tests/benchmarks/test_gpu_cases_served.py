"""The GPU proof's own cases on a real engine: SGLang's CPU platform serves the tiny pair, every step's judge passes.

On a GPU the same cases are served with other flags. What this shows is that questions, records and judges fit what a
server answers, that the tiny pair is served, and that its drafter is accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu_record
from benchmarks.gpu_cases import CASES, Case
from benchmarks.gpu_judge import acceptance_of
from benchmarks.gpu_sections import SECTIONS, Step
from benchmarks.harness.gpu_machine import this_processor
from benchmarks.harness.gpu_setting import Scale, Setting
from benchmarks.tiny_pair import write_pair
from deploy.local.server_process import ServerProcess
from tests.preloaded.client import Preloaded

pytestmark = [pytest.mark.e2e, pytest.mark.sglang]
STEPS = {step.name: step for section in SECTIONS for step in section.steps}


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """A process that has imported the engine, from which servers are forked."""
    with Preloaded(tmp_path_factory.mktemp("preloaded") / "preloaded.log") as process:
        yield process


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded) -> Callable[[str], dict[str, Any]]:
    """The record of a case, its server a fork of the preloaded process; each case is served once."""
    out = tmp_path_factory.mktemp("gpu-proof")
    target, draft = write_pair(out / "tiny")
    scale = Scale(prompts=8, new_tokens=20, samples=160)
    pairs = {"tiny": (str(target), str(draft))}
    setting = Setting(out, this_processor(), "run", pairs, scale=scale, start_timeout_s=600, client_timeout_s=300)
    start = gpu_record.server_of
    kept: dict[str, dict[str, Any]] = {}

    def forked(case: Case, of: Setting, at_once: int) -> ServerProcess:
        server = start(case, of, at_once)
        server.starter = preloaded.start
        return server

    def record(name: str) -> dict[str, Any]:
        if name not in kept:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gpu_record, "server_of", forked)
                assert gpu_record.save(CASES[name], setting, 1), name
            kept[name] = json.loads(setting.record_path(name).read_text())
        return kept[name]

    return record


def judged(step: Step, records: Callable[[str], dict[str, Any]], *cases: str) -> Any:
    assert step.judge is not None
    lab: Any = SimpleNamespace(setting=SimpleNamespace(machine=this_processor()), out=Path())
    return step.judge(lab, {case: records(case) for case in cases or step.cases})


@pytest.mark.parametrize("name", ["works/triton", "lossless/triton", "limit/triton", "policy/triton", "sampled/triton"])
def test_a_step_passes_on_the_processor(records: Callable[[str], dict[str, Any]], name: str) -> None:
    found = judged(STEPS[name], records)
    assert found.passed, found.reason


def test_wider_trees_accept_more(records: Callable[[str], dict[str, Any]]) -> None:
    """So a drafter or a tree that is garbled shows in the accept length, and not in tokens alone."""
    narrow, wide = (acceptance_of(records(f"ddtree-{budget}/triton")) for budget in (16, 64))
    assert 2.0 < narrow < wide


def test_requests_reach_the_end_of_the_context(records: Callable[[str], dict[str, Any]]) -> None:
    ends = [one for wave in records("limit/plain")["waves"].values() for one in wave if one["key"].startswith("end-")]
    assert {one["prompt_len"] + len(one["ids"]) for one in ends} <= set(range(124, 129))
