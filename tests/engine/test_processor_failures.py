"""A processor that raises ends its own requests and changes nobody's logits."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.processor_failures import let_processors_fail_alone, note_running


class BansToken:
    """Adds -1 to a column, and raises where its parameters ask for it."""

    def __call__(self, logits: torch.Tensor, params: list[Any]) -> torch.Tensor:
        for one in params:
            if one is not None and "raise" in one:
                raise KeyError(one["raise"])
        logits[:, 0] = -1
        return logits


@dataclasses.dataclass
class Entry:
    processor: Any
    rows: list[int]
    indices: torch.Tensor


@dataclasses.dataclass
class Batch:
    custom_logit_processor: dict[int, Entry]
    custom_params: list[Any]


def original(logits: torch.Tensor, info: Batch, num_tokens: int = 1) -> None:
    """As SGLang's: rows are copied, changed, written back."""
    for entry in info.custom_logit_processor.values():
        indices = (entry.indices[:, None] * num_tokens + torch.arange(num_tokens)).flatten()
        params = [info.custom_params[row] for row in entry.rows for _ in range(num_tokens)]
        logits[indices] = entry.processor(logits[indices].clone(), params)


def request(processor: str | None, params: Any) -> Any:
    sampling = SimpleNamespace(custom_params=params)
    return SimpleNamespace(custom_logit_processor=processor, sampling_params=sampling, to_finish=None, rid="r")


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_a_processor_that_raises_ends_its_own_request(num_tokens: int) -> None:
    good, bad = BansToken(), BansToken()
    params: list[Any] = [None, {"raise": "temperature"}, {}, None, {"raise": "again"}]
    requests = [request(name, one) for name, one in zip(["good", "bad", "bad", None, "bad"], params, strict=True)]
    info = Batch(
        {
            hash("bad"): Entry(bad, [1, 2, 4], torch.tensor([1, 2, 4])),
            hash("good"): Entry(good, [0], torch.tensor([0])),
        },
        params,
    )
    note_running(None, SimpleNamespace(reqs=requests))
    logits = torch.zeros(5 * num_tokens, 4)
    let_processors_fail_alone(original, logits, info, num_tokens)
    assert logits[:, 0].view(5, num_tokens)[:, 0].tolist() == [-1, 0, -1, 0, 0]
    ended = [req.to_finish.message if req.to_finish else None for req in requests]
    assert ended == [
        None,
        "custom_logit_processor raised KeyError: 'temperature'",
        None,
        None,
        "custom_logit_processor raised KeyError: 'again'",
    ]
    assert requests[1].to_finish.status_code == 400


def test_a_request_without_parameters_is_not_ended_for_another_one() -> None:
    """Two requests with one processor and no `custom_params`: nothing but their rows tells them apart."""

    def not_on_seven(logits: torch.Tensor, _params: list[Any]) -> torch.Tensor:
        if 7 in logits.argmax(1):
            raise KeyError("seven")
        return logits

    requests = [request("p", None), request("p", None)]
    note_running(None, SimpleNamespace(reqs=requests))
    logits = torch.eye(9)[[3, 7]]
    let_processors_fail_alone(
        original, logits, Batch({hash("p"): Entry(not_on_seven, [0, 1], torch.tensor([0, 1]))}, [None, None])
    )
    assert requests[0].to_finish is None
    assert "seven" in requests[1].to_finish.message


@pytest.mark.parametrize("raising", [0, 1, 2])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_neighbours_of_one_that_raises_meet_each_token_once(raising: int, num_tokens: int) -> None:
    """Whatever the processor remembers, on itself or in the parameters, it remembers once for each of them."""

    class Remembering:
        def __init__(self) -> None:
            self.met: list[str] = []

        def __call__(self, logits: torch.Tensor, params: list[Any]) -> torch.Tensor:
            for row, one in enumerate(params):
                self.met.append(one["name"])
                one["met"] += 1
                if one.get("raises"):
                    raise KeyError(one["name"])
                logits[row, 0] += self.met.count(one["name"])
            return logits

    params: list[Any] = [{"name": name, "met": 0} for name in "abc"]
    params[raising]["raises"] = True
    processor = Remembering()
    requests = [request("p", one) for one in params]
    note_running(None, SimpleNamespace(reqs=requests))
    logits = torch.zeros(3 * num_tokens, 4)
    info = Batch({hash("p"): Entry(processor, [0, 1, 2], torch.arange(3))}, params)
    let_processors_fail_alone(original, logits, info, num_tokens)
    others = [row for row in range(3) if row != raising]
    assert [params[row]["met"] for row in others] == [num_tokens] * 2
    assert [processor.met.count(params[row]["name"]) for row in others] == [num_tokens] * 2
    seen = [float(count) for count in range(1, num_tokens + 1)]
    expected = [[0.0] * num_tokens if row == raising else seen for row in range(3)]
    assert logits[:, 0].view(3, num_tokens).tolist() == expected
    assert [req.to_finish is not None for req in requests] == [row == raising for row in range(3)]


def test_an_abort_that_waits_already_stays() -> None:
    req = request("p", {"raise": "now"})
    req.to_finish = "aborted by its client"
    note_running(None, SimpleNamespace(reqs=[req]))
    let_processors_fail_alone(
        original, torch.zeros(1, 4), Batch({hash("p"): Entry(BansToken(), [0], torch.tensor([0]))}, [{"raise": "now"}])
    )
    assert req.to_finish == "aborted by its client"


def test_a_result_of_another_shape_is_an_error_of_its_own() -> None:
    req = request("p", None)
    note_running(None, SimpleNamespace(reqs=[req]))
    info = Batch({hash("p"): Entry(lambda logits, params: logits[:, :1].t(), [0], torch.tensor([0]))}, [None])
    let_processors_fail_alone(original, torch.zeros(2, 4)[:1].repeat(1, 1), info)
    info.custom_logit_processor[hash("p")].processor = lambda logits, params: None
    let_processors_fail_alone(original, torch.zeros(1, 4), info)
    assert "raised" in req.to_finish.message
