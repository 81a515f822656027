"""Seconds of a round from a GPU's data sheet and the models' shapes: bytes and operations, and what a launch costs.

A forward reads its weights once and multiplies them with every row; it takes the longer of the two. Attention reads
each request's keys and values once, and multiplies. Beside that each layer takes a fixed time, and under tensor
parallelism two all-reduces. What is left out: the scheduler where it is slower than the device, sampling and the tree
itself, activations, norms, page tables, clocks that fall under load, and prompts. Predictions are therefore too fast,
most for many rows; `benchmarks/predict.py` sets them beside what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddtree_sglang.exceptions import DDTreeError

BYTES = 2
"""Of a value: bfloat16."""


class ShapeError(DDTreeError):
    """A config.json without the fields that decide a shape; the message names one."""


@dataclass(frozen=True)
class Gpu:
    """A data sheet's numbers, and what share of them kernels reach.

    `bandwidth` in bytes/s, `flops` dense bfloat16 operations/s, `link` NVLink bytes/s in one direction. `forward_s` and
    `layer_s` are what a captured forward and each of its layers take at least; `reduce_s` an all-reduce's latency.
    """

    name: str
    bandwidth: float
    flops: float
    link: float = 450e9
    bandwidth_share: float = 0.8
    flops_share: float = 0.7
    forward_s: float = 150e-6
    layer_s: float = 22e-6
    reduce_s: float = 10e-6


GPUS = {
    "h100": Gpu("one H100 SXM", 3.35e12, 989.4e12),
    "h200": Gpu("one H200 SXM", 4.8e12, 989.4e12),
}
"""NVIDIA's data sheets: HBM3 3.35 TB/s, HBM3e 4.8 TB/s; 989.4 TFLOP/s of dense bfloat16; NVLink 900 GB/s both ways."""


@dataclass(frozen=True)
class Shape:
    """A decoder's parameters that a forward reads, without the embedding, and what a token of context takes."""

    layers: int
    hidden: int
    layer_params: int
    head_params: int
    extra_params: int
    kv_values: int
    """Of all layers: keys and values of a token."""
    attention_width: int
    """Query heads times their size."""

    @classmethod
    def of(cls, config: Mapping[str, Any], *, target_features: int = 0) -> Shape:
        """From the fields of a config.json of the Llama family, Qwen3 included.

        Args:
            target_features: layers of the target whose hidden states a drafter projects; 0 for a target.

        Raises:
            ShapeError: a field is missing, or no positive whole number.
        """
        names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        layers, hidden, inner, heads, vocab = (_count(config, name) for name in names)
        kv_heads = _count(config, "num_key_value_heads") if "num_key_value_heads" in config else heads
        head = _count(config, "head_dim") if config.get("head_dim") else hidden // heads
        attention = hidden * head * (2 * heads + 2 * kv_heads)
        return cls(
            layers=layers,
            hidden=hidden,
            layer_params=attention + 3 * hidden * inner,
            head_params=vocab * hidden,
            extra_params=target_features * hidden * hidden,
            kv_values=2 * layers * kv_heads * head,
            attention_width=heads * head,
        )

    @property
    def params(self) -> int:
        """Read and multiplied in a forward that has logits."""
        return self.layers * self.layer_params + self.head_params + self.extra_params


def _count(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShapeError(f"config.json must have {name} as a whole number of 1 or more, got {value!r}.")
    return value


@dataclass(frozen=True)
class Roofline:
    """Costs of a target and its drafter on a GPU, or on `tp` of them."""

    gpu: Gpu
    target: Shape
    drafter: Shape
    block_size: int
    tp: int = 1

    def seconds(self, batch_size: int, mean_prefix: float, num_nodes: int) -> float:
        """See `simulator.costs.Costs`: the target's forward, and the drafter's over its block if there is a draft."""
        verify = self.forward_s(self.target, batch_size, num_nodes, mean_prefix)
        if num_nodes == 1:
            return verify
        return verify + self.forward_s(self.drafter, batch_size, self.block_size, mean_prefix)

    def forward_s(self, shape: Shape, batch_size: int, rows_each: int, mean_prefix: float) -> float:
        """A forward of so many rows of each request."""
        gpu, rows = self.gpu, batch_size * rows_each
        bandwidth, flops = gpu.bandwidth * gpu.bandwidth_share, gpu.flops * gpu.flops_share
        products = max(shape.params * BYTES / bandwidth, 2 * shape.params * rows / flops)
        context = batch_size * mean_prefix * shape.kv_values * BYTES / bandwidth
        scores = 4 * rows * mean_prefix * shape.attention_width * shape.layers / flops
        launches = gpu.forward_s + shape.layers * gpu.layer_s
        return (products + max(context, scores)) / self.tp + launches + self._reduce_s(shape, rows)

    def _reduce_s(self, shape: Shape, rows: int) -> float:
        """Two all-reduces a layer; a ring sends each value twice, less what is there."""
        if self.tp == 1:
            return 0.0
        sent = 2 * (self.tp - 1) / self.tp * rows * shape.hidden * BYTES / self.gpu.link
        return 2 * shape.layers * (self.gpu.reduce_s + sent)
