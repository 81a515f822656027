"""Before the first client, a server of policy adaptive serves rounds of the sizes and widths that its table lacks."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.core.cost_model import batch_class
from ddtree_sglang.cost_batches import BESIDE
from ddtree_sglang.engine.admission.server_args import COSTS_WARMUP
from ddtree_sglang.engine.entry import first_costs
from ddtree_sglang.engine.entry.first_costs import QUICK_ROUNDS, ROUNDS, Unmeasured, measure_first_costs
from ddtree_sglang.engine.entry.install import _register_warmup

pytestmark = pytest.mark.sglang

NODES = [1, 2, 3, 5, 9, 17]
FIRST = [1, 5]
FEW = [*FIRST, 17]


class Manager:
    """A tokenizer's manager whose drafted rounds emit two tokens and take seconds of a clock of its own."""

    def __init__(self, states: list[dict[str, Any]]) -> None:
        self.states = states
        self.fails_at: int | None = None
        self.hangs_at: int | None = None
        self.asked: list[tuple[int, int]] = []
        self.rounds: list[int] = []
        self.now = 0.0
        self.emits = 2
        self.states_asked = 0
        self.seconds_of = lambda width: 0.04 if width == 1 else 0.06
        self.prompts: list[Any] = []
        self.tokenizer: Any = "words"
        self.model_config: Any = None
        self.aborted: list[bool] = []

    def abort_request(self, *, abort_all: bool) -> None:
        self.aborted.append(abort_all)

    async def get_internal_state(self) -> list[dict[str, Any]]:
        self.states_asked += 1
        return self.states

    async def generate_request(self, request: Any) -> Any:
        if len(self.asked) == self.fails_at:
            self.fails_at = None
            raise RuntimeError("out of memory")
        request.normalize_batch_and_arguments()
        params = request.sampling_params[0]
        wanted = params["custom_params"]["ddtree"]
        assert (wanted["adapt"], wanted["learn"]) == (False, False)
        assert params["ignore_eos"]
        assert not request.log_metrics
        prompts = request.text or [tuple(ids) for ids in request.input_ids]
        assert len(set(prompts)) == len(prompts)
        self.prompts += prompts
        self.asked.append((len(prompts), wanted["budget"] + 1))
        if len(self.asked) - 1 == self.hangs_at:
            await asyncio.sleep(60)
        tokens = params["max_new_tokens"]
        rounds = tokens - 1 if wanted["budget"] == 0 else -(-(tokens - 1) // self.emits)
        self.rounds.append(rounds)
        self.now += self.seconds_of(wanted["budget"] + 1) * rounds
        meta = {"completion_tokens": tokens, "spec_verify_ct": 0 if wanted["budget"] == 0 else rounds}
        yield [{"meta_info": meta} for _ in prompts]


def state(cells: list[list[Any]], running: int = 4) -> dict[str, Any]:
    return {"effective_max_running_requests_per_dp": running, "ddtree_costs": {"steps": NODES, "cells": cells}}


def in_order(*sizes: int) -> list[tuple[int, int]]:
    """Cells as they are asked for: a few widths of every size, then the others."""
    first = [(size, width) for size in sizes for width in FIRST]
    widest = [(size, 17) for size in sizes]
    return first + widest + [(size, width) for size in sizes for width in NODES if width not in FEW]


def served(manager: Manager, monkeypatch: pytest.MonkeyPatch, config: str = '{"policy": "adaptive"}') -> Manager:
    monkeypatch.setenv(CONFIG_ENV, config)
    monkeypatch.setattr(first_costs, "monotonic", lambda: manager.now)
    serving = SimpleNamespace(skip_server_warmup=False)
    monkeypatch.setattr("sglang.srt.runtime_context.get_serving", lambda: serving)
    asyncio.run(measure_first_costs("null", manager))  # type: ignore[arg-type]
    return manager


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_a_server_that_does_one_part_of_a_request_asks_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = SimpleNamespace(skip_server_warmup=False)
    monkeypatch.setattr("sglang.srt.runtime_context.get_serving", lambda: serving)
    manager = Manager([state([])])
    asyncio.run(measure_first_costs(mode, manager))  # type: ignore[arg-type]
    assert manager.states_asked == 0


@pytest.mark.parametrize(
    ("running", "sizes"),
    [(1, [1]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9]), (24, [1, 2, 4, 8, 16, 24]), (4096, [1, 2, 4, 8, 16, 32])],
)
def test_sizes_double_up_to_what_runs_at_once_one_of_each_class(running: int, sizes: list[int]) -> None:
    assert Unmeasured(NODES, running, {}).sizes() == sizes


def test_each_cell_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = served(Manager([state([], running=48)]), monkeypatch).asked
    assert asked == in_order(1, 2, 4, 8, 16, 32)


def test_what_a_file_knows_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of a long context says nothing of short ones; 25 requests are filed with those near them."""
    cells = [[1, nodes, 0, 0.02] for nodes in NODES[:-1]] + [[batch_class(25), 17, 0, 0.02], [1, 17, 3, 0.09]]
    cells += [[size, nodes, 0, 0.02] for size in (2, 4, 8, 16) for nodes in NODES]
    asked = served(Manager([state(cells, running=25)]), monkeypatch).asked
    assert asked == [(25, 1), (25, 5), (1, 17), *((25, nodes) for nodes in (2, 3, 9))]
    full = [[size, nodes, 0, 0.02] for size in (1, 2, 4, 8, 16, batch_class(25)) for nodes in NODES]
    assert served(Manager([state(full, running=25)]), monkeypatch).asked == []


def test_what_could_not_pay_at_one_start_is_left_out_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Manager([state([], running=1)])
    first.seconds_of = lambda width: 0.04 * width
    measured = [nodes for _, nodes in served(first, monkeypatch).asked]
    assert max(measured) < NODES[-1]
    again = Manager([state([[1, nodes, 0, 0.04 * nodes] for nodes in measured], running=1)])
    assert served(again, monkeypatch).asked == []


def test_a_drafter_that_is_better_than_guessed_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager([state([], running=1)])
    manager.emits = 8
    asked = served(manager, monkeypatch).asked
    assert asked.count((1, 17)) == 2
    (_, second) = (rounds for cell, rounds in zip(manager.asked, manager.rounds, strict=True) if cell == (1, 17))
    assert second - BESIDE >= 2


def test_widths_that_cannot_pay_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of 5 nodes take five times a plain one, and emit two tokens: 9 and 17 are not asked for."""
    manager = Manager([state([], running=1)])
    manager.seconds_of = lambda width: 0.04 * width
    assert served(manager, monkeypatch).asked == [(1, 1), (1, 5), (1, 2), (1, 3)]


def test_it_ends_when_its_time_is_over_whatever_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager([state([])])
    manager.hangs_at = 2
    began = time.perf_counter()
    served(manager, monkeypatch, '{"policy": "adaptive", "measure_seconds": 1}')
    assert manager.asked == [(1, 1), (1, 5), (2, 1)]
    assert manager.states_asked == 2, "what was measured is written"
    assert manager.aborted == [True], "the first client decodes beside no question of ours"
    assert 0.9 < time.perf_counter() - began < 5


def test_each_cell_gets_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roughly, as long as it is not known what a round emits."""
    manager = served(Manager([state([], running=2)]), monkeypatch)
    assert len(manager.rounds) == 2 * len(NODES)
    assert min(manager.rounds) >= 2 + BESIDE
    of_two = [rounds for (size, _), rounds in zip(manager.asked, manager.rounds, strict=True) if size == 2]
    assert all(one - BESIDE in (ROUNDS, ROUNDS + 1) for one in of_two)


def test_quick_rounds_are_asked_for_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's host runs ahead of it for some rounds, and its clocks rise."""
    manager = Manager([state([], running=2)])
    manager.seconds_of = lambda width: 0.006 if width < 17 else 0.022
    served(manager, monkeypatch)
    asked = list(zip(manager.asked, manager.rounds, strict=True))
    for size in (1, 2):
        for width in NODES[:-1]:
            *_, last = (rounds for cell, rounds in asked if cell == (size, width))
            assert abs(last - BESIDE - QUICK_ROUNDS) < 4
        (slow,) = (rounds for cell, rounds in asked if cell == (size, 17))
        assert slow - BESIDE < QUICK_ROUNDS


def test_flags_that_forbid_warm_ups_forbid_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang sets it for some flags of debugging after DDTREE has looked at the arguments."""
    monkeypatch.setattr("sglang.srt.runtime_context.get_serving", lambda: SimpleNamespace(skip_server_warmup=True))
    manager = Manager([state([])])
    asyncio.run(measure_first_costs("null", manager))  # type: ignore[arg-type]
    assert manager.asked == []


@pytest.mark.parametrize("states", [[{}], [{"ddtree_costs": {}}], [state([]), state([])], [{"ddtree_costs": None}]])
def test_a_server_without_a_table_and_several_in_one_are_left_alone(
    states: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served(Manager(states), monkeypatch).asked == []


def test_a_width_whose_rounds_stay_too_few_took_its_time_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of a batch do not run together, twice: what a wider one may cost is judged by what they took."""
    manager = Manager([state([], running=1)])
    manager.emits = 100
    manager.seconds_of = lambda width: 0.04 if width == 1 else 100.0
    assert served(manager, monkeypatch).asked == [(1, 1), (1, 5), (1, 5), (1, 2), (1, 2)]


def test_a_size_that_fails_is_said_and_ends_neither_the_others_nor_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Manager([state([], running=2)])
    manager.fails_at = 4  # one request, 17 nodes
    served(manager, monkeypatch)
    assert [width for size, width in manager.asked if size == 1] == [1, 5, 2, 3, 9]
    assert [cell for cell in manager.asked if cell[0] == 2] == in_order(2)
    assert caplog.text.count("rounds could not be measured at start (out of memory)") == 1
    assert manager.states_asked == 2


def test_sglang_finds_it_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.entrypoints import warmup

    monkeypatch.setattr(warmup, "_warmup_registry", {})
    _register_warmup()
    serving = SimpleNamespace(skip_server_warmup=False)
    monkeypatch.setattr("sglang.srt.runtime_context.get_serving", lambda: serving)
    manager = Manager([state([], running=1)])
    monkeypatch.setenv(CONFIG_ENV, '{"policy": "adaptive"}')
    asyncio.run(warmup.execute_warmups("null", [COSTS_WARMUP], manager))  # type: ignore[arg-type]
    assert list(dict.fromkeys(manager.asked)) == in_order(1)


def test_without_a_tokenizer_prompts_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager([state([], running=2)])
    manager.tokenizer, manager.model_config = None, SimpleNamespace(vocab_size=1000)
    assert len(served(manager, monkeypatch).asked) == 2 * len(NODES)
    assert all(0 <= token < 1000 for prompt in manager.prompts for token in prompt)
    assert len({tuple(prompt) for prompt in manager.prompts}) == len(manager.prompts) == 3 * len(NODES)
