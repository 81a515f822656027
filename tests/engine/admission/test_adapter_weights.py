"""An adapter that one rank cannot load, or that fits nowhere, is loaded by none, and nothing of it is left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.admission.adapter_weights import (
    check_adapters_of_the_start,
    load_tensors_where_they_fit,
    load_where_it_fits,
)

REF = SimpleNamespace(lora_id="1", lora_name="mine", pinned=True)


class Pool:
    """Copies as SGLang's does: by shape, into the slot of a layer's buffer."""

    def __init__(self) -> None:
        self.A_buffer = {"q_proj": [torch.full((3, 4, 8), 5.0)]}
        self.B_buffer = {"q_proj": [torch.full((3, 8, 4), 5.0)]}
        self.embedding_A_buffer = {"embed_tokens": torch.full((3, 4, 16), 5.0)}
        self.embedding_B_buffer = self.lm_head_A_buffer = self.lm_head_B_buffer = self.new_embeddings_buffer = {}

    def load_lora_weight_to_buffer(self, uid: str, slot: int, adapter: Any, modules: Any, *_more: Any) -> None:
        view = self.A_buffer["q_proj"][0][slot]
        assert view.shape == adapter.shape, f"LoRA buffer shape {view.shape} does not match weight shape"
        view.copy_(adapter)
        self.embedding_A_buffer["embed_tokens"][slot].zero_()


class Manager:
    """What loading an adapter notes."""

    def __init__(self, with_pool: bool = True) -> None:
        self.loras: dict[str, Any] = {}
        self.configs: dict[str, Any] = {}
        self.lora_refs: dict[str, Any] = {}
        self.num_pinned_loras = 0
        self.lora_modules = self.embed_tokens_module = self.lm_head_module = None
        if with_pool:
            self.memory_pool = Pool()

    def create_lora_update_result(self, success: bool, error_message: str = "") -> Any:
        return SimpleNamespace(success=success, error_message=error_message, loaded_adapters=list(self.lora_refs))

    def is_empty(self) -> bool:
        return not (self.loras or self.configs or self.lora_refs or self.num_pinned_loras)


def loading(weights: torch.Tensor | None) -> Any:
    """Stock's loading, which looks at no shape; None for files that it cannot read, of which it keeps the config."""

    def load(manager: Manager, ref: Any) -> Any:
        manager.configs[ref.lora_id] = "config"
        if weights is None:
            return manager.create_lora_update_result(False, "no safetensors")
        manager.loras[ref.lora_id], manager.lora_refs[ref.lora_id] = weights, ref
        manager.num_pinned_loras += int(ref.pinned)
        return manager.create_lora_update_result(True)

    return load


@pytest.fixture(autouse=True)
def theirs(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What the other one of two ranks says."""
    said: list[str | None] = [None]
    group = SimpleNamespace(all_gather_object=lambda reason: [reason, *said])
    monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: SimpleNamespace(tp_group=group))
    return said


def test_one_that_fits_is_loaded_and_no_slot_is_written() -> None:
    manager = Manager()
    assert load_where_it_fits(loading(torch.ones(4, 8)), manager, REF).success
    assert manager.num_pinned_loras == 1
    assert bool((manager.memory_pool.A_buffer["q_proj"][0] == 5.0).all())
    assert bool((manager.memory_pool.embedding_A_buffer["embed_tokens"] == 5.0).all())


@pytest.mark.parametrize(
    ("weights", "reason"), [(torch.ones(4, 7), "does not match weight shape"), (None, "no safetensors")]
)
def test_one_that_cannot_be_loaded_leaves_nothing(weights: torch.Tensor | None, reason: str) -> None:
    manager = Manager()
    result = load_where_it_fits(loading(weights), manager, REF)
    assert not result.success
    assert reason in result.error_message
    assert result.loaded_adapters == []
    assert manager.is_empty()


def test_what_another_rank_cannot_load_is_not_loaded_here(theirs: list[str | None]) -> None:
    theirs[0] = "no such file"
    manager = Manager()
    result = load_where_it_fits(loading(torch.ones(4, 8)), manager, REF)
    assert "cannot be loaded by rank 1: no such file" in result.error_message
    assert manager.is_empty()


def test_tensors_that_a_rank_cannot_read_are_loaded_by_none(theirs: list[str | None]) -> None:
    """The others do not wait for it: it says so where they meet."""
    manager = Manager()
    worker = SimpleNamespace(model_runner=SimpleNamespace(lora_manager=manager))
    request = SimpleNamespace(to_ref=lambda: REF)

    def unreadable(_worker: Any, _request: Any) -> Any:
        raise EOFError("Ran out of input")

    result = load_tensors_where_they_fit(unreadable, worker, request)
    assert "EOFError: Ran out of input" in result.error_message
    theirs[0] = "EOFError"
    load = loading(torch.ones(4, 8))
    assert not load_tensors_where_they_fit(lambda *_: load(manager, REF), worker, request).success
    assert manager.is_empty()
    theirs[0] = None
    assert load_tensors_where_they_fit(lambda *_: load(manager, REF), worker, request).success


def test_adapters_of_the_start_are_looked_at_once_there_is_a_pool() -> None:
    manager = Manager(with_pool=False)
    assert load_where_it_fits(loading(torch.ones(4, 7)), manager, REF).success
    manager.memory_pool = Pool()
    with pytest.raises(ValueError, match="adapter mine of --lora-paths does not fit the model: AssertionError"):
        check_adapters_of_the_start(None, manager)
    manager.loras["1"] = torch.ones(4, 8)
    check_adapters_of_the_start(None, manager)


@pytest.mark.sglang
def test_sglangs_ranks_do_not_agree_on_an_adapter_that_is_loaded_meanwhile() -> None:
    """Why loading beside a running batch is refused: one rank would prefill its request, and another one would not."""
    from sglang.srt.lora.lora_overlap_loader import LoRAOverlapLoader

    def is_loaded(is_copied: bool) -> bool:
        rank = object.__new__(LoRAOverlapLoader)
        rank.device_module = SimpleNamespace(current_stream=lambda: SimpleNamespace(wait_event=lambda _event: None))
        rank.lora_manager = SimpleNamespace(memory_pool=SimpleNamespace(uid_to_buffer_id={"mine": 0}))
        rank.lora_to_overlap_load_event = {"mine": SimpleNamespace(query=lambda: is_copied)}
        return rank.try_overlap_load_lora("mine", set())

    assert [is_loaded(True), is_loaded(False)] == [True, False]
