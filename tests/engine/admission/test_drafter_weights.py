"""A drafter that SGLang would load and misread without a word is refused; one that it reads rightly is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ddtree_sglang.demo.drafter import shipped_drafter
from ddtree_sglang.engine.admission.drafter_families import GATED_ARCHITECTURE, LATTICE_FIELDS
from ddtree_sglang.engine.admission.drafter_weights import check_drafter_weights, is_nemotrons, stored_types
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.drafter_folders import LINEARS, NUM_LAYERS, Change, Tensors, changed, reconfigured, without


def to_fp8(names: tuple[str, ...]) -> Change:
    """Quantize the linear layers of which the name ends with one of these."""

    def change(tensors: Tensors) -> Tensors:
        made = {}
        for name, tensor in tensors.items():
            chosen = name.endswith(tuple(f"{one}.weight" for one in names))
            made[name] = tensor.to(torch.float8_e4m3fn) if chosen else tensor
            if chosen:
                made[f"{name}_scale"] = torch.ones(1)
        return made

    return change


def to_awq(tensors: Tensors) -> Tensors:
    """AWQ's names; what they hold is not read."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith(tuple(f"{one}.weight" for one in LINEARS)):
            stem = name.removesuffix("weight")
            made |= {f"{stem}{kind}": torch.zeros(2, dtype=torch.int32) for kind in ("qweight", "qzeros")}
            made[f"{stem}scales"] = torch.ones(2)
        else:
            made[name] = tensor
    return made


def fused(tensors: Tensors) -> Tensors:
    """As SGLang names them itself."""
    made = {
        name: tensor for name, tensor in tensors.items() if not name.endswith(tuple(f"{p}.weight" for p in LINEARS))
    }
    for layer in range(NUM_LAYERS):
        for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            made[f"layers.{layer}.{part}.weight"] = torch.ones(2, 2)
    return made


@pytest.mark.parametrize(
    ("change", "quantization"),
    [
        (dict, None),
        (lambda tensors: {f"model.{name}": tensor for name, tensor in tensors.items()}, None),
        (lambda tensors: {**tensors, "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}, None),
        (fused, None),
        (to_fp8(LINEARS), "fp8"),
        (to_awq, "awq"),
    ],
    ids=["plain", "prefixed", "more", "fused", "fp8", "awq"],
)
def test_what_is_read_rightly_is_served(
    change: Change, quantization: str | None, exported: Path, tmp_path: Path
) -> None:
    check_drafter_weights(changed(exported, tmp_path, change, quantization))


@pytest.mark.parametrize(
    ("change", "quantization", "message"),
    [
        (without("hidden_norm.weight"), None, "got no hidden_norm.weight."),
        (without("layers.1.mlp.up_proj.weight"), None, "got no layers.1.mlp.up_proj."),
        (without("fc.weight", "norm.weight"), None, "got no norm.weight and 1 more"),
        (to_fp8(("fc",)), "fp8", "fc must not be quantized, .* got fc.weight of type F8_E4M3"),
        (to_fp8(("gate_proj",)), "fp8", "all or not at all, .* got layers.0.self_attn.q_proj as it was"),
        (to_fp8(LINEARS), None, "must say how in its config.json"),
        (to_awq, None, "must say how in its config.json"),
    ],
)
def test_what_would_be_misread_is_refused(
    change: Change, quantization: str | None, message: str, exported: Path, tmp_path: Path
) -> None:
    folder = changed(exported, tmp_path, change, quantization)
    with pytest.raises(DDTreeConfigError, match=message):
        check_drafter_weights(folder)


LILICORR = {
    "architectures": ["LiLiCorrDraftModel"],
    "dflash_config": {f"lilicorr_{name}": 4 for name in LATTICE_FIELDS},
}
SELECTOR_FIELDS = {"selector_rank": 4, "selector_top_k": 8}


DSPARK = ("DSparkDraftModel", "Qwen3DSparkModel", "LingDSparkModel", "Lfm2DSparkDraftModel")
OTHER_CLASSES: dict[str, dict[str, Any]] = {
    "DFlash2DraftModel": {"dflash_config": SELECTOR_FIELDS},
    "MuseGlimmerAssistantModel": {},
    "LiLiCorrDraftModel": {"dflash_config": LILICORR["dflash_config"]},
    **{one: {"markov_rank": 4, "markov_head_type": "vanilla"} for one in DSPARK},
}


@pytest.mark.parametrize("architecture", OTHER_CLASSES)
def test_other_families_layers_are_whole_too(architecture: str, exported: Path, tmp_path: Path) -> None:
    heads = {name: torch.ones(2) for name in HEADS}

    def kept(*left_out: str) -> Path:
        folder = changed(exported, tmp_path, lambda tensors: without(*left_out)({**tensors, **heads}))
        return reconfigured(folder, architectures=[architecture], **OTHER_CLASSES[architecture])

    check_drafter_weights(kept())
    for lost in ("layers.1.mlp.up_proj", "layers.0.self_attn.k_norm.weight", "hidden_norm.weight", "fc"):
        with pytest.raises(DDTreeConfigError, match=f"got no {lost}"):
            check_drafter_weights(kept(lost, f"{lost}.weight"))


def quantized_head(name: str) -> Change:
    return lambda tensors: {
        **tensors,
        **{one: torch.ones(2).to(torch.int8 if one == name else torch.bfloat16) for one in HEADS},
    }


@pytest.mark.parametrize("architecture", DSPARK)
def test_a_dspark_drafters_layers_may_be_quantized_as_a_plain_ones_may(
    architecture: str, exported: Path, tmp_path: Path
) -> None:
    def check(change: Change, quantization: str | None) -> None:
        folder = changed(exported, tmp_path, lambda tensors: quantized_head("")(change(tensors)), quantization)
        check_drafter_weights(reconfigured(folder, architectures=[architecture], **OTHER_CLASSES[architecture]))

    check(to_fp8(LINEARS), "fp8")
    with pytest.raises(DDTreeConfigError, match=r"must say how in its config\.json"):
        check(to_fp8(LINEARS), None)
    with pytest.raises(DDTreeConfigError, match="fc must not be quantized"):
        check(to_fp8((*LINEARS, "fc")), "fp8")
    with pytest.raises(DDTreeConfigError, match="all or not at all"):
        check(to_fp8(("q_proj",)), "fp8")


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("DFlash2DraftModel", "candidate_selector.predecessor_codebook"),
        ("Qwen3DSparkModel", "markov_head.markov_w1.weight"),
    ],
)
def test_a_head_that_scores_pairs_is_not_quantized(
    architecture: str, name: str, exported: Path, tmp_path: Path
) -> None:
    """Why: `tests/engine/stages/test_pair_scores.py`, its codes are read as values."""
    folder = changed(exported, tmp_path, quantized_head(name), "fp8")
    with pytest.raises(DDTreeConfigError, match=f"head that scores pairs must not be quantized, .* got {name} of type"):
        check_drafter_weights(reconfigured(folder, architectures=[architecture], **OTHER_CLASSES[architecture]))


@pytest.mark.parametrize(
    ("gating", "lost"),
    [
        ({}, "layers.1.self_attn.g_proj"),
        ({"gating": "per-head"}, "layers.0.self_attn.g_proj"),
        ({"gating": False}, "aux_hidden_norms.1"),
        ({}, "aux_hidden_norms.0"),
    ],
)
def test_gates_and_norms_of_lagunas_drafters_are_whole(
    gating: dict[str, Any], lost: str, exported: Path, tmp_path: Path
) -> None:
    gates = {f"layers.{layer}.self_attn.g_proj.weight": torch.ones(2) for layer in range(NUM_LAYERS)}
    norms = {f"aux_hidden_norms.{index}.weight": torch.ones(2) for index in range(2)}
    more = norms if gating.get("gating") is False else norms | gates

    def check(*left_out: str) -> None:
        folder = changed(exported, tmp_path, lambda tensors: without(*left_out)({**tensors, **more}))
        check_drafter_weights(reconfigured(folder, architectures=[GATED_ARCHITECTURE], **gating))

    check()
    with pytest.raises(DDTreeConfigError, match=f"got no {lost}"):
        check(f"{lost}.weight")


@pytest.mark.parametrize("name", ["layers.0.self_attn.g_proj.weight", "aux_hidden_norms.0.weight"])
@pytest.mark.parametrize("fields", [{}, {"architectures": [GATED_ARCHITECTURE], "gating": False}], ids=str)
def test_gates_that_sglang_would_drop_are_refused(
    name: str, fields: dict[str, Any], exported: Path, tmp_path: Path
) -> None:
    if fields and name.startswith("aux"):
        pytest.skip("its norms are its own with and without gates")
    folder = reconfigured(changed(exported, tmp_path, lambda tensors: {**tensors, name: torch.ones(2)}), **fields)
    with pytest.raises(DDTreeConfigError, match=rf"gates must be a {GATED_ARCHITECTURE} .*\(gating\), .* got {name}"):
        check_drafter_weights(folder)


def test_convolutions_are_whole_and_stated(exported: Path, tmp_path: Path) -> None:
    """SGLang leaves what is missing as it happens to be, and drops what no field names."""
    convolutions = {
        f"layers.{layer}.{part}_conv.{name}": torch.ones(2)
        for layer in range(NUM_LAYERS)
        for part in ("attention", "mlp")
        for name in ("base_kernel", "kernel_projection.weight")
    }
    stated = {"conv_kernel_size": 4, "conv_group_size": 8}
    folder = changed(exported, tmp_path, lambda tensors: {**tensors, **convolutions})
    with pytest.raises(DDTreeConfigError, match=r"must say so in its config.json .*, got layers.0.attention_conv.base"):
        check_drafter_weights(folder)
    check_drafter_weights(reconfigured(folder, dflash_config=stated))
    convolutions.pop("layers.1.mlp_conv.base_kernel")
    folder = changed(exported, tmp_path, lambda tensors: {**tensors, **convolutions})
    with pytest.raises(DDTreeConfigError, match=r"got no layers\.1\.mlp_conv\.base_kernel"):
        check_drafter_weights(reconfigured(folder, dflash_config=stated))


SELECTOR_CONFIG = {
    "architectures": ["DFlash2DraftModel"],
    "model_type": "qwen3",
    "dflash_config": {"selector_rank": 4, "selector_top_k": 8},
}
MARKOV_CONFIG = {
    "architectures": ["DSparkDraftModel"],
    "model_type": "qwen3",
    "markov_rank": 4,
    "markov_head_type": "vanilla",
}
GATED_CONFIG = MARKOV_CONFIG | {"markov_head_type": "gated"}
HEADS = {
    "candidate_selector.hidden_projection.weight": SELECTOR_CONFIG,
    "candidate_selector.predecessor_codebook": SELECTOR_CONFIG,
    "candidate_selector.successor_codebook": SELECTOR_CONFIG,
    "markov_head.markov_w1.weight": MARKOV_CONFIG,
    "markov_head.markov_w2.weight": MARKOV_CONFIG,
    "markov_head.gate_proj.weight": GATED_CONFIG,
    "markov_head.gate_proj.bias": GATED_CONFIG,
}


def with_head(folder: Path, config: dict[str, object], left_out: str = "") -> Path:
    """A checkpoint of nothing but heads, of which one tensor may be left out."""
    (folder / "config.json").write_text(json.dumps(config))
    heads = {f"model.{name}": torch.ones(2) for name in HEADS if name != left_out}
    save_file(heads, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("name", "config"), HEADS.items())
def test_a_head_that_scores_pairs_is_whole(name: str, config: dict[str, object], tmp_path: Path) -> None:
    check_drafter_weights(with_head(tmp_path, config))
    with pytest.raises(DDTreeConfigError, match=f"head that scores pairs, got no {name}"):
        check_drafter_weights(with_head(tmp_path, config, name))


def test_a_vanilla_markov_head_has_no_gate(tmp_path: Path) -> None:
    check_drafter_weights(with_head(tmp_path, MARKOV_CONFIG, "markov_head.gate_proj.weight"))


def test_the_drafter_that_ships_is_served() -> None:
    assert set(stored_types(Path(str(shipped_drafter()))).values()) == {"BF16"}
    check_drafter_weights(Path(str(shipped_drafter())))


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_configuration_that_is_no_object_is_left_to_transformers(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "hf_quant_config.json").write_text("{}")
    check_drafter_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{", b"\xff" * 64])
def test_a_file_that_is_no_checkpoint_is_left_to_the_loader(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["DFlashDraftModel"], "num_hidden_layers": 2}')
    (tmp_path / "model.safetensors").write_bytes(content)
    check_drafter_weights(tmp_path)
    check_drafter_weights(tmp_path / "nowhere")


NEMOTRONS = {
    "architectures": ["DFlashDraftModel"],
    "has_embed_tokens": True,
    "quantization_config": {"quant_algo": "W4A16_NVFP4"},
    "target_layer_ids": [1, 3],
    "eagle_aux_hidden_state_layer_ids": [2, 4],
    "dflash_config": {"sample_from_anchor": False},
}


@pytest.mark.parametrize("change", [LILICORR, NEMOTRONS])
def test_classes_that_name_their_layers_are_left_alone(
    change: dict[str, object], exported: Path, tmp_path: Path
) -> None:
    folder = changed(exported, tmp_path, to_fp8(("fc",)), "fp8")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    check_drafter_weights(folder)


def test_an_embedding_of_its_own_alone_makes_no_class_that_names_its_layers(exported: Path, tmp_path: Path) -> None:
    """SGLang takes a drafter for one of Nemotron's by its quantization, too, and drops the embedding of another."""
    folder = changed(exported, tmp_path, to_fp8(("fc",)), "fp8")
    with pytest.raises(DDTreeConfigError, match="fc must not be quantized"):
        check_drafter_weights(reconfigured(folder, has_embed_tokens=True))


@pytest.mark.sglang
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"architectures": ["Qwen3DSparkModel"]},
        {"architectures": ["DFlash2DraftModel"]},
        {"architectures": None},
        {"has_embed_tokens": False},
        {"has_lm_head": True},
        {"quantization_config": {"quant_algo": "NVFP4"}},
        {"quantization_config": None},
        {"eagle_aux_hidden_state_layer_ids": [1, 3]},
        {"eagle_aux_hidden_state_layer_ids": [2]},
        {"eagle_aux_hidden_state_layer_ids": None},
        {"target_layer_ids": None},
        {"target_layer_ids": None, "dflash_config": {"sample_from_anchor": False, "target_layer_ids": [1, 3]}},
        {"dflash_config": {}},
        {"dflash_config": {"sample_from_anchor": True}},
        {"dflash_config": {}, "sample_from_anchor": False},
    ],
    ids=str,
)
def test_nemotrons_are_told_from_others_as_sglang_tells_them(change: dict[str, object]) -> None:
    from sglang.srt.speculative.dflash_utils import is_nemotron_35_draft_config

    drafter = NEMOTRONS | change
    assert is_nemotrons(drafter) == is_nemotron_35_draft_config(SimpleNamespace(**drafter))


def test_weights_that_cannot_be_read_are_left_to_the_loader(exported: Path, tmp_path: Path) -> None:
    """As of a link whose file is gone."""
    (tmp_path / "config.json").write_text((exported / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    assert stored_types(tmp_path) == {}
    check_drafter_weights(tmp_path)


def test_lilicorrs_layers_are_not_quantized_without_a_word_either(exported: Path, tmp_path: Path) -> None:
    folder = changed(exported, tmp_path, to_fp8(("down_proj",)))
    with pytest.raises(DDTreeConfigError, match=r"must say how in its config\.json"):
        check_drafter_weights(reconfigured(folder, **LILICORR))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_of_an_encoder_are_known_as_sglang_knows_them(prefix: str, exported: Path, tmp_path: Path) -> None:
    """Without a prefix alone (models/dflash.py, `resolve_param_name`)."""
    names = {"fc.weight": "encoder.fc.weight", "hidden_norm.weight": "encoder.output_norm_enc.weight"}
    renamed = {name: f"{prefix}{other}" for name, other in names.items()}
    folder = changed(
        exported, tmp_path, lambda tensors: {renamed.get(name, name): tensor for name, tensor in tensors.items()}
    )
    if not prefix:
        check_drafter_weights(folder)
        return
    with pytest.raises(DDTreeConfigError, match=r"got no hidden_norm.weight and 1 more"):
        check_drafter_weights(folder)


class Loaded(torch.nn.Module):
    """Some weights of SGLang's drafter, as they happen to be before it loads any."""

    projector_type, is_nemotron_35_draft = "dflash", False

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = torch.nn.Linear(2, 2, bias=False), torch.nn.LayerNorm(2, bias=False)
        self.candidate_selector = torch.nn.Linear(2, 2, bias=False)
        for parameter in self.parameters():
            parameter.data.fill_(-7.0)

    def load(self, **weights: torch.Tensor) -> None:
        """By SGLang's own loop; names have underscores for dots."""
        from sglang.srt.models.dflash import DFlashDraftModel

        named = ((name.replace("__", "."), weight) for name, weight in weights.items())
        DFlashDraftModel.load_weights(self, named)


@pytest.mark.sglang
@pytest.mark.parametrize("name", ["fc__weight", "norm__weight", "candidate_selector__weight"])
def test_sglang_leaves_what_a_checkpoint_lacks_as_it_happens_to_be(name: str) -> None:
    """What the refusal is for: without a word, in a drafter whose guesses are never right."""
    model = Loaded()
    shapes = {f"{module}__weight": part.weight.shape for module, part in model.named_children()}
    model.load(**{one: torch.ones(shape) for one, shape in shapes.items() if one != name})
    for one, parameter in model.named_parameters():
        assert bool((parameter == (-7.0 if one == name.replace("__", ".") else 1.0)).all())


@pytest.mark.sglang
@pytest.mark.parametrize("codes", [torch.float8_e4m3fn, torch.int8])
def test_sglang_reads_the_codes_of_a_quantized_fc_as_its_values(codes: torch.dtype) -> None:
    """What that refusal is for: a scale has no name there, and is left out."""
    model = Loaded()
    values = torch.full((2, 2), 0.25)
    model.load(fc__weight=(values / 0.01).to(codes), fc__weight_scale=torch.tensor([0.01]))
    assert bool((model.fc.weight > 20.0).all())


@pytest.mark.sglang
@pytest.mark.parametrize("stray", ["candidate_selector__hidden_projection__weight", "lilicorr__slot_embedding"])
def test_sglang_leaves_a_head_out_that_an_architecture_does_not_build(stray: str) -> None:
    """What the refusal of a stray head is for: a plain drafter, without a word."""
    model = Loaded()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.load(**{stray: torch.ones(2, 2)})
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.fixture
def one_rank() -> Iterator[None]:
    from sglang.srt.runtime_context import get_parallel

    with get_parallel().override(tp_size=1, tp_rank=0):
        yield


@pytest.mark.sglang
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("codes", [torch.float8_e4m3fn, torch.int8])
def test_sglang_reads_codes_as_values_where_no_configuration_says_what_they_are(codes: torch.dtype) -> None:
    """In a layer too, by the loader of its parts."""
    from sglang.srt.layers.linear import MergedColumnParallelLinear

    model = Loaded()
    model.mlp = torch.nn.ModuleDict({"gate_up_proj": MergedColumnParallelLinear(2, [2, 2], bias=False)})
    weights = {f"mlp__{name}_proj__weight": torch.full((2, 2), 24.0).to(codes) for name in ("gate", "up")}
    model.load(**weights)
    assert bool((model.mlp["gate_up_proj"].weight == 24.0).all())


@pytest.mark.sglang
@pytest.mark.usefixtures("one_rank")
def test_sglang_cannot_leave_a_drafters_layer_as_it_was(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the refusal of some quantized layers is for: it leaves out what it is told by name, and these have none."""
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.quantization.fp8 import Fp8Config
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
    from sglang.srt.models.dflash import DFlashDraftModel
    from transformers import AutoConfig

    names: list[str] = []

    class Layer(torch.nn.Module):
        def __init__(self, prefix: str, **_parts: Any) -> None:
            super().__init__()
            names.append(prefix)

    monkeypatch.setattr(DFlashDraftModel, "decoder_layer_cls", Layer)
    DFlashDraftModel(AutoConfig.from_pretrained(exported))
    assert names == [""] * NUM_LAYERS
    some = Fp8Config(is_checkpoint_fp8_serialized=True, ignored_layers=["layers.0.mlp.down_proj"])
    methods = [some.get_quant_method(object.__new__(ReplicatedLinear), one) for one in ("layers.0.mlp.down_proj", "")]
    assert [isinstance(one, UnquantizedLinearMethod) for one in methods] == [True, False]
