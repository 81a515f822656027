"""What is said of weights that were looked at, or were not; of biases, and of layers that are no numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file

from ddtree_sglang import cli
from ddtree_sglang.engine.admission.drafter_checks import check_drafter_configuration
from ddtree_sglang.engine.admission.drafter_families import GATED_ARCHITECTURE
from ddtree_sglang.engine.admission.drafter_report import report_of_place
from ddtree_sglang.engine.admission.drafter_shape import BIASED_TYPES
from ddtree_sglang.engine.admission.drafter_weights import check_drafter_weights, is_nemotrons
from ddtree_sglang.exceptions import DDTreeConfigError
from ddtree_sglang.modelopt_file import FILE
from tests.engine.admission.drafter_folders import NUM_LAYERS, Change, build, changed, reconfigured, without
from tests.engine.admission.test_drafter_weights import NEMOTRONS, to_awq


@pytest.mark.parametrize("layers", [[None, 3], ["one", "three"], [[1], 3], [1.5, 3]], ids=str)
def test_layers_that_are_no_numbers_end_in_one_line(
    layers: list[object], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a drafter that else were Nemotron's; whoever looks at its weights first goes on."""
    folder = reconfigured(changed(exported, tmp_path, dict), **NEMOTRONS | {"target_layer_ids": layers})
    drafter = json.loads((folder / "config.json").read_text())
    drafter["dflash_config"]["target_layer_ids"] = layers
    (folder / "config.json").write_text(json.dumps(drafter))
    assert not is_nemotrons(drafter)
    check_drafter_weights(folder)
    with pytest.raises(DDTreeConfigError, match="target_layer_ids must be a list of whole numbers"):
        check_drafter_configuration(folder)
    assert cli.main(["doctor", "--draft", str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED  DDTREE refuses it: target_layer_ids must be")


def test_doctor_says_where_it_looked_at_no_weights(exported: Path, tmp_path: Path) -> None:
    def verdict(place: Path) -> str:
        return report_of_place(str(place)).lines[-1]

    folder = changed(exported, tmp_path, dict)
    assert verdict(folder) == "ok      DDTREE serves it"
    unseen = "ok      DDTREE serves it; no weights were looked at: "
    assert verdict(folder / "config.json") == f"{unseen}this is a config.json alone"
    (folder / "model.safetensors").write_bytes(b"")
    assert verdict(folder) == f"{unseen}the folder has no safetensors file that can be read"
    (folder / "model.safetensors").unlink()
    assert verdict(folder) == f"{unseen}the folder has no safetensors file"


def test_doctor_reads_a_configuration_once(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two readings one could find another file."""
    folder, read = changed(exported, tmp_path, dict), Path.read_text
    names: list[str] = []

    def counted(path: Path, *args: Any, **kwargs: Any) -> str:
        names.append(path.name)
        return read(path, *args, **kwargs)

    (folder / FILE).write_text("{}")
    monkeypatch.setattr(Path, "read_text", counted)
    report_of_place(str(folder))
    assert sorted(names) == ["config.json", FILE]


UNMADE = {
    *("edgetam", "edgetam_vision_model", "encoder-decoder", "musicgen", "musicgen_melody", "nemotron_h_puzzle"),
    *("nougat", "rag", "speech-encoder-decoder", "vision-encoder-decoder", "vision-text-dual-encoder"),
}
"""Types without defaults for all that they need; a drafter of none was found."""
BIAS = "layers.1.self_attn.k_proj.bias"


def biased(*left_out: str, **more: str) -> Change:
    """With biases of attention's layers, and of others by name."""
    names = [f"layers.{layer}.self_attn.{part}_proj.bias" for layer in range(NUM_LAYERS) for part in "qkvo"]
    return lambda tensors: {**tensors, **{name: torch.ones(2) for name in (*names, *more) if name not in left_out}}


def unstated(folder: Path, model_type: str) -> Path:
    """Of another type, without `attention_bias`."""
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    config.pop("attention_bias")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_biases_are_whole_and_stated(exported: Path, tmp_path: Path) -> None:
    """SGLang drops those that it builds none of, and leaves what is missing as it happens to be."""
    folder = changed(exported, tmp_path, biased())
    with pytest.raises(
        DDTreeConfigError, match=r"\(attention_bias\), got layers\.0\.self_attn\.q_proj\.bias, of which"
    ):
        check_drafter_weights(folder)
    check_drafter_weights(reconfigured(folder, attention_bias=True))
    # What Transformers takes for it where the file does not say.
    check_drafter_weights(unstated(changed(exported, tmp_path, biased()), "gpt_oss"))
    with pytest.raises(DDTreeConfigError, match=f"got no {BIAS}"):
        check_drafter_weights(unstated(changed(exported, tmp_path, biased(BIAS)), "gpt_oss"))
    with pytest.raises(DDTreeConfigError, match="got layers"):
        check_drafter_weights(unstated(changed(exported, tmp_path, biased()), "qwen3"))
    for name in ("fc.bias", "layers.0.mlp.down_proj.bias", "layers.1.mlp.gate_up_proj.bias"):
        folder = reconfigured(changed(exported, tmp_path, biased(**{name: ""})), attention_bias=True)
        with pytest.raises(DDTreeConfigError, match=f"got {name}, of which SGLang builds none"):
            check_drafter_weights(folder)


def test_zeros_beside_codes_are_no_biases(exported: Path, tmp_path: Path) -> None:
    """GPTQ's tools write them for each layer, and SGLang's loader passes over them."""
    check_drafter_weights(changed(exported, tmp_path, lambda tensors: biased()(to_awq(tensors)), "gptq"))


@pytest.mark.sglang
def test_types_whose_attention_has_biases_are_all_that_transformers_and_sglang_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sglang.srt.utils.hf_transformers.config  # noqa: F401  # registers SGLang's own
    from huggingface_hub import constants
    from transformers import CONFIG_MAPPING

    # Some ask for a part's configuration, which is nowhere here.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found, unmade = set(), set()
    for name in CONFIG_MAPPING:
        try:
            made = CONFIG_MAPPING[name]()
        except (OSError, TypeError, ValueError, StrictDataclassError):
            unmade.add(name)
            continue
        if getattr(made, "attention_bias", False):
            found.add(name)
    assert found == BIASED_TYPES
    assert unmade == UNMADE


@pytest.mark.sglang
@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("fields", "num_built"), [({}, 0), ({"attention_bias": True}, 2 * NUM_LAYERS)], ids=str)
def test_sglang_drops_biases_that_it_builds_none_of(
    fields: dict[str, Any], num_built: int, exported: Path, tmp_path: Path
) -> None:
    """What the refusal is for: without a word. It has those of queries, keys and values in one."""
    model = build(reconfigured(changed(exported, tmp_path, dict), **fields), "cpu")
    assert sum(name.endswith(".bias") for name, _ in model.named_parameters()) == num_built
    model.load_weights({"fc.bias": torch.ones(16), "layers.0.mlp.down_proj.bias": torch.ones(16)}.items())


@pytest.mark.sglang
@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("num_layers", [1, 3])
def test_norms_of_target_layers_that_are_not_named_are_as_many_as_sglang_builds(
    num_layers: int, exported: Path, tmp_path: Path
) -> None:
    """As many as the drafter has layers, which SGLang spreads over the target."""
    config = json.loads((exported / "config.json").read_text())
    config |= {"architectures": [GATED_ARCHITECTURE], "num_hidden_layers": num_layers, "num_target_layers": 9}
    config["dflash_config"] |= {"num_target_layers": 9, "target_layer_ids": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = build(tmp_path)
    built = {name: torch.ones(2) for name, _ in model.named_parameters()}
    norms = [name for name in built if name.startswith("aux_hidden_norms.")]
    assert len(norms) == model.num_context_features == num_layers

    def check(*left_out: str) -> None:
        save_file(without(*left_out)(built), tmp_path / "model.safetensors")
        check_drafter_weights(tmp_path)

    check()
    for name in norms:
        with pytest.raises(DDTreeConfigError, match=f"got no {name}"):
            check(name)
