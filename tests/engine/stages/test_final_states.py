"""Hidden states for a request: the right rows of the right tensor, and nothing for a batch that asks for none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.exceptions import DDTreeConfigError

pytestmark = pytest.mark.sglang

HIDDEN = 4


def output(rows: int) -> Any:
    """A forward's output: row r of the final states is all r, the drafter's states are wider and all -1."""
    return SimpleNamespace(
        hidden_states=torch.full((rows, 3 * HIDDEN), -1.0),
        last_hidden_states=torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, HIDDEN),
    )


def rows_of(made: Any) -> list[int]:
    assert made.hidden_states.shape[1] == HIDDEN
    return [int(row) for row in made.hidden_states[:, 0]]


@pytest.fixture
def server_mode(monkeypatch: pytest.MonkeyPatch) -> Any:
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    from ddtree_sglang.engine.stages import final_states

    def use(name: str) -> None:
        monkeypatch.setattr(final_states, "get_server_return_hidden_states_mode", lambda: CaptureHiddenMode[name])

    return use


def test_a_round_hands_out_a_row_per_accepted_node_and_pads_to_the_stride() -> None:
    from ddtree_sglang.engine.stages.final_states import hand_out_round_states

    made = output(rows=6)
    rows = torch.tensor([[0, 2, 1], [3, 5, 3]])
    hand_out_round_states(SimpleNamespace(return_hidden_states=True), made, rows, stride=5)  # type: ignore[arg-type]
    states = rows_of(made)
    assert (states[:3], states[5:8]) == ([0, 2, 1], [3, 5, 3])
    assert len(states) == 10
    assert made.last_hidden_states is None


@pytest.mark.parametrize(("mode", "expected"), [("FULL", [0, 1, 2, 3, 4, 5]), ("LAST", [2, 3, 5])])
def test_a_prefill_hands_out_what_sglang_counts_on(mode: str, expected: list[int], server_mode: Any) -> None:
    from ddtree_sglang.engine.stages.final_states import hand_out_prompt_states

    server_mode(mode)
    made = output(rows=6)
    kept = made.last_hidden_states
    hand_out_prompt_states(SimpleNamespace(return_hidden_states=True, extend_lens=[3, 1, 2]), made)  # type: ignore[arg-type]
    assert rows_of(made) == expected
    assert made.hidden_states.data_ptr() != kept.data_ptr(), "a graph's next replay would change it"


def test_a_batch_without_such_a_request_keeps_nothing(server_mode: Any) -> None:
    from ddtree_sglang.engine.stages.final_states import hand_out_prompt_states, hand_out_round_states

    server_mode("FULL")
    batch: Any = SimpleNamespace(return_hidden_states=False)
    for made in (output(4), output(4)):
        hand_out_prompt_states(batch, made)
        assert (made.hidden_states, made.last_hidden_states) == (None, None)
    made = output(4)
    hand_out_round_states(batch, made, torch.tensor([[0, 1]]), stride=2)
    assert (made.hidden_states, made.last_hidden_states) == (None, None)


def processor() -> Any:
    from sglang.srt.layers.logits_processor import LogitsProcessor

    made = LogitsProcessor.__new__(LogitsProcessor)
    torch.nn.Module.__init__(made)
    made.keep_last_hidden_states = False
    return made


@pytest.mark.parametrize(("mode", "kept"), [("NULL", False), ("LAST", True), ("FULL", True)])
def test_the_target_keeps_its_last_states_where_the_server_returns_any(mode: str, kept: bool, server_mode: Any) -> None:
    from ddtree_sglang.engine.stages.final_states import keep_final_states

    server_mode(mode)
    model = torch.nn.Module()
    model.logits_processor = processor()
    keep_final_states(model)
    assert model.logits_processor.keep_last_hidden_states is kept


@pytest.mark.parametrize("count", [0, 2])
def test_a_target_without_one_logits_processor_is_refused(count: int, server_mode: Any) -> None:
    from ddtree_sglang.engine.stages.final_states import keep_final_states

    server_mode("FULL")
    model = torch.nn.ModuleList([processor() for _ in range(count)])
    with pytest.raises(DDTreeConfigError, match=rf"one logits processor, got ModuleList with {count}"):
        keep_final_states(model)
    server_mode("NULL")
    keep_final_states(model)


def test_of_several_processors_the_others_keep_no_states() -> None:
    """What the refusal is for: a forward goes through one that is not known, and a request gets none of its states."""
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    asked, other = processor(), processor()
    asked.keep_last_hidden_states = True
    states, metadata = torch.ones(2, HIDDEN), SimpleNamespace(capture_hidden_mode=CaptureHiddenMode.FULL)
    kept = [one._get_last_hidden_states_to_store(states, [states], metadata) for one in (asked, other)]
    assert kept[0] is states
    assert kept[1] is None
