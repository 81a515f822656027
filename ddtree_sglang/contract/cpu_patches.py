"""Every change that the CPU platform makes to other packages' code."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

_ARGS = "sglang.srt.server_args.ServerArgs"
_CPU_HOOKS = "ddtree_sglang.cpu_platform.hooks"
_CPU_ARGS = "ddtree_sglang.cpu_platform.server_defaults"

TORCH_PATCHES = (
    Patch(
        "sglang.kernels.ops.attention.table_qk_norm_rope.table_qk_norm_rope_",
        "replace",
        "ddtree_sglang.cpu_platform.operators:table_qk_norm_rope_",
        "torch in place of a Triton launch",
    ),
    Patch(
        "sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func",
        "replace",
        "ddtree_sglang.cpu_platform.triton_replacements:assign_req_to_token_pool",
        "torch in place of a Triton launch",
    ),
    Patch(
        "sglang.srt.mem_cache.allocation.get_last_loc",
        "replace",
        "ddtree_sglang.cpu_platform.triton_replacements:last_slots",
        "torch in place of a Triton launch",
    ),
    Patch(
        "sglang.srt.constrained.xgrammar_backend.XGrammarGrammarBackend.apply_vocab_mask",
        "replace",
        "ddtree_sglang.cpu_platform.triton_replacements:apply_token_mask",
        "a request with a thinking budget would end the server",
    ),
    Patch(
        "torch.Tensor.record_stream",
        "assign",
        f"{_CPU_HOOKS}:ignoring_cpu_tensors",
        "DFLASH's worker calls it on the batch's lengths, and CPU tensors have no streams",
    ),
)

DRAFT_HEAD_PATCHES = (
    Patch(
        "sglang.srt.speculative.dflash_worker_v2.DFlashWorkerV2._greedy_sample_from_vocab_parallel_head",
        "around",
        f"{_CPU_HOOKS}:draft_head_by_its_own_product",
        "the stock chain's LM head uses the packed weights, as DDTREE's does",
    ),
)
"""Installed once a DFlash drafter is loaded: before, the worker's module cannot be imported."""

_CPU_LORA = "ddtree_sglang.cpu_platform.lora"
_LORA_BACKEND = "sglang.srt.lora.backend"

LORA_PATCHES = (
    Patch(
        "sglang.srt.lora.layers.torch",
        "assign",
        f"{_CPU_LORA}:without_pinning",
        "adapters' layers pin host memory, which raises without a GPU",
    ),
    Patch(
        f"{_LORA_BACKEND}.torch_backend.torch",
        "assign",
        f"{_CPU_LORA}:without_pinning",
        "so does the backend that needs none",
    ),
    Patch(
        "torch.Tensor.pin_memory",
        "assign",
        f"{_CPU_LORA}:staying_where_it_is",
        "both call it on tensors, too",
    ),
    Patch(
        f"{_LORA_BACKEND}.base_backend.BaseLoRABackend.validate_lora_targets",
        "around",
        f"{_CPU_LORA}:refuse_wrong_targets",
        "rows of the LM head would get the adapter of another request",
    ),
)
"""Installed once a model is loaded on a server with adapters."""

CAPTURE_PATCHES = (
    Patch(
        "sglang.srt.state_capturer.base.ALLOC_MEMORY_FUNCS",
        "assign",
        f"{_CPU_HOOKS}:with_ordinary_memory",
        "what is kept by KV slot, routed experts, would be registered with CUDA",
    ),
)
"""Installed once a model is loaded on a server that returns routed experts."""

CPU_PLATFORM_PATCHES = (
    *TORCH_PATCHES,
    *CAPTURE_PATCHES,
    *DRAFT_HEAD_PATCHES,
    *LORA_PATCHES,
    Patch(
        _ARGS,
        "object",
        f"{_CPU_ARGS}:apply_defaults",
        "one process does everything in order, and an idle one sleeps",
        "disable_overlap_schedule sleep_on_idle disable_custom_all_reduce",
    ),
    Patch(
        _ARGS,
        "object",
        f"{_CPU_ARGS}:_resolve_attention_backend",
        "our backend, torch's sampler",
        "attention_backend sampling_backend",
    ),
    Patch(
        _ARGS,
        "object",
        f"{_CPU_LORA}:resolve_backend",
        "adapters go through SGLang's torch backend",
        "lora_backend",
    ),
    Patch(_ARGS, "object", f"{_CPU_ARGS}:_disable_device_graphs", "a CPU has no graphs", "cuda_graph_config"),
    Patch(
        _ARGS,
        "object",
        f"{_CPU_ARGS}:_resolve_memory",
        "defaults for memory that the whole machine shares",
        "chunked_prefill_size max_running_requests mem_fraction_static max_total_tokens",
    ),
    Patch(
        "sglang.srt.models.llama.LlamaModel",
        "object",
        "ddtree_sglang.cpu_platform.lean_llama:install",
        "the layer loop without its bookkeeping",
        "forward",
    ),
    Patch(
        "sglang.srt.layers.quantization.base_config.QuantizeMethodBase",
        "object",
        "ddtree_sglang.cpu_platform.quantized:_plain_after_loading",
        "quantized weights, for which a CPU has no products, become plain ones",
        "process_weights_after_loading",
    ),
    Patch(
        "sglang.srt.layers.linear.LinearBase",
        "object",
        "ddtree_sglang.cpu_platform.quantized:make_plain",
        "as do their layers",
        "quant_method weight",
    ),
    Patch(
        "torch.nn.Module",
        "object",
        "ddtree_sglang.cpu_platform.dense_linear:_put",
        "products with packed weights, a drafter's in bfloat16 where that is asked for",
        "forward quant_method",
    ),
    Patch(
        "torch.nn.Module",
        "object",
        "ddtree_sglang.cpu_platform.dense_linear:install",
        "weight updates, which would not reach packed weights, are refused",
        "_derived_weight_cache_error",
    ),
)
