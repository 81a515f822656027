"""What a target that sees says of a prompt with pictures, in plain torch: Hugging Face's model, without a cache."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from PIL import Image
from transformers import Qwen3VLMoeForConditionalGeneration, Qwen3VLProcessor

Pictures = tuple[str, ...]
"""As requests take them: data URLs."""


@dataclass(frozen=True)
class Said:
    """Of all places of a prompt: `[1, T, V]`, and what goes into each layer, `[1, T, H]`."""

    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Sight:
    """A target with its vision part; `pad` is the token in a picture's place."""

    model: Any
    processor: Any
    pad: int
    # A layer's hooks are told of every forward, and two scenes choose their requests at once.
    alone: Lock = field(default_factory=Lock)

    def of(self, pictures: Pictures) -> Seen:
        """The target as a request with these pictures has it."""
        images = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))) for one in pictures]
        read = self.processor.image_processor(images=images, return_tensors="pt")
        merged = self.processor.image_processor.merge_size**2
        counts = tuple(int(grid.prod()) // merged for grid in read["image_grid_thw"])
        return Seen(self, read["pixel_values"], read["image_grid_thw"], counts)


@dataclass(frozen=True)
class Seen:
    """Of one request: patches `[patches, values]`, their grid `[pictures, 3]` and each picture's number of places."""

    sight: Sight
    patches: torch.Tensor
    grid: torch.Tensor
    counts: tuple[int, ...]

    def expanded(self, row: list[int]) -> list[int]:
        """Tokens with all places of the pictures."""
        counts = iter(self.counts)
        return [one for token in row for one in [token] * (next(counts) if token == self.sight.pad else 1)]

    def __call__(self, rows: torch.Tensor, **_options: Any) -> Said:
        """Of tokens `[1, T]` with one place for each picture; what is asked beside them is always there."""
        row = torch.tensor([self.expanded(rows[0].tolist())])
        language = self.sight.model.model.language_model
        inputs: list[torch.Tensor] = []
        with self.sight.alone:
            # A layer's output has no picture yet that is added behind it; the next one's input has.
            hooks = [
                layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in language.layers
            ]
            try:
                logits = self.sight.model(
                    input_ids=row,
                    pixel_values=self.patches,
                    image_grid_thw=self.grid,
                    mm_token_type_ids=(row == self.sight.pad).int(),
                    use_cache=False,
                ).logits
            finally:
                for hook in hooks:
                    hook.remove()
        return Said(logits, tuple(inputs))


def sight_of(folder: str, text: Any, pad: int) -> Sight:
    """Of a checkpoint, with the text part that is in memory: its experts are named as another class has them."""
    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.model.language_model.load_state_dict(text.model.state_dict())
    return Sight(model.eval(), Qwen3VLProcessor.from_pretrained(folder), pad)
