"""Which running requests a prefill may be mixed with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.mixed_chunks import has_state, mix_requests_without_state


def request(**changes: Any) -> Any:
    params = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0}
    asked = {
        "grammar": None,
        "custom_logit_processor": None,
        "return_hidden_states": False,
        "return_sampling_mask": False,
    }
    sampling = SimpleNamespace(**{name: changes.get(name, off) for name, off in params.items()})
    return SimpleNamespace(**{name: changes.get(name, off) for name, off in asked.items()}, sampling_params=sampling)


STATES: list[dict[str, Any]] = [
    {"grammar": object()},
    {"custom_logit_processor": "code"},
    {"return_hidden_states": True},
    {"return_sampling_mask": True},
    {"frequency_penalty": 0.1},
    {"presence_penalty": -0.1},
    {"repetition_penalty": 1.1},
    {"min_new_tokens": 1},
]


@pytest.mark.parametrize("changes", STATES, ids=lambda changes: next(iter(changes)))
def test_a_request_with_a_state_keeps_prefills_alone(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_state(request(**changes))
    assert not mixed("DDTREE", [request(), request(**changes)], monkeypatch)
    assert mixed("EAGLE", [request(**changes)], monkeypatch), "another algorithm's business"


def test_others_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mixed("DDTREE", [request(), request()], monkeypatch)
    assert mixed("DDTREE", [], monkeypatch)
    assert not mixed("DDTREE", [request()], monkeypatch, flag=False)


def test_prefills_run_alone_where_running_requests_would_leave_nothing_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SGLang would have a prompt go on by -1 tokens whose first part was not mixed."""
    assert mixed("DDTREE", [request()] * 7, monkeypatch)
    assert not mixed("DDTREE", [request()] * 8, monkeypatch)
    assert not mixed("DDTREE", [request()] * 9, monkeypatch)
    assert mixed("EAGLE", [request()] * 9, monkeypatch)


def mixed(algorithm: str, requests: list[Any], monkeypatch: pytest.MonkeyPatch, flag: bool = True) -> bool:
    """Whether the scheduler mixes when it makes the batch; afterwards its flag is what it was, whatever happened."""
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm=algorithm))
    scheduler = SimpleNamespace(is_mixed_chunk=flag, chunked_prefill_size=8)
    batch = SimpleNamespace(reqs=requests)
    seen: list[bool] = []

    def original(found: Any, running: Any) -> None:
        assert running is batch
        seen.append(found.is_mixed_chunk)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        mix_requests_without_state(original, scheduler, batch)  # type: ignore[arg-type]
    assert scheduler.is_mixed_chunk is flag
    return seen[0]
