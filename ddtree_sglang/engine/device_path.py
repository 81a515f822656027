"""Whether a round runs on a device: Triton kernels, CUDA graphs, nothing read back. The host's path has none of them.

One question for the whole engine, asked of SGLang's platform and not of a tensor: a platform keeps its tensors where it
likes, and answers as what it is.
"""

from __future__ import annotations


def is_device_path() -> bool:
    """True on CUDA and wherever else SGLang launches Triton kernels (platforms/interface.py); False on a CPU."""
    from sglang.srt.platforms import current_platform

    return bool(current_platform.capabilities.supports_triton)
