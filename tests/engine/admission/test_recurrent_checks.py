"""Which targets with recurrent layers are served, and what arguments are refused for them."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.engine.admission import recurrent_checks
from ddtree_sglang.engine.admission.recurrent_checks import (
    MAMBA2,
    RECURRENT_RULES,
    SERVED,
    check_recurrent_arguments,
    check_recurrent_target,
)
from ddtree_sglang.exceptions import DDTreeConfigError

pytestmark = pytest.mark.sglang

PLAIN: dict[str, Any] = {
    "attention_backend": "fa3",
    "prefill_attention_backend": None,
    "decode_attention_backend": None,
    "enable_int8_mamba_checkpoint": False,
    "enable_hierarchical_cache": False,
    "enable_linear_replayssm": False,
    "disable_overlap_schedule": True,
    "disable_radix_cache": False,
    "enable_lora": False,
    "enable_mamba_cache_stochastic_rounding": False,
    "enable_mixed_chunk": False,
    "enable_streaming_session": False,
    "linear_attn_backend": "triton",
    "linear_attn_decode_backend": None,
    "linear_attn_verify_backend": None,
    "lora_paths": None,
    "mamba_backend": "triton",
    "mamba_radix_cache_strategy": "extra_buffer",
    "mamba_track_interval": 256,
    "page_size": 1,
    "prefill_decode_interval": None,
    "speculative_num_steps": 7,
    "speculative_num_draft_tokens": 17,
}


def target(config: str, name: str, dtype: torch.dtype = torch.bfloat16, arch: str = "MHA") -> Any:
    """What the checks ask of SGLang's ModelConfig."""
    from sglang.srt import configs
    from sglang.srt.configs.model_config import AttentionArch
    from transformers import LlamaConfig

    hf_config = LlamaConfig() if config == "LlamaConfig" else getattr(configs, config)()
    hf_config.architectures = [name]
    return SimpleNamespace(
        hf_config=hf_config,
        attention_arch=AttentionArch[arch],
        dtype=dtype,
        is_draft_model=False,
        linear_attn_registry_result=None,
    )


def arguments(**changes: Any) -> Any:
    return SimpleNamespace(**PLAIN | changes)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent_checks, "is_device_path", lambda: True)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("FalconH1Config", "FalconH1ForCausalLM"),
        ("ZayaConfig", "ZayaForCausalLM"),
        # Gated delta nets of another model, whose kernels have more in them.
        ("JetNemotronConfig", "JetNemotronForCausalLM"),
    ],
)
def test_recurrent_layers_that_were_not_shown_are_refused(config: str, name: str) -> None:
    with pytest.raises(DDTreeConfigError, match=f"got {name}, whose states have not been shown to follow a tree"):
        check_recurrent_target(target(config, name))


def test_kimi_linear_is_refused_for_what_its_class_lacks() -> None:
    from sglang.srt.models.kimi_linear import KimiLinearForCausalLM

    assert not hasattr(KimiLinearForCausalLM, "set_dflash_layers_to_capture"), "a drafter could follow it now"
    with pytest.raises(DDTreeConfigError, match="got KimiLinearForCausalLM, whose class in SGLang hands its layers'"):
        check_recurrent_target(target("KimiLinearConfig", "KimiLinearForCausalLM"))


def test_minicpm_v_is_refused_for_what_sglang_does_with_any_server_of_it() -> None:
    for name in ("MiniCPMV", "MiniCPMV4_6ForConditionalGeneration", "MiniCPMV4_7ForConditionalGeneration"):
        with pytest.raises(DDTreeConfigError, match=f"got {name}, which this SGLang ends over .*; use another target"):
            check_recurrent_target(target("Qwen3NextConfig", name))


def test_a_target_that_never_attends_is_refused() -> None:
    with pytest.raises(DDTreeConfigError, match="got Mamba2ForCausalLM, whose states"):
        check_recurrent_target(target("LlamaConfig", "Mamba2ForCausalLM", arch="SSM"))


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("name", SERVED)
def test_gated_delta_nets_are_served(name: str) -> None:
    config = target("Qwen3NextConfig", name)
    check_recurrent_target(config)
    check_recurrent_arguments(config, arguments())
    check_recurrent_arguments(config, arguments(linear_attn_decode_backend="triton", mamba_track_interval=18))
    # Two rounds behind a kept length: 64 + 31 and 64 + 63 tokens.
    longest = arguments(mamba_track_interval=64, speculative_num_draft_tokens=33, speculative_num_steps=31)
    check_recurrent_arguments(config, longest)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"linear_attn_backend": "flashinfer"}, "give triton to --linear-attn-backend"),
        ({"linear_attn_decode_backend": "cutedsl"}, "give triton to --linear-attn-backend"),
        ({"linear_attn_verify_backend": "flashinfer"}, "give triton to --linear-attn-backend"),
        ({"enable_linear_replayssm": True}, "remove --enable-linear-replayssm"),
        ({"enable_int8_mamba_checkpoint": True}, "remove --enable-int8-mamba-checkpoint"),
        ({"mamba_radix_cache_strategy": "extra_buffer_lazy"}, "change --mamba-radix-cache-strategy"),
        ({"mamba_track_interval": 17}, "raise --mamba-track-interval"),
        (
            {"mamba_track_interval": 64, "speculative_num_draft_tokens": 40, "speculative_num_steps": 32},
            "raise --mamba-track-interval",
        ),
        ({"enable_mamba_cache_stochastic_rounding": True}, "remove --enable-mamba-cache-stochastic-rounding"),
        ({"enable_lora": True}, "remove --enable-lora and --lora-paths"),
        ({"lora_paths": ["first=adapter"]}, "remove --enable-lora and --lora-paths"),
        (
            {"enable_mixed_chunk": True, "mamba_radix_cache_strategy": "no_buffer"},
            "remove --enable-mixed-chunk, or let",
        ),
        ({"enable_mixed_chunk": True, "page_size": 64}, "let --page-size be 1"),
        ({"prefill_decode_interval": 4, "page_size": 64}, "remove --prefill-decode-interval or let"),
        ({"enable_streaming_session": True}, "remove --enable-streaming-session"),
    ],
)
@pytest.mark.usefixtures("on_device")
def test_what_advances_a_state_along_a_chain_is_refused(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(DDTreeConfigError, match=f"DDTREE for Qwen3NextForCausalLM, which has recurrent .*{found}"):
        check_recurrent_arguments(target("Qwen3NextConfig", "Qwen3NextForCausalLM"), arguments(**changes))
    check_recurrent_arguments(target("LlamaConfig", "LlamaForCausalLM"), arguments(**changes))


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("name", MAMBA2)
def test_what_only_mamba2_cannot_is_refused_for_that_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mamba, other = target("NemotronHConfig", name), target("Qwen3NextConfig", "Qwen3NextForCausalLM")
    check_recurrent_target(mamba)
    check_recurrent_arguments(mamba, arguments())
    flashinfer = arguments(mamba_backend="flashinfer")
    check_recurrent_arguments(other, flashinfer)
    with pytest.raises(DDTreeConfigError, match="give triton to --mamba-backend"):
        check_recurrent_arguments(mamba, flashinfer)
    monkeypatch.setenv(CONFIG_ENV, '{"policy": "load"}')
    check_recurrent_arguments(other, arguments())
    with pytest.raises(DDTreeConfigError, match="remove --speculative-ddtree-policy"):
        check_recurrent_arguments(mamba, arguments())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"disable_overlap_schedule": False}, "with a prefix cache where no rounds overlap"),
        ({"page_size": 16}, "add --disable-overlap-schedule and remove --page-size, or add --disable-radix-cache"),
        ({"attention_backend": "triton"}, "takes a first layer without keys"),
        ({"decode_attention_backend": "triton"}, "give fa3 or flashinfer to --attention-backend"),
        ({"enable_lora": True}, "has not been shown with adapters"),
        ({"enable_hierarchical_cache": True}, "bring inputs of convolutions back"),
    ],
)
@pytest.mark.usefixtures("on_device")
def test_what_sglang_sees_to_for_lfm2_alone_is_refused_for_the_class_with_images(
    changes: dict[str, Any], found: str
) -> None:
    images, text = target("Lfm2Config", "Lfm2VlForConditionalGeneration"), target("Lfm2Config", "Lfm2ForCausalLM")
    check_recurrent_arguments(images, arguments())
    check_recurrent_arguments(images, arguments(disable_overlap_schedule=False, page_size=16, disable_radix_cache=True))
    with pytest.raises(DDTreeConfigError, match=found):
        check_recurrent_arguments(images, arguments(**changes))
    if "enable_hierarchical_cache" not in changes:
        check_recurrent_arguments(text, arguments(**changes))


@pytest.mark.usefixtures("on_device")
def test_adapters_are_served_on_short_convolutions_mamba2_and_qwen35() -> None:
    adapters = arguments(enable_lora=True)
    check_recurrent_arguments(target("Lfm2Config", "Lfm2ForCausalLM"), adapters)
    check_recurrent_arguments(target("NemotronHConfig", "NemotronHForCausalLM"), adapters)
    for name in ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"):
        check_recurrent_arguments(target("Qwen3NextConfig", name), adapters)
    unshown = ("InternS2MobiusForConditionalGeneration", "NemotronHPuzzleForCausalLM", "NemotronH_Omni_Reasoning_V3")
    for name in ("KimiK3ForConditionalGeneration", "Qwen3_5ForCausalLM", *unshown):
        with pytest.raises(DDTreeConfigError, match="has not been shown with adapters"):
            check_recurrent_arguments(target("Qwen3NextConfig", name), adapters)


@pytest.mark.usefixtures("on_device")
def test_running_requests_take_part_in_prefills_of_which_no_wrong_state_is_kept() -> None:
    mamba, convolution = target("NemotronHConfig", "NemotronHForCausalLM"), target("Lfm2Config", "Lfm2ForCausalLM")
    mixed = arguments(enable_mixed_chunk=True)
    for served in (target("Qwen3NextConfig", "Qwen3NextForCausalLM"), mamba):
        check_recurrent_arguments(served, mixed)
        check_recurrent_arguments(served, arguments(enable_mixed_chunk=True, disable_radix_cache=True))
    with pytest.raises(DDTreeConfigError, match="keeps a wrong state of a request that ends in another one's prefill"):
        check_recurrent_arguments(mamba, arguments(enable_mixed_chunk=True, mamba_radix_cache_strategy="no_buffer"))
    check_recurrent_arguments(convolution, arguments(enable_mixed_chunk=True, disable_radix_cache=True))
    with pytest.raises(
        DDTreeConfigError, match=r"keeps wrong inputs of convolutions of .* or add --disable-radix-cache"
    ):
        check_recurrent_arguments(convolution, mixed)


def test_without_triton_kernels_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent_checks, "is_device_path", lambda: False)
    with pytest.raises(DDTreeConfigError, match="is served where SGLang launches Triton kernels"):
        check_recurrent_arguments(target("Qwen3NextConfig", "Qwen3NextForCausalLM"), arguments())


@pytest.mark.usefixtures("on_device")
def test_convolutions_that_round_their_inputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = target("Qwen3NextConfig", "Qwen3NextForCausalLM", torch.float16)
    with pytest.raises(DDTreeConfigError, match=r"float16, got torch.bfloat16: .*SGLANG_MAMBA_CONV_DTYPE=float16"):
        check_recurrent_arguments(config, arguments())
    monkeypatch.setenv("SGLANG_MAMBA_CONV_DTYPE", "float16")
    check_recurrent_arguments(config, arguments())


@pytest.mark.usefixtures("on_device")
def test_states_come_back_from_the_host_and_inputs_of_convolutions_do() -> None:
    host = arguments(enable_hierarchical_cache=True)
    check_recurrent_arguments(target("Qwen3NextConfig", "Qwen3NextForCausalLM"), host)
    check_recurrent_arguments(target("NemotronHConfig", "NemotronHForCausalLM"), host)
    for name in ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM"):
        check_recurrent_arguments(target("Lfm2Config", name), host)


def test_every_rule_is_one_of_those_that_are_tested() -> None:
    assert len(RECURRENT_RULES) == 18


@pytest.mark.parametrize(
    ("module", "family", "fits"),
    [
        ("qwen3_next", "Qwen3NextForCausalLM", False),
        ("qwen3_5_text", "Qwen3_5ForCausalLM", False),
        ("qwen3_5", "Qwen3_5ForConditionalGeneration", True),
    ],
)
def test_sglangs_buffers_of_adapters_do_not_fit_a_gated_q_proj(module: str, family: str, fits: bool) -> None:
    """What the refusal is for there: one class says how wide they are, others leave it to the default."""
    from sglang.srt.configs import Qwen3NextConfig
    from sglang.srt.lora.utils import get_hidden_dim
    from sglang.srt.models.qwen3_5 import Qwen3_5ForCausalLM

    class_of_model = getattr(import_module(f"sglang.srt.models.{module}"), family)
    model = torch.nn.Module.__new__(class_of_model)
    torch.nn.Module.__init__(model)
    config = Qwen3NextConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size=16)
    model.config = config
    if fits:
        model.model = torch.nn.Module.__new__(Qwen3_5ForCausalLM)
        torch.nn.Module.__init__(model.model)
        model.model.config = config
    _, rows = get_hidden_dim("qkv_proj", config, model, 0)
    gated = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    assert (rows == gated * config.head_dim) == fits


@pytest.mark.parametrize("with_adapters", [False, True])
def test_sglangs_layer_of_adapters_leaves_kimi_k3s_output_gate_out(
    with_adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the refusal is for there: the gate is in the projection's own forward, which the layer around it skips."""
    from sglang.srt.layers.linear import RowParallelLinear
    from sglang.srt.lora import layers
    from sglang.srt.models import kimi_k3

    generator = torch.Generator().manual_seed(0)
    hidden, attended, gates, weight = (torch.randn(4, 4, generator=generator) for _ in range(4))
    product = SimpleNamespace(apply=lambda layer, rows, bias=None: rows @ layer.weight.T)
    projection = RowParallelLinear.__new__(RowParallelLinear)
    torch.nn.Module.__init__(projection)
    told = {"weight": weight, "bias": None, "tp_group": None, "quant_method": product, "reduce_results": False}
    for name, value in (told | {"input_is_parallel": True, "skip_bias_add": False}).items():
        setattr(projection, name, value)
    monkeypatch.setattr(RowParallelLinear, "forward", lambda layer, rows: (product.apply(layer, rows), None))

    def latent_attention(layer: Any, **_: Any) -> None:
        torch.nn.Module.__init__(layer)
        layer.o_proj = projection

    one_rank = SimpleNamespace(attn_tp_group=SimpleNamespace(all_reduce=None))
    monkeypatch.setattr(layers, "get_parallel", lambda: one_rank)
    monkeypatch.setattr(kimi_k3.DeepseekV2AttentionMLA, "__init__", latent_attention)
    monkeypatch.setattr(kimi_k3, "ColumnParallelLinear", lambda *_, **__: lambda rows: (rows @ gates.T, None))
    sizes = ("hidden_size", "num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    sizes += ("q_lora_rank", "kv_lora_rank")
    config = SimpleNamespace(mla_use_output_gate=True, **dict.fromkeys(sizes, 4))
    attention = kimi_k3.KimiK3MLAAttention(config, 0)
    attention._gate_hidden_states = hidden
    idle = SimpleNamespace(get_batch_info=lambda: None)
    o_proj = layers.get_lora_layer(attention.o_proj, idle) if with_adapters else attention.o_proj
    answered, _ = o_proj(attended)
    gated = attended * torch.sigmoid(hidden @ gates.T)
    assert torch.allclose(answered, (attended if with_adapters else gated) @ weight.T)


@pytest.mark.parametrize(("first", "is_whole"), [(68, True), (66, False)])
def test_behind_a_chunk_that_ends_within_a_page_sglang_keeps_a_state_within_one(
    first: int, is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the refusals of larger pages are for: the cache keeps tokens by whole pages, so it keeps fewer under it."""
    from sglang.srt.managers import schedule_batch as module

    monkeypatch.setattr(module, "mamba_cache_chunk_size", lambda: 64)
    monkeypatch.setattr(module, "mamba_checkpoint_grid", lambda _page: 64)
    monkeypatch.setattr(module, "get_parallel", lambda: SimpleNamespace(dcp_enabled=False))
    lazy = SimpleNamespace(enable_mamba_extra_buffer_lazy=False)
    monkeypatch.setattr(module, "get_exec", lambda: SimpleNamespace(mamba=lazy))
    batch = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=None),
        tree_cache=SimpleNamespace(page_size=4),
        req_to_token_pool=SimpleNamespace(get_mamba_ping_pong_other_idx=lambda one: 1 - one),
    )
    kept = SimpleNamespace(mamba_next_track_idx=0)
    req = SimpleNamespace(prefix_len=first, extend_end=first + 70, extend_len=70, mamba_branching_seqlen=None, kv=kept)
    module.ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend(batch, req)
    assert kept.mamba_last_track_seqlen == first + 64
    assert (kept.mamba_last_track_seqlen % 4 == 0) == is_whole
