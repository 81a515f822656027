"""A drafter that ModelOpt's `hf_quant_config.json` alone calls quantized is served as far as SGLang reads that file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ddtree_sglang import cli
from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.engine.admission.drafter_quantization import FILE, FORMS, FileQuantization, quantization_by_file
from ddtree_sglang.engine.admission.drafter_report import report_of, report_of_place
from ddtree_sglang.engine.admission.drafter_weights import check_drafter_weights
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.drafter_folders import (
    LINEARS,
    NUM_LAYERS,
    Change,
    Tensors,
    build,
    changed,
    reconfigured,
    without,
)
from tests.engine.admission.test_drafter_shape import plain as plain_drafter

DOWN = "layers.0.mlp.down_proj"
LATTICE = {"candidate_topk": 4, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_ratio": 2.0, "factor_dim": 8}
LATTICE |= {"vector_eps": 1e-6, "logit_scale": 20.0}
LILICORR = {
    "architectures": ["LiLiCorrDraftModel"],
    "dflash_config": {f"lilicorr_{name}": value for name, value in LATTICE.items()},
}


def stored(algorithm: str, *plain: str, linears: tuple[str, ...] = LINEARS) -> Change:
    """Linear layers as ModelOpt stores them, but for some that stay as they were."""

    def change(tensors: Tensors) -> Tensors:
        made = dict(tensors)
        for name in tensors:
            stem = name.removesuffix(".weight")
            if not stem.endswith(linears) or stem.endswith(plain or ("none",)):
                continue
            made |= {f"{stem}.{kind}": one for kind, one in FORM_OF[algorithm](tensors[name]).items()}
        return made

    return change


def fp8(weight: torch.Tensor) -> Tensors:
    scale = weight.float().abs().max() / 448
    codes = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale.clone(), "input_scale": torch.tensor(0.5)}


def nvfp4(weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    return {
        "weight": torch.zeros(rows, columns // 2, dtype=torch.uint8),
        "weight_scale": torch.ones(rows, columns // 16).to(torch.float8_e4m3fn),
        "weight_scale_2": torch.tensor(1.0),
        "input_scale": torch.tensor(0.5),
    }


def w4a16(weight: torch.Tensor) -> Tensors:
    return {name: one for name, one in nvfp4(weight).items() if name != "input_scale"}


FORM_OF = {"FP8": fp8, "NVFP4": nvfp4, "W4A16_NVFP4": w4a16}


def say(folder: Path, algorithm: Any, *, is_flat: bool = False, **fields: Any) -> Path:
    """Write the file."""
    section = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "group_size": 16, **fields}
    said = section if is_flat else {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": section}
    (folder / FILE).write_text(json.dumps(said))
    return folder


def prefixed(tensors: Tensors) -> Tensors:
    return {f"model.{name}": tensor for name, tensor in stored("FP8")(tensors).items()}


def fused(tensors: Tensors) -> Tensors:
    made = without(*(name for name in tensors if name.endswith(tuple(f"{one}.weight" for one in LINEARS))))(tensors)
    for layer in range(NUM_LAYERS):
        for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            made |= {f"layers.{layer}.{part}.{kind}": one for kind, one in fp8(torch.ones(16, 16)).items()}
    return made


SERVED: dict[str, tuple[Change, dict[str, Any]]] = {
    **{name: (stored(name), {"algorithm": name, "exclude_modules": ["lm_head", "fc"]}) for name in FORMS},
    "flat": (stored("FP8"), {"algorithm": "FP8", "is_flat": True, "ignore": ["lm_head"]}),
    "flat of four bits": (stored("NVFP4"), {"algorithm": "NVFP4", "is_flat": True, "exclude_modules": ["lm_head"]}),
    "prefixed": (prefixed, {"algorithm": "FP8"}),
    "fused": (fused, {"algorithm": "FP8"}),
    "a kind of layers left out": (stored("FP8", "o_proj"), {"algorithm": "FP8", "exclude_modules": ["*o_proj"]}),
    "all left out": (dict, {"algorithm": "FP8", "exclude_modules": ["*"]}),
    "the cache alone": (dict, {"algorithm": None}),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_sglang_reads_there_is_served(
    name: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = SERVED[name]
    folder = say(changed(exported, tmp_path, change), **said)
    check_drafter_weights(folder)
    monkeypatch.setenv(CONFIG_ENV, "")
    assert cli.main(["doctor", "--draft", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.endswith("ok      DDTREE serves it\n")
    is_quantized = said["algorithm"] is not None
    assert (f"quantized by: {said['algorithm']}, says {FILE}\n" in out) == is_quantized
    assert ("refused with: a CPU, which serves plain weights and those of fp8 and w8a8_int8\n" in out) == is_quantized


@pytest.mark.parametrize(
    ("said", "is_refused"),
    [
        ({"quant_method": "awq"}, True),
        ({"quant_algo": "NVFP4"}, True),
        ({"quant_method": "fp8"}, False),
        ({"quant_method": "w8a8_int8"}, False),
    ],
)
def test_doctor_tells_of_a_quantization_that_a_cpu_does_not_serve(said: dict[str, str], is_refused: bool) -> None:
    """As the platform's start does (tests/cpu_platform/test_quantized.py)."""
    drafter = plain_drafter(quantization_config=said)
    assert ("a CPU, which serves plain" in dict(report_of(drafter).facts).get("refused with", "")) is is_refused


@pytest.mark.sglang
def test_the_file_counts_for_neither_where_the_configuration_has_a_word(exported: Path, tmp_path: Path) -> None:
    """Nor for a CPU: both read it in one way (ddtree_sglang/modelopt_file.py)."""
    from ddtree_sglang.cpu_platform.server_defaults import _stored_quantization

    folder = say(changed(exported, tmp_path, dict), "FP8")
    found = quantization_by_file(folder, {})
    assert found is not None
    assert _stored_quantization(str(folder)) == f"{found.algorithm} of {FILE}"
    config = {"compression_config": {"format": "x"}}
    reconfigured(folder, **config)
    assert _stored_quantization(str(folder)) is quantization_by_file(folder, config) is None


REFUSED: dict[str, tuple[Change, dict[str, Any], str]] = {
    **{
        str(name): (stored("FP8"), {"algorithm": name}, rf"FP8, NVFP4, W4A16_NVFP4, which SGLang .* got '?{name}'?;")
        for name in ("MXFP8", "MIXED_PRECISION", "NVFP4_AWQ", "W4A8_AWQ", "FP8_PB_WO", "fp8", 8)
    },
    "plain weights": (dict, {"algorithm": "FP8"}, f"got {DOWN} of type BF16, which SGLang does not leave out by it"),
    "no scale": (
        lambda tensors: without(f"{DOWN}.weight_scale")(stored("FP8")(tensors)),
        {"algorithm": "FP8"},
        f"F8_E4M3 with weight_scale, input_scale, got no {DOWN}.weight_scale",
    ),
    "no scale of inputs": (
        lambda tensors: without(f"{DOWN}.input_scale")(stored("FP8")(tensors)),
        {"algorithm": "FP8"},
        f"got no {DOWN}.input_scale",
    ),
    "no scale of scales": (
        lambda tensors: without(f"{DOWN}.weight_scale_2")(stored("W4A16_NVFP4")(tensors)),
        {"algorithm": "W4A16_NVFP4"},
        f"got no {DOWN}.weight_scale_2",
    ),
    "another form": (stored("FP8"), {"algorithm": "NVFP4"}, f"got {DOWN} of type F8_E4M3"),
    "a layer left out": (
        stored("FP8", "layers.1.self_attn.o_proj"),
        {"algorithm": "FP8", "exclude_modules": ["layers.1.self_attn.o_proj"]},
        "got layers.1.self_attn.o_proj of type BF16, which SGLang does not leave out by it",
    ),
    "codes left out": (
        stored("FP8"),
        {"algorithm": "FP8", "exclude_modules": ["*down_proj"]},
        f"got {DOWN} of type F8_E4M3, which SGLang leaves out by it",
    ),
    "left out in a field that is not read": (
        stored("FP8", "o_proj"),
        {"algorithm": "FP8", "ignore": ["*o_proj"]},
        "got layers.0.self_attn.o_proj of type BF16, which SGLang does not",
    ),
    "left out in words": (stored("FP8"), {"algorithm": "FP8", "exclude_modules": "fc"}, "a list of names, got 'fc'"),
    "fc": (
        stored("FP8", linears=(*LINEARS, "fc")),
        {"algorithm": "FP8"},
        "fc must not be quantized, .* got fc.weight of type F8_E4M3",
    ),
    "without a word": (stored("FP8"), {"algorithm": None}, "must say how in its config.json .*, or in hf_quant_config"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_misreads_is_refused_by_a_server_and_by_doctor(name: str, exported: Path, tmp_path: Path) -> None:
    change, said, reason = REFUSED[name]
    folder = say(changed(exported, tmp_path, change), **said)
    with pytest.raises(DDTreeConfigError, match=reason) as caught:
        check_drafter_weights(folder)
    report = report_of_place(str(folder))
    assert report.refusal == str(caught.value)
    assert report.lines[-1].startswith("FAILED  DDTREE refuses it: ")
    assert report.suspicions == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "must be a JSON object that can be read, got Expecting"),
        ('{"quant_algo": "FP8", "ignore": ["a("]}', r"names of modules .*, got 'a\(', which SGLang cannot compare"),
        ("[]", "must be a JSON object that can be read, got a list"),
        ('{"quant_algo": "FP8", "quantization": {"quant_algo": "NVFP4"}}', "must say its quantization once"),
        ('{"quantization": {"quantization": {"quant_algo": "FP8"}}}', "must say its quantization once"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    text: str, reason: str, exported: Path, tmp_path: Path
) -> None:
    folder = changed(exported, tmp_path, stored("FP8"))
    (folder / FILE).write_text(text)
    with pytest.raises(DDTreeConfigError, match=reason):
        check_drafter_weights(folder)


def test_a_file_that_cannot_be_read_is_one_line_of_doctors(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, encoding: str | None = None) -> str:
        if path.name == FILE:
            raise PermissionError(13, "Permission denied")
        return path.read_bytes().decode()

    say(changed(exported, tmp_path, dict), "FP8")
    monkeypatch.setattr(Path, "read_text", read_text)
    assert "must be a JSON object that can be read, got [Errno 13]" in str(report_of_place(str(tmp_path)).refusal)


def test_a_quantization_of_the_text_part_beside_the_file_is_refused(exported: Path, tmp_path: Path) -> None:
    """SGLang takes the method of the file and the rest of text_config (`get_quant_config`)."""
    folder = reconfigured(changed(exported, tmp_path, stored("FP8")), text_config={"quantization_config": {"a": 1}})
    say(folder, "FP8")
    with pytest.raises(DDTreeConfigError, match=r"in one place, got it in .* and in text_config"):
        check_drafter_weights(folder)


@pytest.mark.parametrize("text", ["{}", '{"quantization": "FP8"}', '{"quantization": {}}'])
def test_a_file_that_says_nothing_is_as_none(text: str, exported: Path, tmp_path: Path) -> None:
    (changed(exported, tmp_path, dict) / FILE).write_text(text)
    check_drafter_weights(tmp_path)


def test_the_configurations_own_word_goes_first(exported: Path, tmp_path: Path) -> None:
    say(changed(exported, tmp_path, stored("FP8"), "fp8"), "MXFP8")
    check_drafter_weights(tmp_path)
    assert report_of_place(str(tmp_path)).refusal is None
    assert report_of_place(str(tmp_path / "config.json")).refusal is None


def test_the_file_is_read_where_no_weights_are_there_yet(exported: Path, tmp_path: Path) -> None:
    say(changed(exported, tmp_path, dict), "MXFP8")
    (tmp_path / "model.safetensors").unlink()
    assert "got 'MXFP8'" in str(report_of_place(str(tmp_path)).refusal)


@pytest.mark.parametrize(
    ("linears", "plain", "left_out", "reason"),
    [
        ((*LINEARS, "fc"), (), [], None),
        ((*LINEARS, "fc"), ("layers.1.self_attn.o_proj",), ["layers.1.self_attn.o_proj"], None),
        (LINEARS, (), ["fc"], None),
        ((*LINEARS, "fc"), ("layers.1.self_attn.o_proj",), [], "got layers.1.self_attn.o_proj of type BF16"),
        (LINEARS, (), [], "got fc of type BF16, which SGLang does not leave out"),
        ((*LINEARS, "fc"), (), ["layers.0*"], f"got {DOWN} of type F8_E4M3, which SGLang leaves out"),
        ((*LINEARS, "fc", "context_proj"), (), ["lilicorr*"], "got lilicorr.context_proj of type F8_E4M3, which"),
        ((*LINEARS, "fc", "context_proj"), (), [], None),
        ((*LINEARS, "fc", "out_head"), (), [], "those layers alone .* got lilicorr.out_head, too"),
    ],
)
def test_lilicorrs_layers_are_left_out_by_name(
    linears: tuple[str, ...],
    plain: tuple[str, ...],
    left_out: list[str],
    reason: str | None,
    exported: Path,
    tmp_path: Path,
) -> None:
    heads = {f"lilicorr.{name}.weight": torch.ones(16, 32) for name in ("context_proj", "out_head")}
    change = stored("FP8", *plain, linears=linears)
    folder = changed(exported, tmp_path, lambda tensors: change({**tensors, **heads}))
    say(reconfigured(folder, **LILICORR), "FP8", exclude_modules=left_out)
    if reason is None:
        check_drafter_weights(folder)
        return
    with pytest.raises(DDTreeConfigError, match=reason):
        check_drafter_weights(folder)


def read_by_sglang(folder: Path) -> tuple[str | None, Any]:
    """The method that SGLang takes for a drafter, and the configuration that its loader makes for it."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.weight_utils import get_quant_config

    config = ModelConfig(str(folder), trust_remote_code=False, is_draft_model=True)
    with pytest.MonkeyPatch.context() as patch:
        # Not the CPU platform, which has no such configurations.
        stock = SimpleNamespace(is_out_of_tree=lambda: False)
        patch.setattr("sglang.srt.layers.quantization.current_platform", stock)
        return config.quantization, config.quantization and get_quant_config(config, LoadConfig(), {})


@pytest.mark.sglang
@pytest.mark.parametrize("name", SERVED)
def test_sglang_reads_there_what_is_served(name: str, exported: Path, tmp_path: Path) -> None:
    change, said = SERVED[name]
    folder = say(changed(exported, tmp_path, change), **said)
    method, config = read_by_sglang(folder)
    told = quantization_by_file(folder, {})
    if told is None:
        assert method is None
        return
    assert method == {"FP8": "modelopt_fp8"}.get(told.algorithm, "modelopt_fp4")
    assert config.exclude_modules == list(told.left_out)
    is_serialized = config.is_checkpoint_fp8_serialized if method == "modelopt_fp8" else config.is_w4a16
    assert is_serialized == (told.algorithm != "NVFP4")


@pytest.mark.sglang
@pytest.mark.parametrize("name", ["W4A8_AWQ", "FP8_PB_WO", "fp8"])
def test_sglang_takes_codes_of_an_unknown_algorithm_for_values(name: str, exported: Path, tmp_path: Path) -> None:
    assert read_by_sglang(say(changed(exported, tmp_path, stored("FP8")), name)) == (None, None)


@pytest.mark.sglang
def test_sglang_reads_no_file_for_the_rest_of_some(exported: Path, tmp_path: Path) -> None:
    """What the refusal is for: it takes MXFP8 for plain weights, and a mixture for blocks of 128 by 128."""
    folder = changed(exported, tmp_path, stored("FP8"))
    method, config = read_by_sglang(say(folder, "MXFP8", exclude_modules=["fc"]))
    assert (method, config.is_checkpoint_fp8_serialized, config.ignored_layers) == ("mxfp8", False, [])
    method, config = read_by_sglang(say(folder, "MIXED_PRECISION", quantized_layers={DOWN: {"quant_algo": "FP8"}}))
    assert (method, config.weight_block_size) == ("w4afp8", [128, 128])


NAMES = (
    "qkv_proj",
    "o_proj",
    "gate_up_proj",
    "down_proj",
    "fc",
    "layers.0.self_attn.qkv_proj",
    "layers.1.mlp.down_proj",
)
PATTERNS = (
    "lm_head",
    "fc",
    "*",
    "*proj",
    "q_proj",
    "o_proj",
    "*o_proj",
    "layers.0*",
    "layers.0.self_attn",
    "layers.1.",
)
PATTERNS += ("model.layers.1.mlp.down_proj", "mlp", "self_attn.q_proj", "gate*", "layers.1.mlp.down_proj", "qkv_proj")


@pytest.mark.sglang
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_left_out_is_sglangs(pattern: str) -> None:
    from sglang.srt.layers.quantization.modelopt_quant import ModelOptFp8Config
    from sglang.srt.layers.quantization.utils import is_layer_skipped

    for name in NAMES:
        told = FileQuantization("FP8", ("lm_head", pattern))
        config = ModelOptFp8Config(True, None, list(told.left_out), {})
        try:
            is_skipped = is_layer_skipped(name, config.exclude_modules, config.packed_modules_mapping)
        except ValueError:
            # Some parts of a fused layer, of which it ends by itself.
            continue
        assert told.leaves_out(name) == (is_skipped or config.is_layer_excluded(name)), name


@pytest.mark.sglang
@pytest.mark.usefixtures("engine")
def test_sglang_loads_values_and_scales_of_eight_bits(exported: Path, tmp_path: Path) -> None:
    """And what the rule of scales is for: one that is missing stays the smallest number there is."""
    lost = "layers.1.mlp.down_proj.input_scale"
    folder = say(changed(exported, tmp_path, stored("FP8")), "FP8")
    tensors = load_file(folder / "model.safetensors")
    model = build(folder, "cpu", read_by_sglang(folder)[1])
    model.load_weights(without(lost)(tensors).items())
    found = dict(model.named_parameters())
    parts = ("q_proj", "k_proj", "v_proj")
    for kind in ("weight", "weight_scale", "input_scale"):
        wanted = [tensors[f"layers.0.self_attn.{part}.{kind}"] for part in parts]
        whole = torch.cat([one.float().reshape(-1, *one.shape[1:]) for one in wanted])
        assert torch.equal(found[f"layers.0.self_attn.qkv_proj.{kind}"].float(), whole)
    assert torch.equal(found["fc.weight"].float(), tensors["fc.weight"].float())
    assert float(found[lost]) == torch.finfo(torch.float32).min


@pytest.mark.sglang
@pytest.mark.usefixtures("engine")
def test_sglang_places_a_scale_of_inputs_among_outputs() -> None:
    """What the refusal of NVFP4_AWQ is for: each part of a fused layer writes its own rows of it, from the first on."""
    from sglang.srt.layers.linear import MergedColumnParallelLinear
    from sglang.srt.layers.quantization.modelopt_quant import ModelOptFp4Config

    config = ModelOptFp4Config(True, "auto", 16, [], {}, is_awq=True)
    layer = MergedColumnParallelLinear(32, [16, 16], bias=False, quant_config=config)
    scale = torch.arange(32.0)
    for part in range(2):
        layer.pre_quant_scale.weight_loader(layer.pre_quant_scale, scale, part)
    assert not torch.equal(layer.pre_quant_scale.data.float(), scale)
