"""The platform: a GPU to whoever asks SGLang, host memory to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.platforms.device_mixin import DeviceCapability, PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

MEMORY_BYTES = 2 << 30


class LanePlatform(SRTPlatform):
    """Triton kernels and captured graphs, on host memory."""

    _enum = PlatformEnum.OOT
    device_name = "lane"
    device_type = "cpu"
    capabilities = PlatformCapabilities(supports_triton=True, graph_capture=True)

    # ---- identity

    def get_device(self, device_id: int = 0) -> str:
        """One device, whatever the rank: torch gives the host no second index."""
        return "cpu:0"

    def get_device_capability(self, device_id: int = 0) -> DeviceCapability:
        """Hopper's."""
        return DeviceCapability(9, 0)

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Bytes."""
        return MEMORY_BYTES

    def get_current_memory_usage(self, device: torch.device | None = None) -> float:
        """Bytes."""
        return 0.0

    def get_available_memory(self, device_id: int = 0) -> tuple[int, int]:
        """Free and total bytes."""
        return MEMORY_BYTES, MEMORY_BYTES

    def get_torch_distributed_backend_str(self) -> str:
        """What connects ranks."""
        return "gloo"

    # ---- server arguments

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """The index keeps SGLang from taking its own branches for a CPU; it has stripped it from the flag."""
        server_args.device = self.get_device()
        if server_args.attention_backend is None:
            server_args.attention_backend = self.get_default_attention_backend()
        server_args.sampling_backend = "pytorch"
        if server_args.mem_fraction_static is None:
            # SGLang's rule reckons with gigabytes of activations.
            server_args.mem_fraction_static = 0.5

    def get_default_attention_backend(self) -> str:
        """The backend whose kernels are Triton's."""
        return "triton"

    # ---- speculative decoding

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """All of them, as on CUDA."""
        return True

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        """The target's."""
        return self.get_default_attention_backend()

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        """All of them."""
        return True

    # ---- recurrent layers

    def support_mamba_cache_extra_buffer(self) -> bool:
        """The prefix cache gets copies of states, as on CUDA."""
        return True

    # ---- graphs

    def get_graph_runner_cls(self) -> Callable[..., Any]:
        """The class that a model runner asks for itself, which SGLang passes over for platforms like this one."""

        def make(runner: Any, **kwargs: Any) -> Any:
            return runner._decode_cuda_graph_runner_cls()(runner, **kwargs)

        return make

    def get_full_graph_backend_cls(self) -> type:
        """Recordings."""
        from tests.device_lane.graphs import full_graph_backend

        return full_graph_backend()

    # ---- start

    def init_backend(self) -> None:
        """Experts by torch, in a form that a graph can hold; SGLang's own torch form counts tokens on the host."""
        from sglang.kernels.fused_op import BaseFusedOp
        from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

        from tests.device_lane.experts import forward

        BaseFusedOp.register_oot_forward(UnquantizedFusedMoEMethod, forward, self.get_dispatch_key_name())

    def post_load_model(self, model: torch.nn.Module) -> None:
        """Weights are the device's; making a parameter of a tensor loses its mark."""
        from tests.device_lane.device import mark

        for tensor in (*model.parameters(), *model.buffers()):
            mark(tensor)
