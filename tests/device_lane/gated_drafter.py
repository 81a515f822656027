"""A drafter whose attention is gated and whose context is normed again, as Laguna's drafters have it, in plain torch.

It is what SGLang serves as `DFlashLagunaForCausalLM` (models/dflash.py): softpluses of a block's token weigh the heads'
outputs, each as a whole or number by number, each target layer's features have a norm before `fc`, and a layer's norm
comes before its keys and values of the context, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.drafter_model import BlockAttention, DFlashDrafter, DrafterLayer, RMSNorm, Rope
from ddtree_sglang.training.model.export import export_drafter
from tests.device_lane.pairs import TRAINING_STEPS, TinyPair, train
from tests.support.drafter_parts import state_parts

ARCHITECTURE = "DFlashLagunaForCausalLM"


Gating = Literal["per-head", "per-element"]


class GatedAttention(BlockAttention):
    """A weight per head or per number of its output, which the token gives."""

    def __init__(self, config: DrafterConfig, gating: Gating) -> None:
        super().__init__(config)
        self.weighted = self.head_dim if gating == "per-head" else 1  # numbers of a weight
        num_gates = config.num_attention_heads * self.head_dim // self.weighted
        self.g_proj = nn.Linear(config.hidden_size, num_gates, bias=False)

    def forward(self, x: Tensor, context: Tensor, block_rope: Rope, context_rope: Rope, context_bias: Tensor) -> Tensor:
        """Sizes are those of the base class; the gate comes before its output projection."""
        gate = nn.functional.softplus(self.g_proj(x)).repeat_interleave(self.weighted, dim=-1)
        hook = self.o_proj.register_forward_pre_hook(lambda _, given: (given[0] * gate,))
        try:
            return super().forward(x, context, block_rope, context_rope, context_bias)
        finally:
            hook.remove()


class GatedLayer(DrafterLayer):
    """With gates; keys and values of the context are of normed rows, as those of the block."""

    def __init__(self, config: DrafterConfig, gating: Gating) -> None:
        super().__init__(config)
        self.self_attn = GatedAttention(config, gating)

    def forward(
        self, hidden: Tensor, context: Tensor, block_rope: Rope, context_rope: Rope, context_bias: Tensor
    ) -> Tensor:
        """Sizes are those of the base class."""
        return super().forward(hidden, self.input_layernorm(context), block_rope, context_rope, context_bias)


class NormedProjection(nn.Linear):
    """`fc` behind a norm for the features of each target layer."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config.feature_size, config.hidden_size, bias=False)
        self.norms = nn.ModuleList(
            RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(len(config.target_layer_ids))
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[..., F * H]` to `[..., H]`."""
        parts = features.chunk(len(self.norms), dim=-1)
        return super().forward(torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], dim=-1))


def with_gates(pair: TinyPair, gating: Gating = "per-head") -> TinyPair:
    """The pair with a drafter that has gates and norms, trained on with them, in the files as well."""
    drafter, folder = pair.drafter, Path(pair.draft)
    plain = {*drafter.state_dict()}
    torch.manual_seed(7)
    for index, layer in enumerate(drafter.layers):
        gated = GatedLayer(drafter.config, gating)
        gated.load_state_dict(layer.state_dict(), strict=False)
        drafter.layers[index] = gated
    projection = NormedProjection(drafter.config)
    projection.load_state_dict(drafter.fc.state_dict(), strict=False)
    drafter.fc = projection
    with torch.no_grad():
        for name, parameter in drafter.named_parameters():
            if name not in plain:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    train(drafter, pair.target, 0, TRAINING_STEPS)
    tensors = {_own(name): one.detach().contiguous() for name, one in drafter.state_dict().items()}
    base = DFlashDrafter(drafter.config)
    base.load_state_dict({name: one for name, one in tensors.items() if name in plain})
    export_drafter(base, folder, torch.float32)
    file = folder / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})
    state_parts(folder, architectures=[ARCHITECTURE], gating=gating)
    drafter.requires_grad_(False).eval()
    return pair


def _own(name: str) -> str:
    """SGLang's name of a weight."""
    return name.replace("fc.norms.", "aux_hidden_norms.")
