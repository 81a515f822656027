"""What showing a trace or a server relies on: how ids become text, and how Prometheus' text is read."""

from __future__ import annotations

from ddtree_sglang.contract.check import Row

VIEWER: tuple[Row, ...] = (
    Row("prometheus_client.parser", "text_string_to_metric_families", "", "metrics"),
    Row("tokenizers", "Tokenizer", "", "vocabulary"),
    # Of the same module's compiled part.
    Row("tokenizers", "Tokenizer.from_file", "", "vocabulary", compiled=True),
    Row("transformers.models.auto.tokenization_auto", "AutoTokenizer", "from_pretrained", "vocabulary"),
    Row("transformers.tokenization_utils_base", "PreTrainedTokenizerBase", "decode", "vocabulary"),
)
