"""Changes for targets with recurrent layers: to SGLang's models, by a worker whose target is one; to what they get."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

SHORT_CONVOLUTION_PATCHES = tuple(
    Patch(
        f"sglang.srt.models.{module}.shortconv_target_verify",
        "assign",
        "ddtree_sglang.engine.stages.short_convolutions:along_paths",
        "nodes of a tree would be convolved as a chain",
    )
    for module in ("lfm2", "lfm2_moe")
)

STATE_MEMORY_PATCHES = (
    Patch(
        "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._handle_max_mamba_cache",
        "around",
        "ddtree_sglang.engine.admission.state_memory:limit_nodes",
        "states of a tree's nodes would take the place of requests, or of all keys, and the reason be another",
    ),
)

STATE_KERNEL_PATCHES = (
    Patch(
        "sglang.srt.arg_groups.kimi_k3_hook.apply_kimi_k3_spec_backend_defaults",
        "around",
        "ddtree_sglang.engine.admission.state_kernels:verify_by_triton",
        "Kimi-K3 would be refused for a kernel that nobody asked for",
    ),
)
