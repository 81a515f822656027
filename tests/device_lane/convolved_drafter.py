"""A drafter whose layers convolve what goes into attention and MLP, and what comes out, as plain torch.

It is what SGLang serves by `conv_kernel_size` and `conv_group_size` of a drafter's dflash_config (models/dflash.py,
`DFlashGroupedConv`), as DFlash2's and LiLiCorr's drafters are published: across one block, with taps that depend on the
token.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.drafter_model import DrafterLayer, Rope
from tests.device_lane.pairs import TinyPair

TAPS, GROUP_SIZE = 3, 8
SCALE = 0.2
"""Of the random taps beside the first one's 1: enough to change drafts, and little enough to leave some right."""


class GroupedConvolution(nn.Module):
    """Of a token and the ones before it in its block; a group of channels has its own taps, which the token gives."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.num_groups = hidden_size // GROUP_SIZE
        self.base_kernel = nn.Parameter(torch.zeros(2, TAPS, hidden_size))
        self.kernel_projection = nn.Linear(hidden_size, 2 * TAPS * self.num_groups, bias=False)

    def taps(self, x: Tensor) -> Tensor:
        """`[..., S, 2, taps, H]` for the way in and the way out, of normalised tokens `[..., S, H]`."""
        of_groups = self.kernel_projection(x).unflatten(-1, (2, TAPS, self.num_groups))
        return self.base_kernel + of_groups.repeat_interleave(GROUP_SIZE, dim=-1)

    @staticmethod
    def convolved(x: Tensor, taps: Tensor) -> Tensor:
        """`[..., S, H]`, one token and one tap at a time; `taps` are `[..., S, taps, H]`."""
        out = torch.zeros_like(x)
        for place in range(x.shape[-2]):
            for back in range(min(TAPS, place + 1)):
                out[..., place, :] += taps[..., place, back, :] * x[..., place - back, :]
        return out


class ConvolvedLayer(DrafterLayer):
    """Both halves between two convolutions with taps of the same tokens."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        self.attention_conv = GroupedConvolution(config.hidden_size)
        self.mlp_conv = GroupedConvolution(config.hidden_size)

    def forward(
        self, hidden: Tensor, context: Tensor, block_rope: Rope, context_rope: Rope, context_bias: Tensor
    ) -> Tensor:
        """Sizes are those of the base class."""
        normed = self.input_layernorm(hidden)
        taps = self.attention_conv.taps(normed)
        x = self.attention_conv.convolved(normed, taps[..., 0, :, :])
        attended = self.self_attn(x, context, block_rope, context_rope, context_bias)
        hidden = hidden + self.attention_conv.convolved(attended, taps[..., 1, :, :])
        normed = self.post_attention_layernorm(hidden)
        taps = self.mlp_conv.taps(normed)
        x = self.mlp(self.mlp_conv.convolved(normed, taps[..., 0, :, :]))
        return hidden + self.mlp_conv.convolved(x, taps[..., 1, :, :])


def with_convolutions(pair: TinyPair) -> TinyPair:
    """The pair with random convolutions in its drafter's layers, in the files as well."""
    drafter, folder = pair.drafter, Path(pair.draft)
    generator = torch.Generator().manual_seed(5)
    tensors = load_file(folder / "model.safetensors")
    for index, layer in enumerate(drafter.layers):
        convolved = ConvolvedLayer(drafter.config)
        convolved.self_attn = layer.self_attn
        convolved.load_state_dict(layer.state_dict(), strict=False)
        for name in ("attention_conv", "mlp_conv"):
            convolution = getattr(convolved, name)
            with torch.no_grad():
                for parameter in convolution.parameters():
                    parameter.copy_(SCALE * torch.randn(parameter.shape, generator=generator))
                convolution.base_kernel[:, 0] += 1
            tensors |= {f"layers.{index}.{name}.{key}": value for key, value in convolution.state_dict().items()}
        drafter.layers[index] = convolved.requires_grad_(False)
    save_file(tensors, folder / "model.safetensors")
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    sizes = {"conv_kernel_size": TAPS, "conv_group_size": GROUP_SIZE}
    config["dflash_config"] = {**config.get("dflash_config", {}), **sizes}
    file.write_text(json.dumps(config), encoding="utf-8")
    return pair
