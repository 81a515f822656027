"""How many nodes fit beside as many requests as were asked for, where each node keeps a recurrent state."""

from __future__ import annotations

import inspect
import logging
import pickle
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission import state_memory
from ddtree_sglang.engine.admission.state_memory import GIB, MIB, StateMemory, check_state_memory, limit_nodes
from ddtree_sglang.exceptions import DDTreeConfigError

pytestmark = pytest.mark.sglang

# Half of 100 MiB for states; a state of 1 MiB; a request that runs has four in the prefix cache's pool.
HALF = StateMemory(100 * MIB, MIB, MIB, slots_per_request=4, share=0.5)
GIVEN = replace(HALF, slots=20)
ONE_EACH = replace(HALF, slots_per_request=1, is_one_each=True)


@pytest.mark.parametrize(
    ("memory", "num_nodes", "requests"),
    [
        # Of 50 MiB, a row for padding takes 1 + N, and a slot 1 + N / 4: 45 / 2, 41 / 3, 33 / 5, 17 / 9 and -15 / 17.
        (HALF, 4, 5),
        (HALF, 8, 3),
        (HALF, 16, 1),
        (HALF, 32, 0),
        (HALF, 64, 0),
        # 21 slots leave 79 MiB, and each request and the padding take N; something must be left.
        (GIVEN, 8, 5),
        (GIVEN, 16, 3),
        (GIVEN, 39, 1),
        (GIVEN, 40, 0),
        (GIVEN, 80, 0),
        # 1 + N for each request and the padding: 99, 100 and 150 of 100.
        (ONE_EACH, 8, 10),
        (ONE_EACH, 9, 8),
        (ONE_EACH, 49, 0),
    ],
)
def test_requests_that_fit(memory: StateMemory, num_nodes: int, requests: int) -> None:
    assert memory.requests(num_nodes) == requests


def test_most_nodes_that_fit() -> None:
    # Three requests are 12 slots: 50 - 1 - N >= 12 * (1 + N / 4), so N <= 9.25.
    assert HALF.most_nodes(3, 17) == 9
    assert HALF.most_nodes(3, 5) == 5
    # Twelve are 48 slots.
    assert HALF.most_nodes(12, 17) == 0


@pytest.mark.parametrize(
    ("memory", "num_nodes", "requests", "words"),
    [
        (
            HALF,
            17,
            3,
            "1.000 MiB a node and request on each GPU, and there are 0.049 GiB for states: with trees of 16 nodes "
            "1 of 3 requests fit at once, with 8 nodes at most all of them; set --speculative-ddtree-budget 8 or less, "
            "or set --max-running-requests 1 or less, or give states more memory (--mem-fraction-static, "
            "--mamba-full-memory-ratio).",
        ),
        (
            HALF,
            33,
            1,
            "with trees of 32 nodes 0 of 1 requests fit at once, with 21 nodes at most all of them; set "
            "--speculative-ddtree-budget 21 or less, or give states",
        ),
        (
            HALF,
            17,
            12,
            "1 of 12 requests fit at once, with no tree all of them; set --max-running-requests 1 or less",
        ),
        # Of one request 50 - 1 - N >= 4 * (1 + N / 4), of thirteen nothing.
        (
            HALF,
            33,
            13,
            "0 of 13 requests fit at once, with no tree all of them; set --max-running-requests 1 and "
            "--speculative-ddtree-budget 21 or less, or give states",
        ),
        (GIVEN, 17, 5, "0.098 GiB for states, keys and values: with trees of 16 nodes 3 of 5"),
        (ONE_EACH, 17, 8, "4 of 8 requests fit at once, with 9 nodes at most all of them"),
    ],
)
def test_more_nodes_than_fit_are_refused(memory: StateMemory, num_nodes: int, requests: int, words: str) -> None:
    with pytest.raises(DDTreeConfigError) as error:
        check_state_memory(memory, num_nodes=num_nodes, requests=requests, is_asked=True)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_fits_is_served_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    for is_asked in (True, False):
        check_state_memory(HALF, num_nodes=9, requests=3, is_asked=is_asked)
        # Twenty states are five requests at most, whatever a tree takes: SGLang says so.
        check_state_memory(GIVEN, num_nodes=8, requests=48, is_asked=is_asked)
    assert caplog.text == ""


def test_fewer_requests_than_the_default_are_said(caplog: pytest.LogCaptureFixture) -> None:
    check_state_memory(HALF, num_nodes=17, requests=3, is_asked=False)
    assert (
        "with trees of 16 nodes SGLang runs 1 of its default of 3 requests at once. For more set "
        "--speculative-ddtree-budget 8 or less or give states more memory" in caplog.text
    )
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()
    check_state_memory(HALF, num_nodes=17, requests=48, is_asked=False)
    assert "For more lower --speculative-ddtree-budget or give" in caplog.text


@pytest.mark.parametrize(
    ("memory", "num_nodes", "words"),
    [
        # Twenty states are five requests, which with the padding's are six trees: 79 = 6 * 13 + 1.
        (
            GIVEN,
            17,
            "3 of 5 requests that SGLang keeps room for by default fit at once, with 12 nodes at most all of them; set "
            "--speculative-ddtree-budget 12 or less, or set --max-running-requests 3 or less, or lower "
            "--max-mamba-cache-size, or give states more memory (--mem-fraction-static).",
        ),
        (
            GIVEN,
            80,
            "0 of 5 requests that SGLang keeps room for by default fit at once, with 12 nodes at most all of them; set "
            "--speculative-ddtree-budget 12 or less, or set --max-running-requests 1 and --speculative-ddtree-budget "
            "38 or less, or lower",
        ),
        (
            replace(GIVEN, slots=99),
            17,
            "0 of 24 requests that SGLang keeps room for by default fit at once, with no tree all of them; lower "
            "--max-mamba-cache-size, or give states",
        ),
        (
            ONE_EACH,
            17,
            "4 of 48 requests that SGLang keeps room for by default fit at once, with no tree all of them; set "
            "--max-running-requests 4 or less, or give states more memory (--mem-fraction-static).",
        ),
        (
            ONE_EACH,
            50,
            "0 of 48 requests that SGLang keeps room for by default fit at once, with no tree all of them; set "
            "--max-running-requests 1 and --speculative-ddtree-budget 47 or less, or give states",
        ),
    ],
)
def test_sglangs_default_is_refused_where_it_keeps_room_for_all(
    memory: StateMemory, num_nodes: int, words: str
) -> None:
    with pytest.raises(DDTreeConfigError) as error:
        check_state_memory(memory, num_nodes=num_nodes, requests=48, is_asked=False)
    assert words in str(error.value)


def test_a_tree_that_no_request_fits_with_is_refused_by_default_too() -> None:
    with pytest.raises(DDTreeConfigError, match="0 of 1 requests fit at once, with 21 nodes at most"):
        check_state_memory(HALF, num_nodes=33, requests=48, is_asked=False)


class Sglang:
    """SGLang's own sizing, with its arguments and a target made up."""

    def __init__(self, patch: pytest.MonkeyPatch, num_nodes: int, requests: int, **schedule: Any) -> None:
        from sglang.srt import runtime_context
        from sglang.srt.mem_cache import kv_cache_configurator as module

        self.one_each = schedule.pop("one_each", False)
        self.schedule = SimpleNamespace(
            max_running_requests=requests, max_mamba_cache_size=None, mamba_full_memory_ratio=0.9, **schedule
        )
        if "slots" in schedule:
            self.schedule.max_mamba_cache_size = schedule["slots"]
        bags = {
            "get_schedule": self.schedule,
            "get_spec": SimpleNamespace(speculative_num_draft_tokens=num_nodes, speculative_algorithm="DDTREE"),
            "get_memory": SimpleNamespace(disable_radix_cache=self.one_each),
            "get_exec": SimpleNamespace(mamba=SimpleNamespace(enable_linear_replayssm_spec=False)),
            "get_context": SimpleNamespace(override=self.override),
        }
        for name, bag in bags.items():
            patch.setattr(module, name, lambda bag=bag: bag)
            patch.setattr(runtime_context, name, lambda bag=bag: bag)
        patch.setattr(module, "_pd_prefill_skips_mamba_spec_state", lambda: False)
        # Another test of the process may have installed the hook.
        self.size = inspect.unwrap(module.KVCacheConfigurator._handle_max_mamba_cache)

    def override(self, _source: str, **fields: Any) -> None:
        vars(self.schedule).update(fields)

    def configurator(self, of_node: int, asked: int | None = None) -> Any:
        params = SimpleNamespace(layers=[0, 2], mamba_cache_per_req=of_node)
        return SimpleNamespace(
            mambaish_config=SimpleNamespace(mamba2_cache_params=params),
            pp_size=1,
            attn_dp_size=1,
            fused_entry_bytes=lambda _name: None,
            spec_algorithm=SimpleNamespace(is_none=lambda: False),
            hybrid_gdn_config=object(),
            hybrid_kda_config=None,
            extra_mamba_cache_bytes_per_req=0,
            _calculate_mamba_ratio=lambda: 1 if self.one_each else 5,
            server_args=SimpleNamespace(max_running_requests=asked),
        )


FREE_GIB = (0.5, 3.7, 20.0)
NODES = (1, 2, 9, 17, 64)


@pytest.mark.parametrize(("free", "num_nodes"), [*product(FREE_GIB, NODES)])
def test_requests_are_those_that_sglang_makes_room_for(
    free: float, num_nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_node = 9_633_792
    sglang = Sglang(monkeypatch, num_nodes, 48)
    configurator = sglang.configurator(of_node)
    expected = state_memory._memory_of(configurator, free * GIB).requests(num_nodes)
    try:
        sglang.size(configurator, free)
    except RuntimeError:
        assert expected == 0
    else:
        assert sglang.schedule.max_mamba_cache_size // 5 == expected


@pytest.mark.parametrize("given", [{"slots": 40}, {"one_each": True}], ids=["slots", "one-each"])
@pytest.mark.parametrize(("free", "num_nodes"), [*product(FREE_GIB, NODES)])
def test_where_the_number_of_states_is_given_something_is_left_to_keys(
    free: float, num_nodes: int, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for requests in range(1, 9):
        sglang = Sglang(monkeypatch, num_nodes, requests, **given)
        configurator = sglang.configurator(9_633_792)
        fits = state_memory._memory_of(configurator, free * GIB).requests(num_nodes) >= requests
        assert (sglang.size(configurator, free) > 0) == fits


BUDGET, ASKED = r"--speculative-ddtree-budget (\d+)", r"--max-running-requests (\d+)"


@pytest.mark.parametrize("given", [{"slots": 40}, {"slots": 300}, {"one_each": True}], ids=str)
@pytest.mark.parametrize(("free", "num_nodes"), [*product(FREE_GIB, NODES)])
def test_sglangs_default_starts_where_something_is_left_to_keys_and_as_the_refusal_says(
    free: float, num_nodes: int, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody named a number of requests. Left to SGLang, a server that does not fit dies and blames the weights."""

    def sized(num_nodes: int, requests: int) -> float:
        sglang = Sglang(monkeypatch, num_nodes, requests, **given)
        return float(sglang.size(sglang.configurator(9_633_792), free))

    left = sized(num_nodes, 48)
    sglang = Sglang(monkeypatch, num_nodes, 48, **given)
    try:
        assert limit_nodes(sglang.size, sglang.configurator(9_633_792), free) == left > 0
    except DDTreeConfigError as error:
        assert left <= 0
        *_, advice = str(error).rpartition("all of them; ")
        for one in advice.split(", or "):
            if "-budget" in one or "-requests" in one:
                budget, asked = re.search(BUDGET, one), re.search(ASKED, one)
                nodes = num_nodes if budget is None else int(budget[1]) + 1
                requests = 48 if asked is None else int(asked[1])
                assert sized(nodes, requests) > 0, one
                more = (nodes, requests + 1) if budget is None else (nodes + 1, requests)
                assert sized(*more) <= 0, one


def test_sglang_is_asked_once_it_is_known_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    sglang = Sglang(monkeypatch, 17, 8)
    left = limit_nodes(sglang.size, sglang.configurator(MIB, asked=8), 20.0)
    assert 0 < left < 20
    # 9701 MiB for states: 1800 of padding and 440 a slot leave 17, three requests. Eight take 40: 9601 - 100 N >= 4000
    # + 800 N, so that N <= 6.2.
    sglang = Sglang(monkeypatch, 17, 8)
    with pytest.raises(DDTreeConfigError, match="3 of 8 requests fit at once, with 5 nodes at most all of them"):
        limit_nodes(sglang.size, sglang.configurator(100 * MIB, asked=8), 20.0)


def test_a_replicas_default_is_no_promise(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The workers always name a number of requests; where it is their default, fewer run, and the log says so."""
    monkeypatch.setenv("DDTREE_REQUESTS_BY_DEFAULT", "1")
    sglang = Sglang(monkeypatch, 17, 8)
    with caplog.at_level(logging.WARNING):
        assert limit_nodes(sglang.size, sglang.configurator(100 * MIB, asked=8), 20.0) > 0
    assert "SGLang runs 3 of its default of 8 requests at once" in caplog.text


@pytest.mark.usefixtures("plugins", "no_configuration")
@pytest.mark.parametrize("given", [None, 8])
def test_arguments_keep_whether_a_number_of_requests_was_asked_for(given: int | None, tmp_path: Path) -> None:
    """What is filled in must not look as if the user had named it, in a scheduler's process too."""
    from tests.engine.admission.machines import HOPPER, resolved
    from tests.support.families import FAMILIES, LAYERS
    from tests.support.test_refusals import write

    draft = FAMILIES["Qwen3"].config_json | {"architectures": ["DFlashDraftModel"], "num_target_layers": LAYERS}
    draft |= {"block_size": 8, "dflash_config": {"mask_token_id": 4, "target_layer_ids": [0, 2]}}
    pair = (write(tmp_path / "target", FAMILIES["Qwen3-Next"].config_json), write(tmp_path / "draft", draft))
    view = resolved("Engine", pair, HOPPER, attention_backend="triton", max_running_requests=given)
    assert view.max_running_requests == (given or 48)
    server_args = pickle.loads(pickle.dumps(object.__getattribute__(view, "_server_args")))
    assert server_args.max_running_requests == given


def test_another_algorithms_states_are_its_own_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_memory, "serves_ddtree", lambda: False)
    assert limit_nodes(lambda _self, total: total / 2, object(), 8.0) == 4.0
