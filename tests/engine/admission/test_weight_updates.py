"""An update that one rank cannot load changes nothing on any rank, whichever of SGLang's four ways it comes by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ddtree_sglang.engine.admission import weight_updates
from ddtree_sglang.engine.admission.weight_updates import (
    load_checkpoint_on_all_ranks,
    load_on_all_ranks,
    receive_on_all_ranks,
    take_back_failures,
)

pytestmark = pytest.mark.sglang

GOOD = [("first.weight", torch.ones(2, 2)), ("second.weight", torch.ones(2, 2))]
WRONG = [GOOD[0], ("second.weight", torch.ones(3, 3))]
UNKNOWN = [GOOD[0], ("third.weight", torch.ones(2, 2))]
NONE = [("third.weight", torch.ones(2, 2))]


@pytest.fixture(autouse=True)
def _no_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_updates, "keeps_keys_in_files", lambda: False)


@pytest.mark.parametrize("kind", weight_updates.ANSWERS)
def test_no_update_is_begun_where_files_hold_keys_of_the_old_weights(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_updates, "keeps_keys_in_files", lambda: True)
    request = type(kind, (), {})()  # the answer is of its class's name
    answer = take_back_failures(lambda *_: pytest.fail("begun"), SimpleNamespace(), request)
    assert not answer.success
    assert "restart the server with the new weights and an empty folder" in answer.message


class Model(nn.Module):
    """Loads as SGLang's models do: what has no name here is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        from sglang.srt.model_loader.weight_utils import default_weight_loader

        parameters = dict(self.named_parameters())
        for name, loaded_weight in weights:
            if name in parameters:
                default_weight_loader(parameters[name], loaded_weight)


class Server:
    """SGLang's own handlers of updates and what they call, on rank 0 of two, with a target and a drafter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_models: int = 1, hooked: bool = True) -> None:
        from sglang.srt.managers.scheduler_components import weight_updater as managers
        from sglang.srt.model_executor.model_runner_components import weight_updater as runners

        self.theirs: str | None = None
        self.versions: list[Any] = []
        self.hooked = hooked
        self._runners = runners
        group = SimpleNamespace(all_gather_object=lambda reason: [reason, self.theirs])
        self._patch(monkeypatch, managers, runners, group)
        self.models = [Model() for _ in range(num_models)]
        roles = [(role, self._runner(model)) for role, model in zip(("target", "draft"), self.models, strict=False)]
        manager = object.__new__(managers.SchedulerWeightUpdaterManager)
        manager._session = managers._WeightUpdateSession(selector="all")
        manager.metrics_collector = manager.tp_cpu_group = None
        manager.scheduler = SimpleNamespace(record_weight_version_change=lambda **one: self.versions.append(one))
        manager.flush_cache = lambda **_: True
        manager.tp_worker = SimpleNamespace(
            deserialize_own_rank=lambda payload: payload,
            weight_update_runners=lambda: roles[:1],
            model_runner=roles[0][1],
        )
        manager.draft_worker = SimpleNamespace(weight_update_runners=lambda: roles[1:])
        self.manager = manager
        self.before = self.weights()

    def weights(self) -> list[torch.Tensor]:
        return [one.detach().clone() for model in self.models for one in model.parameters()]

    def is_unchanged(self) -> bool:
        return all(torch.equal(*pair) for pair in zip(self.before, self.weights(), strict=True))

    def update(self, way: str, weights: Any, **more: Any) -> Any:
        """Ask as a client does; `weights` are what comes, of a checkpoint what is in it."""
        self.incoming = weights
        handle = unwrap(getattr(type(self.manager), f"update_weights_from_{way}"))
        request = self._request(way, weights, more)
        return take_back_failures(handle, self.manager, request) if self.hooked else handle(self.manager, request)

    def _request(self, way: str, weights: Any, more: dict[str, Any]) -> Any:
        from sglang.srt.managers import io_struct

        if way == "disk":
            return io_struct.UpdateWeightFromDiskReqInput(model_path="new", load_format="auto", **more)
        if way == "tensor":
            request = io_struct.UpdateWeightsFromTensorReqInput(serialized_named_tensors=[], **more)
            request.serialized_named_tensors = weights
            return request
        if way == "ipc":
            return io_struct.UpdateWeightsFromIPCReqInput(zmq_handles={}, **more)
        return io_struct.UpdateWeightsFromDistributedReqInput(names=[], dtypes=[], shapes=[], **more)

    def _patch(self, monkeypatch: pytest.MonkeyPatch, managers: Any, runners: Any, group: Any) -> None:
        context = SimpleNamespace(tp_rank=0, tp_group=group)
        served = SimpleNamespace(model_path="old", load_format="auto", weight_cache_mode="off", custom_weight_loader=[])
        for module in (managers, runners):
            monkeypatch.setattr(module, "get_parallel", lambda: context)
            monkeypatch.setattr(module, "get_model", lambda: served)
        monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: context)
        monkeypatch.setattr("sglang.srt.runtime_context.get_model", lambda: served)
        monkeypatch.setattr(runners, "monkey_patch_torch_reductions", lambda: None)
        monkeypatch.setattr(runners, "get_pp_stage_load_group", lambda: None)
        monkeypatch.setattr(runners, "get_available_gpu_memory", lambda *args, **kw: 0.0)
        monkeypatch.setattr(runners, "get_model_loader", self._loader)
        monkeypatch.setattr(torch, "get_device_module", lambda _device: SimpleNamespace(current_device=lambda: "cpu"))
        monkeypatch.setattr(torch.distributed, "barrier", lambda group: None)
        monkeypatch.setattr(weight_updates, "is_device_path", lambda: False)
        extension = SimpleNamespace(SGLangCheckpointEngineWorkerExtensionImpl=self._extension)
        monkeypatch.setitem(
            __import__("sys").modules, "sglang.srt.checkpoint_engine.checkpoint_engine_worker", extension
        )

    def _loader(self, _load_config: Any, _model_config: Any) -> Any:
        """SGLang's loader of checkpoints, with what is incoming for its files."""
        from sglang.srt.model_loader.loader import DefaultModelLoader

        loader = object.__new__(DefaultModelLoader)
        loader._get_weights_iterator = lambda _source: iter(self.incoming)
        return loader

    def _extension(self, runner: Any) -> Any:
        return SimpleNamespace(update_weights_from_ipc=lambda _handles: runner.model.load_weights(self.incoming))

    def _runner(self, model: Model) -> Any:
        runner = SimpleNamespace(model=model, load_config="old config", fields=[])
        runner.update_model_fields = lambda model, **fields: runner.fields.append(fields)
        stock = self._runners.WeightUpdater(
            tp_rank=0,
            device="cpu",
            gpu_id=0,
            model_config=SimpleNamespace(
                model_path="old", dtype=torch.float32, revision=None, model_weights=None, model_override_args=None
            ),
            custom_weight_loaders={},
            get_model=lambda: model,
            update_model_fields=runner.update_model_fields,
            recapture_cuda_graph=lambda: None,
            get_model_runner=lambda: runner,
        )
        runner.weight_updater = _Hooked(stock, lambda: self.incoming) if self.hooked else stock
        return runner


HOOKS: dict[str, Callable[..., Any]] = {
    "update_weights_from_tensor": load_on_all_ranks,
    "load_weights_from_distributed": load_on_all_ranks,
    "update_weights_from_ipc": load_on_all_ranks,
    "update_weights_from_disk": load_checkpoint_on_all_ranks,
    "receive_weights_from_distributed": receive_on_all_ranks,
}
"""Of a runner's updater, as the patches say."""


class _Hooked:
    """A runner's updater whose methods go through our hooks, as the registry makes them go."""

    def __init__(self, stock: Any, incoming: Callable[[], Any]) -> None:
        self._stock, self._incoming = stock, incoming

    def __getattr__(self, name: str) -> Any:
        if name not in HOOKS:
            return getattr(self._stock, name)
        original = unwrap(getattr(type(self._stock), name))
        if name == "receive_weights_from_distributed":
            original = self._receive
        return lambda *args, **kwargs: HOOKS[name](original, self._stock, *args, **kwargs)

    def _receive(self, _updater: Any, **_kwargs: Any) -> Any:
        weights = self._incoming()
        if isinstance(weights, Exception):
            raise weights
        return weights


WAYS = ("disk", "tensor", "distributed", "ipc")


@pytest.mark.parametrize("num_models", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_weights_are_loaded(way: str, num_models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, num_models)
    answer = server.update(way, GOOD, weight_version="2")
    assert (answer.success, server.versions) == (True, [{"new_version": "2"}]), answer.message
    assert all(bool((one == 1.0).all()) for one in server.weights())


@pytest.mark.parametrize("num_models", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_an_update_that_fails_half_way_changes_nothing(
    way: str, num_models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(monkeypatch, num_models)
    answer = server.update(way, WRONG, weight_version="2")
    assert not answer.success
    assert "cannot be loaded by rank 0: " in answer.message
    assert "torch.Size([3, 3])" in answer.message
    assert answer.message.endswith("; the weights are those from before.")
    assert server.is_unchanged()
    assert server.versions == []
    assert server.update(way, GOOD).success, "the one after it is loaded"


@pytest.mark.parametrize("way", WAYS)
def test_what_another_rank_cannot_load_is_taken_back_here(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    server.theirs = "no such file"
    answer = server.update(way, GOOD, weight_version="2")
    assert not answer.success
    assert "by rank 1: no such file" in answer.message
    assert server.is_unchanged()
    assert server.versions == []


@pytest.mark.parametrize("way", WAYS)
def test_what_the_drafter_cannot_load_is_taken_back_from_the_target(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, num_models=2)
    server.models[1].second = nn.Linear(3, 3, bias=False)
    server.before = server.weights()
    assert not server.update(way, GOOD).success
    assert server.is_unchanged()


@pytest.mark.parametrize(("selector", "is_loaded"), [("target", True), ("draft", False)])
def test_a_selector_chooses_what_is_written(selector: str, is_loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, num_models=2)
    assert server.update("tensor", GOOD, selector=selector).success
    assert bool((server.models[0].first.weight == 1.0).all()) == is_loaded
    assert bool((server.models[1].first.weight == 1.0).all()) != is_loaded


@pytest.mark.parametrize("way", WAYS)
def test_an_update_of_which_nothing_is_loaded_is_a_failure(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    server.theirs = weight_updates.NOTHING
    answer = server.update(way, NONE)
    assert not answer.success
    assert "none of them is a weight of the model" in answer.message
    assert server.is_unchanged()


@pytest.mark.parametrize("way", ["tensor", "distributed", "ipc"])
def test_an_expert_of_another_rank_is_nothing_to_this_one(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    assert server.update(way, NONE).success
    server.theirs = weight_updates.NOTHING
    assert server.update(way, GOOD).success


def test_copies_are_given_back_before_graphs_are_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    copies: list[int] = []
    forget = weight_updates.UndoLog.forget

    def noted(log: Any) -> None:
        copies.append(len(log._saved))
        forget(log)

    monkeypatch.setattr(weight_updates.UndoLog, "forget", noted)
    monkeypatch.setattr(weight_updates, "is_device_path", lambda: True)
    monkeypatch.setattr(weight_updates, "_room_bytes", lambda _runners: 0)
    updater = server.manager.tp_worker.model_runner.weight_updater._stock

    def capture() -> None:
        log = weight_updates._log.get()
        assert log is not None
        assert not log._saved
        copies.append(-1)

    object.__setattr__(updater, "recapture_cuda_graph", capture)  # it is frozen
    assert server.update("disk", GOOD, recapture_cuda_graph=True).success
    assert copies == [2, -1, 0], "forgotten, captured, forgotten at the end"


def test_names_that_one_of_two_models_has_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, num_models=2)
    del server.models[1].first, server.models[1].second
    assert server.update("tensor", GOOD).success
    assert server.update("tensor", []).success


def test_part_of_a_model_is_sent_as_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    answer = server.update("disk", UNKNOWN)
    assert not answer.success
    assert "the checkpoint has no second.weight; send part of a model as tensors" in answer.message
    assert server.is_unchanged()
    assert server.update("tensor", UNKNOWN).success
    assert bool((server.models[0].first.weight == 1.0).all())


def test_a_checkpoint_that_was_taken_back_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    runner = server.manager.tp_worker.model_runner
    for theirs, weights in ((None, WRONG), ("cannot", GOOD)):
        server.theirs = theirs
        assert not server.update("disk", weights).success
        assert runner.weight_updater.model_config.model_path == "old"
        assert runner.fields[-1] == {"model_path": "old", "load_format": "auto", "load_config": "old config"}
    server.theirs = None
    assert server.update("disk", GOOD).success
    assert (runner.weight_updater.model_config.model_path, runner.fields[-1]["model_path"]) == ("new", "new")


def test_a_message_names_the_tensor_unless_reading_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short() -> Iterable[tuple[str, torch.Tensor]]:
        yield GOOD[0]
        raise OSError("the file is cut short")

    server = Server(monkeypatch)
    answer = server.update("tensor", WRONG)
    assert "rank 0: second.weight [3, 3] of torch.float32: AssertionError: Attempted to load" in answer.message
    answer = server.update("ipc", cut_short())
    assert "rank 0: the file is cut short" in answer.message
    assert server.is_unchanged()


def test_what_one_rank_cannot_receive_is_loaded_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    assert "received by rank 0: OSError: gone" in server.update("distributed", OSError("gone")).message
    server.theirs = "RuntimeError: gone"
    assert "received by rank 1: RuntimeError: gone" in server.update("distributed", GOOD).message
    assert server.is_unchanged()


@pytest.mark.parametrize("way", ["disk", "tensor"])
def test_stock_ends_over_it_half_written(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hooks are for."""
    server = Server(monkeypatch, hooked=False)
    with pytest.raises(AssertionError, match="Attempted to load"):
        server.update(way, WRONG)
    assert not server.is_unchanged()


def test_stock_goes_on_with_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, hooked=False)
    assert not server.update("ipc", WRONG).success
    assert not server.is_unchanged()


@pytest.mark.parametrize("way", ["disk", "tensor", "ipc"])
def test_stock_says_that_it_loaded_what_the_model_does_not_know(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, hooked=False)
    assert server.update(way, NONE, weight_version="2").success
    assert server.is_unchanged()
    assert server.versions == [{"new_version": "2"}]


def test_stock_leaves_what_a_checkpoint_lacks_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, hooked=False)
    assert server.update("disk", GOOD[:1]).success
    first, second = server.weights()
    assert bool((first == 1.0).all())
    assert torch.equal(second, server.before[1])


@pytest.mark.parametrize("way", ["disk", "ipc"])
@pytest.mark.parametrize("hooked", [False, True])
def test_new_weights_would_be_loaded_into_the_drafter_too(
    hooked: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why `engine.entry.memory` refuses them beside one: no selector comes with a checkpoint, nor with handles.

    Handles would be waited for a second time, and are sent once.
    """
    server = Server(monkeypatch, num_models=2, hooked=hooked)
    assert server.update(way, GOOD).success
    assert torch.equal(server.models[1].first.weight, GOOD[0][1]), "the target's weights"
