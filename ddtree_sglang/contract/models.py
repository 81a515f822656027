"""What preparing the embedded pair and training a drafter rely on of transformers; serving needs none of it.

transformers makes the names of its top level on demand, so the rows name the modules that define them.
"""

from __future__ import annotations

from ddtree_sglang.contract.check import Row

MODELS: tuple[Row, ...] = (
    Row("transformers", "__version__", "", "smollm2_source"),
    Row("transformers.generation.configuration_utils", "GenerationConfig", "from_pretrained", "target"),
    Row("transformers.models.auto.configuration_auto", "AutoConfig", "from_pretrained", "target, target_check"),
    Row(
        "transformers.models.auto.modeling_auto",
        "AutoModelForCausalLM",
        "from_pretrained",
        "smollm2_source, target, target_check",
    ),
    Row(
        "transformers.models.auto.tokenization_auto",
        "AutoTokenizer",
        "from_pretrained",
        "smollm2_source, target",
    ),
    Row(
        "transformers.tokenization_utils_base",
        "PreTrainedTokenizerBase",
        "apply_chat_template chat_template get_vocab",
        "scoring, self_generation, target_check",
    ),
    Row("transformers.utils.quantization_config", "GgufConfig", "dequantize gguf_file", "smollm2_source"),
)
