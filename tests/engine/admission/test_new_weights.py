"""New weights that some rank cannot read change nothing on any rank, and their client hears why."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.admission import weight_updates
from ddtree_sglang.engine.admission.new_weights import answer_unreadable_weights, read_on_all_ranks

pytestmark = pytest.mark.sglang


@pytest.fixture(autouse=True)
def _no_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_updates, "keeps_keys_in_files", lambda: False)


NAMED = [("a.weight", torch.ones(2)), ("b.weight", torch.zeros(3))]


class Updating:
    """SGLang's own handler of an update on rank 0 of two, up to the runner that loads; rank 1 finds `theirs`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sglang.srt.managers.scheduler_components import weight_updater as module
        from sglang.srt.managers.tp_worker import TpModelWorker

        self.loaded: list[Any] = []
        self.met = 0
        self.theirs: str | None = None
        self._handle: Callable[..., Any] = unwrap(module.SchedulerWeightUpdaterManager.update_weights_from_tensor)
        read = unwrap(TpModelWorker.deserialize_own_rank)
        group = SimpleNamespace(all_gather_object=lambda reason: [reason, self.theirs])
        context = SimpleNamespace(tp_rank=0, tp_group=group)
        monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: context)
        monkeypatch.setattr("sglang.srt.managers.tp_worker.get_parallel", lambda: context)
        # It changes how this process serializes tensors from then on.
        monkeypatch.setattr("sglang.srt.managers.tp_worker.monkey_patch_torch_reductions", lambda: None)
        names = SimpleNamespace(custom_weight_loader=["my.loader"])
        monkeypatch.setattr("sglang.srt.runtime_context.get_model", lambda: names)
        monkeypatch.setattr(torch.distributed, "barrier", self._meet)
        updater = object.__new__(module.SchedulerWeightUpdaterManager)
        updater._session = module._WeightUpdateSession(selector="all")
        updater.metrics_collector = updater.tp_cpu_group = None
        updater.scheduler = SimpleNamespace(record_weight_version_change=lambda **_: None)
        updater.flush_cache = lambda **_: True
        runner = SimpleNamespace(weight_updater=self, model=torch.nn.Linear(2, 2))
        updater.tp_worker = SimpleNamespace(
            deserialize_own_rank=lambda payloads: read_on_all_ranks(read, updater.tp_worker, payloads),
            weight_update_runners=lambda: [("target", runner)],
        )
        updater.draft_worker = None
        self.updater = updater

    def update_weights_from_tensor(self, named_tensors: Any, load_format: str | None) -> tuple[bool, str]:
        """What the runner would load."""
        self.loaded.append(named_tensors)
        return True, "Success"

    def _meet(self, group: Any) -> None:
        self.met += 1

    def update(self, payload: bytes, load_format: str | None = None) -> Any:
        from sglang.srt.managers.io_struct import UpdateWeightsFromTensorReqInput

        request = UpdateWeightsFromTensorReqInput(serialized_named_tensors=[payload, b""], load_format=load_format)
        return answer_unreadable_weights(self._handle, self.updater, request)


@pytest.fixture
def updating(monkeypatch: pytest.MonkeyPatch) -> Updating:
    return Updating(monkeypatch)


def serialized(weights: Any) -> bytes:
    from sglang.srt.utils.common import MultiprocessingSerializer

    return bytes(MultiprocessingSerializer.serialize(weights))


@pytest.mark.parametrize("load_format", [None, "direct", "my.loader"])
def test_weights_are_loaded(load_format: str | None, updating: Updating) -> None:
    answer = updating.update(serialized(NAMED), load_format)
    assert (answer.success, updating.met) == (True, 1)
    ((found,),) = [updating.loaded]
    assert [name for name, _ in found] == ["a.weight", "b.weight"]
    assert torch.equal(found[0][1], torch.ones(2))


def test_a_bucket_is_loaded(updating: Updating) -> None:
    bucket = {"flattened_tensor": torch.ones(2), "metadata": []}
    assert updating.update(serialized(bucket), "flattened_bucket").success


def test_a_tensor_for_each_rank_is_read(updating: Updating) -> None:
    from sglang.srt.model_executor.model_runner_components.weight_updater import LocalSerializedTensor

    of_ranks = LocalSerializedTensor([serialized(torch.ones(2)), b"another rank's"])
    assert updating.update(serialized([("a.weight", of_ranks)])).success
    assert torch.equal(updating.loaded[0][0][1], torch.ones(2))
    assert not updating.update(serialized([("a.weight", LocalSerializedTensor([b"no pickle"]))])).success


@pytest.mark.parametrize(
    ("payload", "load_format", "named"),
    [
        (b"no pickle", None, "rank 0: UnpicklingError"),
        (b"", None, "rank 0: EOFError"),
        (pickle.dumps(print), None, "rank 0: RuntimeError"),
        (pickle.dumps(5), None, "not iterable"),
        (pickle.dumps(["ab", "c"]), None, "expected pairs of a name and a tensor, got str and str"),
        (pickle.dumps({"a": 1}), "flattened_bucket", "expected an object of flattened_tensor and metadata, got dict"),
        (pickle.dumps([]), "flattened_bucket", "got list"),
        (b"", "sideways", "one of direct, flattened_bucket, my.loader, got 'sideways'"),
    ],
    ids=["no pickle", "nothing", "a function", "no list", "no pairs", "no bucket", "a list", "a format"],
)
def test_what_cannot_be_read_changes_nothing(
    payload: bytes, load_format: str | None, named: str, updating: Updating
) -> None:
    answer = updating.update(payload, load_format)
    assert not answer.success
    assert named in answer.message
    # No rank waits for others at the end of an update that was none.
    assert (updating.loaded, updating.met) == ([], 0)


def test_what_another_rank_cannot_read_changes_nothing_here(updating: Updating) -> None:
    updating.theirs = "EOFError: Ran out of input"
    answer = updating.update(serialized(NAMED))
    assert not answer.success
    assert answer.message == "serialized_named_tensors cannot be read by rank 1: EOFError: Ran out of input"
    assert (updating.loaded, updating.met) == ([], 0)


def test_an_adapters_tensors_are_read_as_before() -> None:
    assert read_on_all_ranks(lambda worker, payloads: {"lora_A": payloads}, None, 3) == {"lora_A": 3}


def test_stock_ends_over_it(updating: Updating, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hooks are for: the handler itself raises."""
    from sglang.srt.managers.tp_worker import TpModelWorker

    read = unwrap(TpModelWorker.deserialize_own_rank)
    updating.updater.tp_worker.deserialize_own_rank = lambda payloads: read(None, payloads)
    request = SimpleNamespace(serialized_named_tensors=[b"no pickle"], load_format=None, selector="all")
    with pytest.raises(pickle.UnpicklingError):
        updating._handle(updating.updater, request)
