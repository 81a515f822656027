"""The target that a drafter is trained for: its Hugging Face folder, and what is read from there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ddtree_sglang.training.data.completers import end_token_ids


@dataclass(frozen=True)
class TargetFolder:
    """A causal language model as a Hugging Face folder, and the device that it runs on."""

    folder: Path
    device: str  # such as "cpu" or "cuda"

    def load(self, dtype: torch.dtype) -> Any:
        """The model with weights of this dtype, in evaluation mode.

        Raises:
            ValueError: the weights are damaged.
        """
        from transformers import AutoModelForCausalLM

        try:
            return AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).to(self.device).eval()
        except SafetensorError as error:
            raise ValueError(
                f"the target's weights in {self.folder} are damaged ({error}): fetch them again."
            ) from error

    def tokenizer(self) -> Any:
        """The target's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def end_ids(self) -> tuple[int, ...]:
        """The target's end tokens, found without its weights."""
        from transformers import AutoConfig, GenerationConfig

        configs: list[Any] = [AutoConfig.from_pretrained(self.folder), self.tokenizer()]
        if (self.folder / "generation_config.json").exists():
            configs.insert(0, GenerationConfig.from_pretrained(self.folder))
        return end_token_ids(*configs)
