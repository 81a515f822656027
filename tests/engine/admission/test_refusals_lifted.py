"""What a refusal is for that no scene of the device lane shows: with it taken away, what SGLang does next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.cpu_platform import server_defaults
from ddtree_sglang.engine.admission import server_args as admission
from tests.engine.admission.bare_models import asked_for_states, bare
from tests.engine.admission.machines import HOPPER, platform

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Take the rule with these words away."""

    def take(words: str) -> None:
        left = tuple(rule for rule in admission.ARGUMENT_RULES if words not in rule.message)
        assert len(left) == len(admission.ARGUMENT_RULES) - 1
        monkeypatch.setattr(admission, "ARGUMENT_RULES", left)

    return take


def checked(pair: tuple[str, str], **given: Any) -> None:
    """Resolve a server's arguments and let SGLang check them, as it does before it starts processes."""
    from sglang.srt.server_args import ServerArgs

    arguments = {"model_path": pair[0], "speculative_draft_model_path": pair[1], "speculative_algorithm": "DDTREE"}
    server_args = ServerArgs(**{**arguments, "skip_tokenizer_init": True, **given})
    server_args.resolve_once()
    server_args.check_server_args()


ON_A_GPU = {"device": "cuda", "dtype": "bfloat16", "attention_backend": "fa3", "disable_overlap_schedule": True}


def test_sglang_starts_no_pipeline_with_another_algorithm_than_eagle(pair: tuple[str, str], without: Any) -> None:
    """Why pipeline parallelism is refused; SGLang says so without the reason."""
    without("on one pipeline stage")
    with platform(HOPPER):
        checked(pair, **ON_A_GPU)
        with pytest.raises(AssertionError, match="Pipeline parallelism currently only supports EAGLE"):
            checked(pair, **ON_A_GPU, pp_size=2)


def test_nor_does_sglang_on_the_cpu_platform(
    pair: tuple[str, str], without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("on one pipeline stage")
    monkeypatch.setattr(server_defaults, "_check_switches", lambda _server_args: None)
    checked(pair, dtype="float32")
    with pytest.raises(AssertionError, match="Pipeline parallelism currently only supports EAGLE"):
        checked(pair, dtype="float32", pp_size=2)


def test_sglang_marks_no_tokens_of_another_algorithm_than_its_own(pair: tuple[str, str], without: Any) -> None:
    """Why watermarks are refused; SGLang says so without the reason."""
    without("marks no tree's nodes")
    with platform(HOPPER), pytest.raises(ValueError, match="supports speculative algorithms NGRAM, EAGLE, and EAGLE3"):
        checked(pair, **ON_A_GPU, enable_watermark=True)
    with pytest.raises(ValueError, match="requires --device cuda, got 'cpu'"):
        checked(pair, dtype="float32", enable_watermark=True)


@pytest.mark.parametrize("overlaps", [False, True])
def test_sglang_hands_no_states_out_where_two_batches_overlap(
    overlaps: bool, pair: tuple[str, str], without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why it is refused: without DP attention SGLang has none, and with it the drafter would have nothing to read."""
    from sglang.srt.models import qwen2_moe
    from sglang.srt.models.qwen3_moe import Qwen3MoeModel

    without("does not support two-batch overlap")
    with platform(HOPPER), pytest.raises(ValueError, match=r"attention DP \(--attn-dp-size\) is required"):
        checked(pair, **ON_A_GPU, enable_two_batch_overlap=True)
    monkeypatch.setattr(server_defaults, "_check_switches", lambda _server_args: None)
    with pytest.raises(ValueError, match=r"attention DP \(--attn-dp-size\) is required"):
        checked(pair, dtype="float32", enable_two_batch_overlap=True)

    def layer(_positions: Any, hidden: Any, _batch: Any, captured_last_layer_outputs: Any) -> Any:
        captured_last_layer_outputs.append(hidden)
        return hidden

    monkeypatch.setattr(qwen2_moe, "check_cuda_graph_backend", lambda *_: True)
    monkeypatch.setattr(qwen2_moe, "model_forward_stages", lambda hidden_states, **_: hidden_states)
    monkeypatch.setattr(qwen2_moe.residual_batch, "final_norm", lambda hidden, *_, **_given: hidden)
    layer._is_layer_to_capture = True  # type: ignore[attr-defined]
    whole = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    model = SimpleNamespace(pp_group=whole, layers=[layer, layer], start_layer=0, end_layer=2, norm=None)
    given = torch.zeros(3, 8)
    out = Qwen3MoeModel.forward(model, None, None, SimpleNamespace(can_run_tbo=overlaps), input_embeds=given)
    assert out is given if overlaps else len(out[1]) == 2


@pytest.mark.parametrize("place", ["gemma3_causal:Gemma3ForCausalLM", "kimi_linear:KimiLinearForCausalLM"])
def test_sglang_ends_over_a_class_that_hands_no_states_to_a_drafter(place: str) -> None:
    """Why it is refused: the target would have been loaded by then."""
    with pytest.raises(ValueError, match="implements neither set_dspark_layers_to_capture nor set_dflash_layers_to"):
        asked_for_states(bare(place))
    served = bare("llama:LlamaForCausalLM")
    served.model, served.pp_group = bare("llama:LlamaModel"), SimpleNamespace(is_last_rank=True)
    asked_for_states(served)
    assert served.model.layers_to_capture == [1, 3]


def test_sglang_ends_over_layers_of_qwen3_vl_that_lack_what_their_class_asks_them_for() -> None:
    """Why it and Cosmos3 are refused: the target would have been loaded by then."""
    for place in ("cosmos3:Cosmos3ForConditionalGeneration", "qwen3_vl:Qwen3VLForConditionalGeneration"):
        model = bare(place)
        model.model, model.pp_group = bare("qwen3_vl:Qwen3LLMModel"), SimpleNamespace(is_last_rank=True)
        with pytest.raises(AttributeError, match="'Qwen3LLMModel' object has no attribute 'set_dflash_layers_to_capt"):
            asked_for_states(model)


@pytest.mark.parametrize("is_graph", [False, True], ids=["eager", "graph"])
def test_sglang_plans_latent_attention_on_flashinfer_without_a_trees_mask(
    is_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why it is refused, whatever the class: the mask that a tree hands over is in no plan, which is a chain's."""
    from sglang.srt.layers.attention import flashinfer_mla_backend as module

    from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput

    mask, tree = torch.ones(35, dtype=torch.bool), DDTreeVerifyInput.__new__(DDTreeVerifyInput)
    arguments = torch.arange(7), torch.tensor([0, 7]), torch.tensor([0, 5]), mask
    monkeypatch.setattr(DDTreeVerifyInput, "generate_attn_arg_prefill", lambda _own, **_given: arguments)
    plans: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module, "fast_mla_decode_plan", lambda *given: plans.append(given[1:]))
    own = SimpleNamespace(
        attn_backend=SimpleNamespace(kv_index_translator=None),
        **{"scaling": 1.0, "data_type": torch.float16, "q_data_type": torch.float16},
        **{"num_local_heads": 2, "kv_lora_rank": 32, "qk_rope_head_dim": 16},
    )
    kept = ("kv_indices_buf", "qo_indptr_cpu", "kv_indptr_cpu", "kv_len_arr_cpu")
    module.FlashInferMLAIndicesUpdaterPrefill.call_begin_forward(
        own,
        None,
        SimpleNamespace(plan=lambda *given: plans.append(given)),
        torch.tensor([0]),
        torch.tensor([2]),
        2,
        torch.tensor([2]),
        torch.tensor([2]),
        torch.zeros(2),
        torch.zeros(2),
        False,
        tree,
        fast_verify_plan_kwargs=dict.fromkeys(kept) if is_graph else None,
        plan=None,
    )
    (plan,) = plans
    is_causal = 8
    assert plan[is_causal] is True
    assert any(part is arguments[0] for part in plan)
    assert not any(part is mask for part in plan)


def test_sglang_reads_rows_of_values_as_wide_as_keys_on_flashinfer() -> None:
    """Why values of another width are refused there: six rows are taken for four, and sinks are handed to nobody."""
    from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

    rows, heads, width, of_values = 6, 2, 24, 16
    wrapper = SimpleNamespace(forward=lambda q, *_, **__: torch.zeros(*q.shape[:2], of_values))
    own = SimpleNamespace(
        forward_metadata=SimpleNamespace(use_ragged=False, prefill_wrappers=[wrapper], multi_item_params=None),
        _get_wrapper_idx=lambda _layer: 0,
        prefill_uses_dequant_workspace=False,
        token_to_kv_pool=SimpleNamespace(get_kv_buffer=lambda _layer: (None, None)),
    )
    plain = ("layer_id", "sliding_window_size", "scaling", "logit_cap", "k_scale_float", "v_scale_float", "attn_type")
    layer = SimpleNamespace(
        **dict.fromkeys(plain), is_cross_attention=False, tp_q_head_num=heads, head_dim=width, v_head_dim=of_values
    )
    out = FlashInferAttnBackend.forward_extend(own, torch.zeros(rows, heads * width), None, None, layer, None)
    assert len(out) == rows * of_values // width
    with pytest.raises(TypeError, match="unexpected keyword argument 'sinks'"):
        FlashInferAttnBackend.forward_extend(own, out, None, None, layer, None, sinks=torch.zeros(heads))
