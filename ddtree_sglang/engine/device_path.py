"""Whether a round runs on a device: Triton kernels, CUDA graphs, nothing read back. The host's path has none of them.

Questions of the whole engine, asked of SGLang's platform and not of a tensor: a platform keeps its tensors where it
likes, and answers as what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_device_path() -> bool:
    """True on CUDA and wherever else SGLang launches Triton kernels (platforms/interface.py); False on a CPU."""
    from sglang.srt.platforms import current_platform

    return bool(current_platform.capabilities.supports_triton)


def product_forms(models: Sequence[torch.nn.Module]) -> list[list[str]]:
    """In which forms each model's products are computed, where the platform chose among several; else nothing.

    A form is the platform's own word, the same for the same form. It may be chosen up to when the drafter is ranked.
    """
    from sglang.srt.platforms import current_platform

    forms = getattr(current_platform, "product_forms", None)
    return [] if forms is None else [list(forms(model)) for model in models]
