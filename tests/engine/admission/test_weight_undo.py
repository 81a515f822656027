"""Whatever a loader of weights writes or binds, it is as before once it is taken back, bit for bit."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ddtree_sglang.engine.admission.weight_undo import UndoLog, watch_threads, watching


class Model(nn.Module):
    """Two parameters on one memory, one of its own, a buffer, a tensor that is neither, and one out of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.fused = nn.Linear(4, 8)
        self.register_buffer("table", torch.arange(5.0))
        self.absorbed = torch.randn(3, 2)
        self.part = torch.zeros(10)[2:6]


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a forward could read, with the addresses that a captured graph has."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, one in {**module.__dict__, **module._parameters, **module._buffers}.items():
            is_tensor = isinstance(one, torch.Tensor)
            found[f"{name}.{key}"] = (one.detach().clone(), one.data_ptr()) if is_tensor else (one, id(one))
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one[0], torch.Tensor):
        return isinstance(other[0], torch.Tensor) and torch.equal(one[0], other[0]) and one[1] == other[1]
    return one[1] == other[1]


def copy_into_a_part(model: Model) -> None:
    model.fused.weight.data.narrow(0, 2, 3).copy_(torch.full((3, 4), 7.0))


def assign(model: Model) -> None:
    model.fused.weight.data[1:3] = 5.0


def into_a_shared_memory(model: Model) -> None:
    model.head.weight.data.copy_(torch.ones(6, 4))


def given_as_output(model: Model) -> None:
    torch.add(torch.ones(8), 1.0, out=model.fused.bias.data)


def several_at_once(model: Model) -> None:
    torch._foreach_mul_([model.fused.bias.data, model.embed.weight.data], 3.0)


def a_buffer(model: Model) -> None:
    model.table.fill_(2.0)


def what_is_no_parameter(model: Model) -> None:
    model.absorbed.copy_(torch.zeros(3, 2))
    model.part.fill_(9.0)


def bound_anew(model: Model) -> None:
    model.fused.weight = nn.Parameter(torch.zeros(4, 8).t())
    model.absorbed = torch.zeros(1)
    model.extra = torch.zeros(2)


def of_another_memory(model: Model) -> None:
    model.fused.weight.data = torch.zeros(2, 2)
    model.fused.weight.format_of_scales = "packed"  # type: ignore[attr-defined]


def renamed(model: Model) -> None:
    model.renamed = model.fused
    del model.fused


def in_threads(model: Model) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        parts = [model.fused.weight.data[row] for row in range(8)]
        list(executor.map(lambda part: part.fill_(4.0), parts))
        executor.submit(model.embed.weight.data.zero_).result()


def scaled_twice(model: Model) -> None:
    for _ in range(2):
        model.fused.weight.data.mul_(2.0)


WRITES: tuple[Callable[[Model], None], ...] = (
    copy_into_a_part,
    assign,
    into_a_shared_memory,
    given_as_output,
    several_at_once,
    a_buffer,
    what_is_no_parameter,
    bound_anew,
    of_another_memory,
    renamed,
    in_threads,
    scaled_twice,
)


@pytest.fixture(autouse=True)
def _threads_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hook registry makes it."""
    stock = concurrent.futures.ThreadPoolExecutor.submit

    def submit(self: Any, work: Any, *args: Any, **kwargs: Any) -> Any:
        return watch_threads(stock, self, work, *args, **kwargs)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", submit)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_was_written_is_taken_back(write: Callable[[Model], None], inference: bool) -> None:
    """A scheduler runs in torch's inference mode, and models are made outside it."""
    model = Model()
    before = state(model)
    with torch.inference_mode(inference), torch.no_grad():
        log = UndoLog([model])
        with watching(log):
            write(model)
        assert any(not same(before.get(name), one) for name, one in state(model).items() if name in before) or (
            state(model).keys() != before.keys()
        ), "the loader has to have changed something"
        log.roll_back()
    after = state(model)
    assert after.keys() == before.keys()
    assert [name for name in before if not same(before[name], after[name])] == []


def test_what_is_not_written_is_not_copied() -> None:
    model = Model()
    log = UndoLog([model], room_bytes=1000)
    with watching(log), torch.no_grad():
        model.fused.bias.data.copy_(model.table[:1].expand(8))
        torch.zeros(100).add_(1.0)
    assert log.room_bytes == 1000 - 8 * 4
    assert log.unwritten(model) == ["embed.weight", "fused.weight"]


def test_a_copy_for_which_the_device_has_no_room_goes_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    before = state(model)
    log = UndoLog([model], room_bytes=1 << 30)

    def full(_self: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with watching(log), torch.no_grad():
        monkeypatch.setattr(torch.Tensor, "clone", full)
        model.table.fill_(1.0)
        monkeypatch.undo()
    assert log.room_bytes == 0
    log.roll_back()
    assert same(before[".table"], state(model)[".table"])


def test_a_weight_that_was_turned_in_place_is_turned_back() -> None:
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.detach().clone()
    log = UndoLog([model])
    with watching(log), torch.no_grad():
        model.weight.data = model.weight.data.t()
    log.roll_back()
    assert torch.equal(model.weight.detach(), before)


def test_what_is_written_after_the_update_stays() -> None:
    model = Model()
    log = UndoLog([model])
    with watching(log), torch.no_grad():
        model.table.fill_(1.0)
    model.absorbed.fill_(3.0)
    log.roll_back()
    assert bool((model.absorbed == 3.0).all())
    assert torch.equal(model.table, torch.arange(5.0))


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        (torch.float64, False),
        (torch.bfloat16, False),
        (torch.int64, True),
        (torch.uint8, True),
        (torch.bool, True),
        (torch.complex64, True),
        (torch.float8_e4m3fn, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("quantized", [False, True])
def test_numbers_of_another_kind_are_no_weights(source: torch.dtype, is_refused: bool, quantized: bool) -> None:
    model = Model()
    model.quant_config = object() if quantized else None
    log = UndoLog([model])
    before = state(model)
    weights = torch.ones(8).to(source)
    with watching(log), torch.no_grad():
        if is_refused and not quantized:
            with pytest.raises(TypeError, match=f"weights of {source} cannot be loaded into torch.float32"):
                model.fused.bias.data.copy_(weights)
            assert same(state(model)["fused.bias"], before["fused.bias"])
        else:
            model.fused.bias.data.copy_(weights)
        if not source.is_complex:
            torch.zeros(8).copy_(weights)  # not a weight


def test_two_models_are_taken_back_together() -> None:
    models = [Model(), Model()]
    before = [state(model) for model in models]
    log = UndoLog(models)
    for model in models:
        with watching(log), torch.no_grad():
            model.table.fill_(8.0)
    log.roll_back()
    for model, was in zip(models, before, strict=True):
        assert [name for name, one in state(model).items() if not same(was[name], one)] == []


def test_work_of_threads_outside_an_update_is_left_alone() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        assert executor.submit(lambda one, two=0: one + two, 1, two=2).result() == 3


@pytest.mark.parametrize(
    "source", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_torch_converts_numbers_of_another_kind_without_a_word(source: torch.dtype) -> None:
    """What the refusal of them is for: codes of a quantized weight are read as its values."""
    model = Model()
    with torch.no_grad():
        model.fused.bias.data.copy_(torch.ones(8).to(source))
    assert bool((model.fused.bias == 1.0).all())
