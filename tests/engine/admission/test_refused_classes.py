"""What a class of SGLang's is refused for that no scene of the device lane shows: what SGLang does with it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.admission.bare_models import asked_for_states, bare
from tests.support.others import SHAPE

pytestmark = pytest.mark.sglang


class Lengths(list[int]):
    """Of a batch's requests, whom a stream may be waited for."""

    def record_stream(self, _stream: Any) -> None:
        """Nothing is in flight."""


def drafted_for(model: torch.nn.Module) -> None:
    """What SGLang's own chain does with a loaded target when it first drafts."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.speculative.dflash_info_v2 import DFlashDraftInputV2
    from sglang.srt.speculative.dflash_worker_v2 import DFlashWorkerV2

    runner = SimpleNamespace(model=model)
    own = SimpleNamespace(
        _validate_phase1_sampling_support=lambda _batch: None,
        device="cpu",
        target_worker=SimpleNamespace(model_runner=runner),
        draft_model=SimpleNamespace(),
        block_size=4,
    )
    batch = SimpleNamespace(
        forward_mode=ForwardMode.DECODE,
        is_extend_in_batch=False,
        spec_info=DFlashDraftInputV2.__new__(DFlashDraftInputV2),
        seq_lens=Lengths([5]),
    )
    DFlashWorkerV2.forward_batch_generation(own, batch)


def of_images(name: str) -> torch.nn.Module:
    """A class of Nemotron-H's with images, around a text part with a head."""
    text = bare("nemotron_h:NemotronHForCausalLM")
    text.model, text.lm_head = torch.nn.Identity(), torch.nn.Linear(4, 8)
    text.model.embed_tokens = torch.nn.Embedding(8, 4)
    model = bare(f"nano_nemotron_vl:{name}")
    model.language_model = text
    return model


@pytest.mark.parametrize("name", ["NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3"])
def test_sglang_ends_where_it_drafts_for_a_class_without_a_head_at_its_top(name: str) -> None:
    """Why these are refused before they are loaded: their text part has a head, and they hand it to nobody."""
    model = of_images(name)
    with pytest.raises(RuntimeError, match="requires the target model to expose `lm_head`"):
        drafted_for(model)
    assert of_images("NemotronH_Omni_Reasoning_V3").lm_head.weight.shape == (8, 4)
    with pytest.raises(AttributeError, match="_ensure_draft_block_buffers"):
        drafted_for(of_images("NemotronH_Omni_Reasoning_V3"))


def test_sglang_ends_over_minicpm_v_at_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why these are refused: SGLang itself starts no server of them, drafter or none.

    Its loader tells the class of shared experts and hands out the model within, which was told of none.
    """
    from sglang.srt.configs.shared_experts import SharedExpertsConfig
    from sglang.srt.model_executor.runner import base_runner
    from sglang.srt.model_loader import loader
    from sglang.srt.models import minicpmv

    experts = SharedExpertsConfig()
    flags = SimpleNamespace(override=lambda **given: nullcontext(given))
    for module in (loader, base_runner):
        monkeypatch.setattr(module, "get_model", lambda: flags)
    monkeypatch.setattr(loader, "resolve_shared_experts_config", lambda *_: experts)
    monkeypatch.setattr(loader, "_get_quantization_config", lambda *_: None)
    monkeypatch.setattr(loader.DefaultModelLoader, "_get_all_weights", lambda *_: ())
    for number, kind in minicpmv._SUPPORT_VERSION.items():
        monkeypatch.setitem(minicpmv._SUPPORT_VERSION, number, partial(within, kind.__name__))

    def warmed_up_with(model_class: Any, version: str) -> Any:
        monkeypatch.setattr(loader, "get_model_architecture", lambda _config: (model_class, model_class.__name__))
        config = SimpleNamespace(hf_config=SimpleNamespace(model_type=version), dtype=torch.float32)
        own = loader.DefaultModelLoader(loader.LoadConfig())
        model = own.load_model(model_config=config, device_config=SimpleNamespace(device="cpu"))
        with base_runner.BaseRunner.model_context(SimpleNamespace(model_runner=SimpleNamespace(model=model))) as given:
            return given["shared_experts"]

    assert warmed_up_with(Loaded, "") is experts
    versions = {"MiniCPMV": 6, "MiniCPMV4_6ForConditionalGeneration": 6, "MiniCPMV4_7ForConditionalGeneration": 7}
    for name, version in versions.items():
        lost = f"'MiniCPMV4_{version}' object has no attribute 'shared_experts_config'"
        with pytest.raises(AttributeError, match=lost):
            warmed_up_with(getattr(minicpmv, name), f"minicpmv4_{version}")


class Loaded(torch.nn.Module):
    """As SGLang's other classes are."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def load_weights(self, _weights: Any) -> None:
        """It has none."""


def within(kind: str, **_: Any) -> torch.nn.Module:
    """A version of MiniCPM-V without layers, which loads nothing."""
    made = bare(f"minicpmv:{kind}")
    made.llm = Loaded()
    return made


def test_sglang_picks_blocks_of_keys_without_a_trees_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why MiniMax-M3 is refused: what picks blocks is handed lengths alone, so that a node sees its siblings."""
    from sglang.srt.layers.attention import minimax_sparse_backend as module
    from sglang.srt.layers.attention.minimax_sparse_ops import minimax_sparse
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    calls: list[tuple[Any, ...]] = []

    def prefill(*given: Any, **named: Any) -> tuple[None, torch.Tensor]:
        calls.append((*given, *named.values()))
        return None, given[0]

    monkeypatch.setattr(minimax_sparse, "minimax_sparse_prefill", prefill)
    nodes = 4
    mask = torch.ones(nodes * (5 + nodes), dtype=torch.bool)
    batch = SimpleNamespace(
        forward_mode=ForwardMode.TARGET_VERIFY,
        spec_info=SimpleNamespace(custom_mask=mask),
        out_cache_loc=torch.arange(nodes),
        req_pool_indices=torch.tensor([0]),
        extend_seq_lens_cpu=[nodes],
        seq_lens_cpu=torch.tensor([5 + nodes]),
    )
    lengths = torch.tensor([0, nodes]), torch.tensor([5 + nodes]), torch.tensor([5])
    plain = ("hisparse_coordinator", "req_to_token", "score_type", "use_msa", "page_size", "_loc_mapping")
    sizes = ("_max_seqlen_q", "_max_seqlen_k", "block_size_q", "block_size_k", "topk_blocks", "init_blocks")
    buffers = SimpleNamespace(get_kv_buffer=lambda _layer: (None, None), get_index_k_buffer=lambda _layer: None)
    own = SimpleNamespace(
        **dict.fromkeys(("is_hip", "is_npu", "fp8_attn_gemm", "index_cache_enabled"), False),
        **dict.fromkeys((*plain, *sizes, "local_blocks")),
        disable_value_layer_ids=[0],
        kv_pool=buffers,
        _is_sparse_kv_cached_by_fusion=lambda _batch, _layer: True,
        _prefill_seqblock_meta=(batch, *lengths, None, None, None),
    )
    scales = dict.fromkeys(f"{name}_scale_float" for name in ("q", "k", "v", "idx_q", "idx_k", "idx_v"))
    layer = SimpleNamespace(layer_id=0, **scales)
    rows = torch.zeros(nodes, 2, 8)
    module.MiniMaxSparseAttnBackend.forward_extend(
        own, rows, rows, rows, layer, batch, idx_q=rows, idx_k=rows, idx_v=None
    )
    (call,) = calls
    assert any(part is rows for part in call)
    assert all(any(part is one for part in call) for one in lengths)
    assert not any(part is mask or part is batch.spec_info or part is batch for part in call)


def part(**modules: Any) -> torch.nn.Module:
    """A module of these."""
    made = torch.nn.Module()
    for name, one in modules.items():
        setattr(made, name, one)
    return made


def test_sglang_loads_no_expert_of_llama_4_into_the_class_that_hands_states_out() -> None:
    """Why it is refused on any backend: the class of its checkpoints hands none out, and this one's are random."""
    from sglang.srt.models.mllama4 import Llama4ForConditionalGeneration

    assert not hasattr(Llama4ForConditionalGeneration, "set_dflash_layers_to_capture"), "a drafter could follow it now"
    parameter = torch.nn.Parameter
    experts = part(w13_weight=parameter(torch.zeros(2, 8, 4)), w2_weight=parameter(torch.zeros(2, 4, 4)))
    norm = part(weight=parameter(torch.zeros(4)))
    layer = part(feed_forward=part(experts=experts), input_layernorm=norm)
    model = bare("llama4:Llama4ForCausalLM")
    model.config, model.model = SimpleNamespace(tie_word_embeddings=False), part(layers=torch.nn.ModuleList([layer]))
    prefix = "model.layers.0"
    one_by_one = [(f"{name}_proj.weight", (4, 4)) for name in ("gate", "up", "down")]
    model.load_weights(
        [
            (f"{prefix}.input_layernorm.weight", torch.ones(4)),
            (f"{prefix}.feed_forward.experts.gate_up_proj", torch.ones(2, 4, 8)),
            (f"{prefix}.feed_forward.experts.down_proj", torch.ones(2, 4, 4)),
            *((f"{prefix}.feed_forward.experts.0.{name}", torch.ones(size)) for name, size in one_by_one),
        ]
    )
    assert norm.weight.eq(1).all()
    assert not experts.w13_weight.any()
    assert not experts.w2_weight.any()


def test_sglang_asks_deepseek_v4_for_states_by_a_method_of_dspark_alone() -> None:
    """Why its DSpark drafter is refused: no target that it fits hands states to a round of ours."""
    from sglang.srt.models.deepseek_v4_dspark import DeepseekV4ForCausalLMDSpark

    with pytest.raises(ValueError, match="implements neither set_dspark_layers_to_capture nor set_dflash_layers_to"):
        asked_for_states(bare("deepseek_v4:DeepseekV4ForCausalLM"))
    needed = ("set_block_size", "prepare_context_hidden_for_kv")
    assert [name for name in needed if hasattr(DeepseekV4ForCausalLMDSpark, name)] == []


def test_sglang_reads_the_configuration_of_minimaxs_drafter_for_its_own_algorithm_alone(tmp_path: Path) -> None:
    """Why it is refused, as the target is that it fits: it would be built of fields that are not there."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.models.dspark_minimax import DSparkMiniMaxDraftModel

    dflash = {"num_target_layers": 4, "num_hidden_layers": 2, "target_layer_ids": [0, 2]}
    stated = {"dspark_block_size": 4, "dspark_markov_rank": 4, "dspark_noise_token_id": 1, "dspark_ffn_hidden_size": 32}
    config = {
        "architectures": ["DSparkMiniMaxDraftModel"],
        "model_type": "minimax_m3_vl",
        "text_config": {**SHAPE, "model_type": "minimax_m2", "dflash_config": dflash, "dspark_use_dense_ffn": True},
        **stated,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    def read(algorithm: str) -> Any:
        return ModelConfig(str(tmp_path), is_draft_model=True, speculative_algorithm=algorithm).hf_config

    assert read("DSPARK").block_size == 4
    with pytest.raises(AttributeError, match="has no attribute 'block_size'"):
        DSparkMiniMaxDraftModel(read("DDTREE"))
