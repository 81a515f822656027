"""The platform class: what SGLang asks a machine without a GPU, and what this project answers.

It holds only decisions (defaults, class names, capabilities). The work is done by the modules it names.
Invariant: every method can be called in any process of the server, in any order, any number of times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import KVPoolKind, PlatformCapabilities, SRTPlatform

from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND, DISPATCH_KEY, SPECULATIVE_ALGORITHMS

if TYPE_CHECKING:
    import torch


class DDTreeCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang on plain CPU cores: torch for everything, no Triton launch, no `sgl_kernel`."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def __init__(self) -> None:
        super().__init__()
        from ddtree_sglang.cpu_platform.hooks import register_names

        register_names()

    # ---- identity

    def get_device(self, device_id: int = 0) -> str:
        """The device string of `--device`: one CPU, whatever the rank."""
        return self.device_type

    def is_pin_memory_available(self, device: Any = None) -> bool:
        """False: there is no device to pin host memory for."""
        return False

    def get_torch_profiler_activity_str(self) -> str:
        """What `/start_profile` calls this device; SGLang's default raises, which would end the scheduler."""
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """The profiler activity of that name."""
        from torch.profiler import ProfilerActivity

        return ProfilerActivity.CPU

    # ---- server arguments

    def get_default_attention_backend(self) -> str:
        """The attention backend when the user names none."""
        return ATTENTION_BACKEND

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Fill in what a CPU server needs and refuse flags that it cannot honour (DDTreeConfigError)."""
        from ddtree_sglang.cpu_platform.server_defaults import apply_defaults

        apply_defaults(server_args)

    # ---- speculative decoding

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """True for the algorithms whose whole round was made to run without Triton."""
        return algorithm.upper() in SPECULATIVE_ALGORITHMS

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        """The drafter's attention backend, which is the target's."""
        return ATTENTION_BACKEND

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        """Only our backend knows the drafter's bidirectional block."""
        return backend == ATTENTION_BACKEND

    def get_speculative_cache_locs_fn(self) -> Callable[..., torch.Tensor]:
        """Torch version of the KV window lookup (`kernels/ops/speculative/cache_locs.py`)."""
        from ddtree_sglang.cpu_platform.triton_replacements import extend_cache_locs

        return extend_cache_locs

    # ---- subsystems

    def get_kv_pool_cls(self, *, kind: KVPoolKind) -> type | None:
        """Our KV pool for multi-head attention; other kinds stay SGLang's own."""
        if kind != "mha":
            return None
        from ddtree_sglang.cpu_platform.kv_pool import CpuMHATokenToKVPool

        return CpuMHATokenToKVPool

    def get_quantization_config(self, quantization: str) -> type:
        """Quantized weights become plain ones (DDTreeConfigError for those that cannot)."""
        from ddtree_sglang.cpu_platform.quantized import quantization_config

        return quantization_config(quantization)

    def get_dispatch_key_name(self) -> str:
        """Key under which our operator implementations are registered with `BaseFusedOp`."""
        return DISPATCH_KEY

    def init_backend(self) -> None:
        """Called by SGLang in each worker before any model is built: register backend, operators, hooks."""
        from ddtree_sglang.cpu_platform.hooks import install_hooks, register_backend
        from ddtree_sglang.cpu_platform.operators import register_operators

        register_backend()
        register_operators()
        install_hooks()

    def post_load_model(self, model: torch.nn.Module) -> None:
        """Called by SGLang once a model's weights are loaded: faster products, a shorter layer loop, adapters."""
        from sglang.srt.runtime_context import get_exec, get_lora

        from ddtree_sglang.cpu_platform import dense_linear, hooks, lean_llama, lora

        lean_llama.install(model)
        dense_linear.install(model)
        if hasattr(model, "project_target_hidden"):
            dense_linear.reduce_drafter(model)
            hooks.install_draft_head()
        if get_lora().enable_lora:
            lora.install()
        if get_exec().features.enable_return_routed_experts:
            hooks.install_capture_memory()

    def product_forms(self, model: torch.nn.Module) -> list[str]:
        """In which forms this model's products are computed: not SGLang's question, but our engine's (device_path)."""
        from ddtree_sglang.cpu_platform import dense_linear

        return dense_linear.forms(model)
