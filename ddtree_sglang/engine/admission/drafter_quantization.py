"""What does ModelOpt's `hf_quant_config.json` say of a drafter whose `config.json` is silent, and does SGLang heed it?

SGLang reads that file twice: for the method (configs/model_config.py, `_parse_quant_hf_config`), and for what is
quantized (model_loader/weight_utils.py, `get_quant_config`). An algorithm that the first reading does not know leaves
codes that are taken for values. For MXFP8, and for mixtures, the second does not look into the file: weights are then
taken for plain ones, or for those of another format. None of these is a word in the log.
Knows nothing of SGLang.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddtree_sglang.exceptions import DDTreeConfigError
from ddtree_sglang.modelopt_file import FILE, Said, is_said_in_config, read_modelopt

PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
"""How safetensors names types that weights are read from as they are."""
_CODE_TYPES = ("U8", "I8", "F8_E4M3", "F8_E5M2")
"""Types of quantized weights, of which a value is nothing without its scale."""
SHARDS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""SGLang's fused layers, and what checkpoints have in their place."""
METHODS = frozenset(
    {
        "auto-round",
        "auto-round-int8",
        "awq",
        "awq_marlin",
        "bitsandbytes",
        "blockwise_int8",
        "compressed-tensors",
        "compressed_tensors",
        "fp8",
        "gguf",
        "gptq",
        "gptq_marlin",
        "humming",
        "minimax_m3_nvfp4",
        "modelopt",
        "modelopt_fp4",
        "modelopt_fp8",
        "modelopt_mixed",
        "modelslim",
        "moe_wna16",
        "mxfp4",
        "mxfp8",
        "mxfp_w4a8",
        "nvfp4_online",
        "petit_nvfp4",
        "quark",
        "quark_int4fp8_moe",
        "quark_mxfp4",
        "w4afp8",
        "w8a8_fp8",
        "w8a8_int8",
    }
)
"""Names of methods that SGLang knows on some device (layers/quantization/__init__.py, `QUANTIZATION_METHODS`). What it
takes of a file on top of them are other spellings of these."""
_RELEASE = "take the file from the drafter's release"


@dataclass(frozen=True, slots=True)
class StoredForm:
    """How a linear layer is stored.

    Attributes:
        dtype: of its weight, as safetensors names it.
        scales: what else there must be of it. Without one SGLang goes on with a number of its own, or with noise.
    """

    dtype: str
    scales: tuple[str, ...]


FORMS = {
    "FP8": StoredForm("F8_E4M3", ("weight_scale", "input_scale")),
    "NVFP4": StoredForm("U8", ("weight_scale", "weight_scale_2", "input_scale")),
    "W4A16_NVFP4": StoredForm("U8", ("weight_scale", "weight_scale_2")),
}
"""Algorithms that SGLang takes from the file as it is (layers/quantization/modelopt_quant.py).

NVFP4_AWQ is none of them: it has a scale of inputs, which SGLang would place among a fused layer's outputs.
"""


@dataclass(frozen=True, slots=True)
class FileQuantization:
    """What the file says.

    Attributes:
        algorithm: one of `FORMS`.
        left_out: patterns of modules that stay plain.
    """

    algorithm: str
    left_out: tuple[str, ...]

    @property
    def form(self) -> StoredForm:
        """How each linear layer that is quantized is stored."""
        return FORMS[self.algorithm]

    def leaves_out(self, module: str) -> bool:
        """Whether SGLang builds the module of this name, one of its own, for plain weights.

        A pattern is a path, whole or in part, or a text of which `*` is any, for the whole name or one part of it
        (layers/quantization/utils.py, `is_layer_skipped`; modelopt_quant.py, `is_layer_excluded`).
        """
        stem, _, last = module.rpartition(".")
        shards = [f"{stem}.{one}" if stem else one for one in SHARDS.get(last, (last,))]
        if all(any(_is_part(path, one) for path in self.left_out) for one in shards):
            return True
        texts = [_as_text(one) for one in self.left_out]
        return any(text.fullmatch(name) for text in texts for name in (module, *module.split(".")))


def wrong_method(drafter: Mapping[str, Any]) -> str | None:
    """A method of a `quantization_config` that SGLang has no class for on any device; None if there is none such."""
    method = (drafter.get("quantization_config") or {}).get("quant_method")
    if method is None or (isinstance(method, str) and method.lower() in METHODS):
        return None
    return f"quant_method in quantization_config must be one of {sorted(METHODS)}, got {method!r}"


def _is_part(path: str, module: str) -> bool:
    return f".{path.rstrip('.')}." in f".{module}."


def quantization_by_file(folder: Path, drafter: Mapping[str, Any]) -> FileQuantization | None:
    """What the file in a drafter's folder says; None where there is none that counts, or it names no algorithm.

    Args:
        folder: of the checkpoint.
        drafter: its parsed `config.json`.

    Raises:
        DDTreeConfigError: SGLang does not read the file as it is meant.
    """
    path = folder / FILE
    if is_said_in_config(drafter) or not path.is_file():
        return None
    said = _read(path)
    if _is_said_twice(said):
        raise DDTreeConfigError(
            f"a drafter's {FILE} must say its quantization once, at its top or in `quantization`, got it in two "
            f"places, of which SGLang reads one for the method and one for the rest; {_RELEASE}."
        )
    section, algorithm = said.section, said.algorithm
    if section is None or algorithm is None:
        return None
    text = drafter.get("text_config")
    if isinstance(text, dict) and text.get("quantization_config") is not None:
        raise DDTreeConfigError(
            f"a drafter must say its quantization in one place, got it in {FILE} and in text_config of its "
            "config.json, of which SGLang reads one for the method and one for the rest; take it out of either."
        )
    if not isinstance(algorithm, str) or algorithm not in FORMS:
        raise DDTreeConfigError(
            f"a drafter whose quantization stands in {FILE} alone must be quantized by one of {', '.join(FORMS)}, "
            f"which SGLang reads there, got {algorithm!r}; use a checkpoint that says it in its config.json "
            "(quantization_config), or one in half precision."
        )
    return FileQuantization(algorithm, _left_out(section, algorithm, is_flat=said.is_flat))


def _left_out(section: Mapping[str, Any], algorithm: str, *, is_flat: bool) -> tuple[str, ...]:
    """From the field that SGLang reads, each algorithm's configuration by itself (`from_config`)."""
    fields: tuple[str, ...] = ("exclude_modules",)
    if is_flat:
        fields = ("ignore",) if algorithm == "FP8" else ("ignore", "modules_to_not_convert", "exclude_modules")
    names = next((section[field] for field in fields if field in section), None)
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DDTreeConfigError(
            f"what a drafter's {FILE} leaves out must be a list of names, got {names!r}; {_RELEASE}."
        )
    for name in names:
        try:
            _as_text(name)
        except re.error as error:
            raise DDTreeConfigError(
                f"what a drafter's {FILE} leaves out must be names of modules in which * is any text, got {name!r}, "
                f"which SGLang cannot compare with any ({error}); {_RELEASE}."
            ) from error
    return tuple(names)


def _as_text(name: str) -> re.Pattern[str]:
    return re.compile(name.replace(".", r"\.").replace("*", ".*"))


def _is_said_twice(said: Said) -> bool:
    if said.is_flat:
        return False
    return said.whole.get("quant_algo") is not None or isinstance((said.section or {}).get("quantization"), dict)


def _read(path: Path) -> Said:
    try:
        return read_modelopt(path)
    except (OSError, ValueError) as error:
        raise DDTreeConfigError(
            f"a drafter's {FILE} must be a JSON object that can be read, got {error}; {_RELEASE}."
        ) from error


def check_stored_as_told(told: FileQuantization, modules: Mapping[str, str], tensors: Mapping[str, str]) -> None:
    """Refuse linear layers that are not stored as SGLang takes them to be.

    Args:
        told: what the file says.
        modules: name of each linear layer as it is stored, to the name by which SGLang asks the file for it.
        tensors: the type of each tensor by its name.

    Raises:
        DDTreeConfigError: one is plain and not left out or the reverse, of another type, or without a scale.
    """
    for stored, asked in modules.items():
        dtype = tensors.get(f"{stored}.weight")
        is_plain = told.leaves_out(asked)
        if is_plain != (dtype in PLAIN_TYPES):
            leaves = "leaves" if is_plain else "does not leave"
            raise _wrong(told, f"{stored} of type {dtype}, which SGLang {leaves} out by it")
        if is_plain:
            continue
        if dtype != told.form.dtype:
            raise _wrong(told, f"{stored} of type {dtype}")
        missing = [scale for scale in told.form.scales if f"{stored}.{scale}" not in tensors]
        if missing:
            raise _wrong(told, f"no {stored}.{missing[0]}")


def _wrong(told: FileQuantization, found: str) -> DDTreeConfigError:
    return DDTreeConfigError(
        f"a drafter's linear layers must be stored as SGLang reads its {FILE}, {told.algorithm} being "
        f"{told.form.dtype} with {', '.join(told.form.scales)}, got {found}. SGLang would serve it all the same, and "
        "hardly a guess would hit. Export the drafter again, or use another one."
    )


def quantized_names(tensors: Mapping[str, str]) -> list[str]:
    """Names of tensors that hold codes, scales excepted."""
    return [name for name, dtype in tensors.items() if dtype in _CODE_TYPES and not name.endswith("_scale")]
