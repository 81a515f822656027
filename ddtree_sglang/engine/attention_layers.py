"""What the layers of a loaded model have, as SGLang's models keep it: sliding windows and attention sinks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SINKS = ("sinks", "attention_sink_bias")
"""Names that SGLang's models keep a layer's attention sinks under (gpt_oss, granite, granitemoe; mimo_v2)."""


def attending(model: Any) -> Iterator[Any]:
    """What of a model attends: SGLang's `RadixAttention` of each layer, by name."""
    return (module for module in model.modules() if type(module).__name__ == "RadixAttention")


def window_sizes(model: Any) -> set[int]:
    """Lengths of the windows of a model's layers, in positions before a query's own."""
    sizes = {layer.sliding_window_size for layer in attending(model)}
    return {int(size) for size in sizes if size is not None and size >= 0}


def has_sinks_without_window(model: Any) -> bool:
    """Whether some layer of a model attends to everything and has attention sinks."""
    return any(map(_is_layer_with_sinks, model.modules()))


def _is_layer_with_sinks(module: Any) -> bool:
    if all(getattr(module, name, None) is None for name in SINKS):
        return False
    # RadixAttention: -1 where a layer sees everything (layers/radix_attention.py).
    window = getattr(getattr(module, "attn", None), "sliding_window_size", None)
    return window is None or int(window) < 0
