"""Adapters without a GPU: no memory is pinned, and what SGLang's torch backend gets wrong is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.cpu_platform.lora import (
    BACKEND,
    refuse_wrong_targets,
    resolve_backend,
    staying_where_it_is,
    without_pinning,
)

pytestmark = pytest.mark.sglang


def arguments(**changes: Any) -> Any:
    fields = {"enable_lora": True, "lora_paths": None, "lora_backend": "csgmv", "enable_lora_overlap_loading": None}
    return SimpleNamespace(**{**fields, **changes})


def test_a_module_with_our_torch_makes_ordinary_memory_and_has_the_rest_of_torch() -> None:
    ours: Any = without_pinning(torch)
    assert ours.tensor([1, 2], dtype=torch.int32, device="cpu", pin_memory=True).tolist() == [1, 2]
    assert ours.zeros((2,), pin_memory=True).tolist() == [0, 0]
    assert ours.Tensor is torch.Tensor
    with pytest.raises(AttributeError):
        _ = ours.no_such_name


def test_pinning_a_tensor_leaves_it_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.ones(2)
    pin = staying_where_it_is(lambda *_: torch.zeros(2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pin(tensor) is tensor
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pin(tensor).tolist() == [0, 0]


@pytest.mark.parametrize(("enabled", "expected"), [({"enable_lora": None}, "csgmv"), ({}, BACKEND)])
def test_only_a_server_with_adapters_gets_another_backend(enabled: dict[str, Any], expected: str) -> None:
    given = arguments(**enabled)
    resolve_backend(given)
    assert given.lora_backend == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_backend": "triton"}, "--lora-backend must be 'torch_native'.*got 'triton'"),
        ({"lora_paths": ["a=b"], "enable_lora": None, "lora_backend": "triton"}, "--lora-backend must be"),
        ({"enable_lora_overlap_loading": True}, "--enable-lora-overlap-loading needs a GPU"),
    ],
)
def test_what_needs_a_gpu_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_backend(arguments(**changes))


def test_adapters_of_the_head_are_refused_and_others_are_checked_as_before() -> None:
    seen = []

    def original(backend: Any, *, base_model: Any, target_modules: Any) -> None:
        seen.append((backend, base_model, target_modules))

    model = SimpleNamespace(config=SimpleNamespace(num_attention_heads=9, original_num_attention_heads=9))
    refuse_wrong_targets(original, "backend", model, {"q_proj"})
    assert seen == [("backend", model, {"q_proj"})]
    with pytest.raises(ValueError, match="LoRA adapters of lm_head are not supported on the CPU platform"):
        refuse_wrong_targets(original, "backend", model, {"q_proj", "lm_head"})


@pytest.mark.parametrize(
    ("name", "original", "padded"), [("intermediate_size", 48, 64), ("num_attention_heads", 9, 12)]
)
def test_a_target_whose_sizes_were_padded_is_refused(name: str, original: int, padded: int) -> None:
    """SGLang copies an adapter's matrices into buffers of the padded size when the first request asks for it."""
    config = SimpleNamespace(**{name: padded, f"original_{name}": original})
    with pytest.raises(ValueError, match=f"whose {name} SGLang padded on a CPU, from {original} to {padded}"):
        refuse_wrong_targets(lambda *_, **__: None, "backend", SimpleNamespace(config=config), {"q_proj"})


@pytest.mark.parametrize(("lengths", "is_right"), [([1, 1], True), ([3, 2], False), ([1, 2], True)])
def test_sglangs_torch_backend_adapts_the_head_by_whole_prompts(
    lengths: list[int], is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the refusal is for: of a prefill the head gets one row per request, the base model's and an adapter's."""
    from sglang.srt.lora.backend import torch_backend
    from sglang.srt.lora.layers import ParallelLMHeadWithLoRA
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    monkeypatch.setattr(torch_backend, "torch", without_pinning(torch))
    monkeypatch.setattr(torch.Tensor, "pin_memory", staying_where_it_is(torch.Tensor.pin_memory))
    batch = SimpleNamespace(
        batch_size=2,
        forward_mode=ForwardMode.EXTEND,
        extend_seq_lens=torch.tensor(lengths, dtype=torch.int32),
        extend_seq_lens_cpu=lengths,
    )
    backend = torch_backend.TorchNativeLoRABackend(2, torch.device("cpu"))
    backend.prepare_lora_batch(batch, [0, 1], [0, 1], [1.0, 1.0], use_cuda_graph=False)
    head = SimpleNamespace(
        lora_backend=backend,
        lm_head_A_buffer=torch.ones(2, 1, 4),
        lm_head_B_buffer=torch.ones(2, 5, 1),
        output_offset=None,
        output_offset_cpu=torch.tensor([0, 5]),
        _get_lm_head_batch_info=lambda rows: ParallelLMHeadWithLoRA._get_lm_head_batch_info(head, rows),
    )
    made = ParallelLMHeadWithLoRA.apply_lora(head, torch.zeros(2, 5), torch.ones(2, 4))
    assert bool((made[0] == 0).all())
    assert bool((made[1] == 4).all()) == is_right
