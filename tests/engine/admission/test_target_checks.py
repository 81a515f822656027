"""Which targets a tree is refused on: those where a backend or a layer would give wrong tokens without an error."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.admission.target_checks import (
    BACKEND_CLASSES,
    LATENT_BACKENDS,
    PAGED_PREFILLS,
    WIDTH_BACKENDS,
    WINDOW_BACKENDS,
    check_loaded_target,
    check_target,
    check_target_backend,
)
from ddtree_sglang.engine.attention_layers import has_sinks_without_window
from ddtree_sglang.exceptions import DDTreeConfigError

pytestmark = pytest.mark.sglang

FLASHINFER = ("flashinfer", "flashinfer")


def target(arch: str = "MHA", hf_config: Any = None, chunk: int | None = None) -> Any:
    """What the checks ask of SGLang's ModelConfig."""
    from sglang.srt.configs.model_config import AttentionArch
    from transformers import LlamaConfig

    config = hf_config if hf_config is not None else LlamaConfig()
    config.architectures = ["TestForCausalLM"]
    return SimpleNamespace(
        hf_config=config,
        attention_arch=AttentionArch[arch],
        attention_chunk_size=chunk,
        **dict.fromkeys(("has_asymmetric_kv", "is_hybrid_swa", "is_local_attention_model"), False),
        is_draft_model=False,
        linear_attn_registry_result=None,
    )


def test_plain_attention_is_served_by_every_tree_backend() -> None:
    for backend in ("flashinfer", "triton", "fa3", "ddtree_cpu"):
        check_target(target(), None, (backend, backend))


@pytest.mark.parametrize(
    ("rotation", "context_len", "is_served"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 4096}, 4097, False),
        ({"rope_type": "longrope", "original_max_position_embeddings": 4096}, 4096, True),
        ({"type": "longrope"}, 5000, False),
        ({"type": "longrope"}, 2048, True),
        ({"rope_type": "yarn", "original_max_position_embeddings": 4096}, 131072, True),
    ],
)
def test_a_rotation_that_is_one_for_a_whole_forward_is_refused(
    rotation: dict[str, Any], context_len: int, is_served: bool
) -> None:
    """A tree's nodes past the switch would rotate its root and its siblings, too."""
    one = target()
    one.context_len, one.hf_config.original_max_position_embeddings = context_len, 2048
    one.hf_config.rope_parameters = rotation
    with nullcontext() if is_served else pytest.raises(DDTreeConfigError, match=r"LongRoPE.* set --context-length"):
        check_target(one, None, ("triton", "triton"))


def test_sglangs_longrope_rotates_a_root_by_the_furthest_of_its_nodes() -> None:
    """What the refusal is for: plain decoding rotates the same token otherwise, where no node is ahead of it."""
    from sglang.srt.layers.rotary_embedding.rope_variant import Phi3LongRoPEScaledRotaryEmbedding

    short, width = 16, 8
    rotation = Phi3LongRoPEScaledRotaryEmbedding(
        width, width, 4 * short, short, 10000, True, torch.float32, [1.0] * (width // 2), [4.0] * (width // 2)
    )
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([short - 1, short, short + 1])

    def rotated(num_rows: int) -> torch.Tensor:
        return rotation(positions[:num_rows], rows[:num_rows], rows[:num_rows])[0]

    torch.testing.assert_close(rotated(2)[:1], rotated(1))
    assert (rotated(3)[:1] - rotated(1)).abs().max() > 1e-2


def loaded(model: torch.nn.Module, manager: Any = None) -> Any:
    """The runner of a loaded model, which hands its layers' states out; `manager` is SGLang's of LoRA adapters."""
    model.set_dflash_layers_to_capture = lambda layer_ids: None  # type: ignore[assignment]
    return SimpleNamespace(
        model_config=target(), sliding_window_size=None, page_size=1, model=model, lora_manager=manager
    )


@pytest.mark.parametrize(("has_manager", "of_experts"), [(False, False), (True, False), (True, True)])
def test_adapters_of_experts_are_refused(has_manager: bool, of_experts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import runtime_context

    monkeypatch.setattr(runtime_context, "attention_backends", lambda: ("fa3", "fa3"))
    manager = SimpleNamespace(lora_backend=SimpleNamespace(is_moe_lora=of_experts))
    runner = loaded(torch.nn.Sequential(), manager if has_manager else None)
    runner.model.lm_head = object()
    with pytest.raises(DDTreeConfigError, match="LoRA adapters of experts") if of_experts else nullcontext():
        check_loaded_target(runner)


def test_a_loaded_target_without_a_head_at_its_top_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang loads it, and the attribute would be missing when the worker is built."""
    from sglang.srt import runtime_context

    monkeypatch.setattr(runtime_context, "attention_backends", lambda: ("fa3", "fa3"))

    class WrappedTarget(torch.nn.Module):
        language_model = SimpleNamespace(lm_head=object())

    runner = loaded(WrappedTarget())
    with pytest.raises(DDTreeConfigError, match="got WrappedTarget, which has none at its top"):
        check_loaded_target(runner)
    runner.model.lm_head = object()
    check_loaded_target(runner)


def test_a_loaded_target_that_hands_no_layers_states_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import runtime_context

    monkeypatch.setattr(runtime_context, "attention_backends", lambda: ("fa3", "fa3"))
    runner = loaded(torch.nn.Sequential())
    runner.model.lm_head = object()
    check_loaded_target(runner)
    del runner.model.set_dflash_layers_to_capture
    with pytest.raises(DDTreeConfigError, match="got Sequential, whose class in SGLang hands none to a drafter"):
        check_loaded_target(runner)


class Layer(torch.nn.Module):
    """A layer's attention as SGLang's models have it: sinks under a name of the model, the window in `attn`."""

    def __init__(self, name: str, sinks: Any, window: int) -> None:
        super().__init__()
        setattr(self, name, sinks)
        self.attn = SimpleNamespace(sliding_window_size=window)


@pytest.mark.parametrize("name", ["sinks", "attention_sink_bias"])
@pytest.mark.parametrize(
    ("windows", "has_sinks", "found"),
    [
        ((127, -1), True, True),  # gpt-oss
        ((127, 127), True, False),
        ((127, -1), False, False),
        ((-1, -1), True, True),
    ],
)
def test_sinks_that_a_merge_of_prefix_and_nodes_would_count_twice(
    name: str, windows: tuple[int, int], has_sinks: bool, found: bool
) -> None:
    sinks = torch.nn.Parameter(torch.zeros(4)) if has_sinks else None
    model = torch.nn.Sequential(*(Layer(name, sinks, window) for window in windows))
    assert has_sinks_without_window(model) is found


class RadixAttention(torch.nn.Module):
    """By this name layers that attend are found."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.sliding_window_size = window


@pytest.mark.parametrize(
    ("windows", "backend", "refused"),
    [
        ((127, -1), "triton", None),
        ((127, 63), "triton", r"windows of one length on triton, got \[63, 127\] in Sequential, and 127"),
        ((127, 63), "fa3", None),
        ((127, -1), "flashinfer", None),
        ((127, 0), "fa3", "two tokens at least, got one in Sequential"),
        ((127, 63), "flashinfer", r"windows of one length on flashinfer, got \[63, 127\] in Sequential, and 127"),
    ],
)
def test_windows_that_one_table_of_keys_cannot_hold_are_refused(
    windows: tuple[int, int], backend: str, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt import runtime_context

    monkeypatch.setattr(runtime_context, "attention_backends", lambda: (backend, backend))
    monkeypatch.setenv(PAGED_PREFILLS, "1")
    runner = loaded(torch.nn.Sequential(*map(RadixAttention, windows)))
    runner.sliding_window_size, runner.model.lm_head = 127, torch.nn.Identity()
    with pytest.raises(DDTreeConfigError, match=refused) if refused else nullcontext():
        check_loaded_target(runner)


@pytest.mark.parametrize("backend", ["triton", "flashinfer", "fa3", "ddtree_cpu"])
def test_windows_that_the_server_does_not_know_of_are_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their class tells SGLang of none, and FA3 then prepares no window for a tree's nodes."""
    monkeypatch.setattr("sglang.srt.runtime_context.attention_backends", lambda: (backend, backend))
    runner = loaded(torch.nn.Sequential(*map(RadixAttention, (-1, 511))))
    runner.sliding_window_size, runner.model.lm_head = None, torch.nn.Identity()
    with pytest.raises(DDTreeConfigError, match=r"got \[511\] in layers of Sequential and none for the server"):
        check_loaded_target(runner)


@pytest.mark.parametrize("backends", [FLASHINFER, ("ddtree_cpu", "ddtree_cpu"), ("triton", "flashinfer")])
def test_latent_attention_is_refused_where_a_backend_drops_the_mask(backends: tuple[str, str]) -> None:
    wrong = next(one for one in backends if one != "triton")
    with pytest.raises(DDTreeConfigError, match=rf"latent attention \(MLA\), one of .*, got {wrong} for TestFor"):
        check_target(target("MLA"), None, backends)


@pytest.mark.parametrize("backend", LATENT_BACKENDS)
def test_latent_attention_is_served_where_a_backend_reads_the_mask(backend: str) -> None:
    check_target(target("MLA"), None, (backend, backend))


def test_sparse_attention_is_refused() -> None:
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(index_topk=2048)
    sparse = target("MLA", config)
    config.architectures = ["DeepseekV32ForCausalLM"]
    with pytest.raises(DDTreeConfigError, match=r"got DeepseekV32ForCausalLM with an indexer"):
        check_target(sparse, None, ("triton", "triton"))


def test_chunked_attention_is_refused() -> None:
    with pytest.raises(DDTreeConfigError, match="chunks of 8192"):
        check_target(target(chunk=8192), 8192, ("fa3", "fa3"))


def test_a_number_of_chunks_that_no_layer_reads_is_served() -> None:
    """MiMo-V2's configurations have one (models/mimo_v2.py reads none); its windows are SGLang's of hybrid models."""
    one = target(chunk=128)
    one.is_hybrid_swa = True
    check_target(one, 128, ("fa3", "fa3"))
    one.is_local_attention_model = True
    with pytest.raises(DDTreeConfigError, match="chunks of 128"):
        check_target(one, 128, ("fa3", "fa3"))


@pytest.mark.parametrize("backend", WINDOW_BACKENDS)
def test_values_of_another_width_than_keys_are_served_where_a_backend_reads_them(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.arg_groups.kv_cache_hook import ASYMMETRIC_KV_BACKENDS

    assert {*WIDTH_BACKENDS} == {*ASYMMETRIC_KV_BACKENDS} & {*WINDOW_BACKENDS}
    monkeypatch.setenv(PAGED_PREFILLS, "1")
    one = target()
    one.has_asymmetric_kv = True
    wrong = pytest.raises(DDTreeConfigError, match=rf"values of another width than keys, one of .*, got {backend} for")
    with nullcontext() if backend in WIDTH_BACKENDS else wrong:
        check_target(one, 128, (backend, backend))
    latent = target("MLA")
    latent.has_asymmetric_kv = True
    check_target(latent, None, ("triton", "triton"))


@pytest.mark.parametrize("backends", [("fa4", "fa4"), ("fa3", "torch_native"), ("trtllm_mha", "triton")])
def test_window_is_refused_where_a_backend_does_not_place_it_per_node(backends: tuple[str, str]) -> None:
    with pytest.raises(DDTreeConfigError, match=r"--attention-backend triton or"):
        check_target(target(), 1024, backends)


@pytest.mark.parametrize("backend", WINDOW_BACKENDS)
def test_window_is_served_where_it_follows_positions(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PAGED_PREFILLS, "1")
    check_target(target(), 1024, (backend, backend))


@pytest.mark.parametrize("backends", [FLASHINFER, ("fa3", "flashinfer"), ("flashinfer", "triton")])
def test_window_is_refused_on_flashinfer_where_a_prefill_leaves_it_out(
    backends: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SGLang does there: tests/device_lane/test_windows_on_flashinfer.py."""
    monkeypatch.delenv(PAGED_PREFILLS, raising=False)
    with pytest.raises(DDTreeConfigError, match=r"with a window of 1024, .* set SGLANG_FLASHINFER_USE_PAGED=1, or"):
        check_target(target(), 1024, backends)
    check_target(target(), None, backends)


def test_worker_refuses_a_window_that_only_the_loaded_model_knows_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.engine import worker

    monkeypatch.setenv("DDTREE_CONFIG", '{"policy": "fixed"}')
    monkeypatch.setattr(worker, "get_spec", lambda: SimpleNamespace(speculative_num_draft_tokens=17))
    monkeypatch.setattr("sglang.srt.runtime_context.attention_backends", lambda: ("flashinfer", "triton"))
    runner = SimpleNamespace(model_config=target(), sliding_window_size=1024)
    with pytest.raises(DDTreeConfigError, match=r"got flashinfer .* with a window of 1024"):
        worker.DDTreeWorker(SimpleNamespace(), 0, 0, SimpleNamespace(model_runner=runner))


def named(name: str, **parts: Any) -> Any:
    """An object of a class of that name."""
    made = type(name, (), {})()
    vars(made).update(parts)
    return made


OWN_CACHE = {"kv_cache_dtype": torch.bfloat16, "dtype": torch.bfloat16, "model": torch.nn.Identity()}


@pytest.mark.parametrize("name", BACKEND_CLASSES)
def test_backends_that_honour_a_mask_are_taken_alone_and_in_pairs(name: str) -> None:
    runner = SimpleNamespace(**OWN_CACHE, model_config=target(), attn_backend=named(name))
    check_target_backend(runner)
    pair = named("HybridAttnBackend", prefill_backend=named(name), decode_backend=named(name))
    runner.attn_backend = pair
    check_target_backend(runner)
    runner.attn_backend = named(
        "HybridLinearAttnBackend", full_attn_backend=pair, linear_attn_backend=named("GDNAttnBackend")
    )
    check_target_backend(runner)


@pytest.mark.parametrize("wrapper", ["MiniMaxHybridAttnBackend", "TRTLLMHAAttnBackend"])
def test_a_target_for_which_sglang_builds_another_backend_is_refused(wrapper: str) -> None:
    """MiniMax-M3's sparse layers attend in a backend that takes no mask, while `--attention-backend` says fa3."""
    wrapped = named(wrapper, full_attn_backend=named("FlashAttentionBackend"))
    for backend in (
        wrapped,
        named("HybridAttnBackend", prefill_backend=wrapped, decode_backend=named("TritonAttnBackend")),
        named("HybridAttnBackend", prefill_backend=named("TritonAttnBackend"), decode_backend=wrapped),
    ):
        with pytest.raises(DDTreeConfigError, match=f"got TestForCausalLM, for which SGLang builds {wrapper}; use"):
            check_target_backend(SimpleNamespace(model_config=target(), attn_backend=backend))


def test_recurrent_layers_of_another_backend_are_refused() -> None:
    backend = named(
        "HybridLinearAttnBackend",
        full_attn_backend=named("TritonAttnBackend"),
        linear_attn_backend=named("LightningAttentionBackend"),
    )
    with pytest.raises(DDTreeConfigError, match="for which SGLang builds LightningAttentionBackend; use"):
        check_target_backend(SimpleNamespace(model_config=target(), attn_backend=backend))
