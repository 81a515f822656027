"""Every SGLang name that the CPU platform replaces, overrides or calls, and the parameters that it must have.

`mismatches()` compares the table with the installed engine. A test runs it, so that a new SGLang version fails there
and not in the middle of a request. Parameter names are listed in order, without ``self``; ``None`` means that only the
name's existence matters.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Contract:
    """One name in SGLang: where it is, what it takes, and which of our modules depends on it."""

    module: str
    attribute: str
    parameters: tuple[str, ...] | None
    used_by: str


_TABLE_WINDOW = ("req_pool_indices", "req_to_token", "start_offset", "end_offset")
_ATTENTION = ("q", "k", "v", "layer", "forward_batch", "save_kv_cache", "kwargs")

REPLACED: tuple[Contract, ...] = (
    Contract(
        "sglang.srt.mem_cache.allocation",
        "assign_req_to_token_pool_func",
        (*_TABLE_WINDOW, "out_cache_loc", "batch_size"),
        "triton_replacements.assign_req_to_token_pool",
    ),
    Contract(
        "sglang.kernels.ops.speculative.cache_locs",
        "assign_extend_cache_locs_func",
        (*_TABLE_WINDOW, "batch_size", "draft_token_num", "device"),
        "triton_replacements.extend_cache_locs",
    ),
    Contract(
        "sglang.kernels.ops.attention.table_qk_norm_rope",
        "table_qk_norm_rope_",
        (
            "qkv",
            "positions",
            "q_weight",
            "k_weight",
            "cos_sin_cache",
            "num_q_heads",
            "num_k_heads",
            "head_dim",
            "eps",
        ),
        "operators.table_qk_norm_rope_",
    ),
    Contract("torch", "Tensor.record_stream", None, "hooks"),
    Contract(
        "sglang.srt.layers.quantization.unquant",
        "UnquantizedLinearMethod.apply",
        ("layer", "x", "bias"),
        "dense_linear",
    ),
    Contract(
        "sglang.srt.layers.quantization.unquant",
        "UnquantizedEmbeddingMethod.apply",
        ("layer", "x", "bias"),
        "dense_linear",
    ),
    Contract(
        "sglang.srt.models.llama",
        "LlamaModel.forward",
        ("input_ids", "positions", "forward_batch", "input_embeds", "pp_proxy_tensors"),
        "lean_llama",
    ),
    Contract(
        "sglang.srt.layers.layernorm",
        "RMSNorm.forward_native",
        ("x", "residual", "post_residual_addition", "quant_linear"),
        "operators.rms_norm",
    ),
    Contract("sglang.srt.layers.activation", "SiluAndMul.forward_native", ("x",), "operators.silu_and_mul"),
    Contract(
        "sglang.srt.layers.rotary_embedding.base",
        "RotaryEmbedding.forward_native",
        ("positions", "query", "key", "offsets", "fused_set_kv_buffer_arg"),
        "operators.rotary_embedding",
    ),
)
"""Engine functions that run our torch version on this platform."""

OVERRIDDEN: tuple[Contract, ...] = (
    Contract("sglang.srt.mem_cache.memory_pool", "MHATokenToKVPool._init_kv_copy_and_warmup", (), "kv_pool"),
    Contract("sglang.srt.mem_cache.memory_pool", "MHATokenToKVPool._create_buffers_normal", (), "kv_pool"),
    Contract("sglang.srt.mem_cache.memory_pool", "MHATokenToKVPool._kv_buffer_shapes", (), "kv_pool"),
    Contract(
        "sglang.srt.mem_cache.memory_pool",
        "MHATokenToKVPool._move_kv_cache_impl",
        ("tgt_loc", "src_loc"),
        "kv_pool",
    ),
    Contract(
        "sglang.srt.mem_cache.memory_pool",
        "MHATokenToKVPool._store_kv_layer",
        ("layer_idx", "loc", "cache_k", "cache_v"),
        "kv_pool",
    ),
    Contract(
        "sglang.srt.layers.attention.base_attn_backend",
        "AttentionBackend.init_forward_metadata",
        ("forward_batch",),
        "attention_backend",
    ),
    Contract(
        "sglang.srt.layers.attention.base_attn_backend",
        "AttentionBackend.forward_decode",
        _ATTENTION,
        "attention_backend",
    ),
    Contract(
        "sglang.srt.layers.attention.base_attn_backend",
        "AttentionBackend.forward_extend",
        _ATTENTION,
        "attention_backend",
    ),
    *(
        Contract("sglang.srt.platforms.interface", f"SRTPlatform.{name}", parameters, "platform")
        for name, parameters in (
            ("apply_server_args_defaults", ("server_args",)),
            ("get_default_attention_backend", ()),
            ("get_default_speculative_draft_attention_backend", ("algorithm",)),
            ("supports_speculative_algorithm", ("algorithm",)),
            ("supports_speculative_draft_attention_backend", ("algorithm", "backend")),
            ("get_speculative_cache_locs_fn", ()),
            ("get_kv_pool_cls", ("kind",)),
            ("get_dispatch_key_name", ()),
            ("init_backend", ()),
            ("post_load_model", ("model",)),
        )
    ),
)
"""Engine methods that our subclasses override."""

CALLED: tuple[Contract, ...] = (
    Contract("sglang.srt.mem_cache.memory_pool", "MHATokenToKVPool.get_kv_buffer", ("layer_id",), "kv_pool"),
    Contract(
        "sglang.srt.mem_cache.memory_pool",
        "move_kv_cache_native",
        ("k_buffer", "v_buffer", "tgt_loc", "src_loc"),
        "kv_pool",
    ),
    Contract(
        "sglang.kernels.fused_op",
        "BaseFusedOp.register_oot_forward",
        ("op_cls", "fn", "platform_key"),
        "operators",
    ),
    Contract("sglang.srt.layers.attention.attention_registry", "register_attention_backend", ("name",), "hooks"),
    Contract("sglang.srt.layers.attention.attention_registry", "ATTENTION_BACKENDS", None, "hooks"),
    Contract(
        "sglang.srt.speculative.dflash_worker_v2",
        "DFlashWorkerV2._greedy_sample_from_vocab_parallel_head",
        ("hidden_states", "lm_head", "chunk_size"),
        "hooks.install_draft_head",
    ),
    Contract(
        "sglang.srt.speculative.dflash_worker_v2",
        "DFlashWorkerV2._greedy_sample_from_quantized_head",
        ("hidden_states", "lm_head", "chunk_size"),
        "hooks.install_draft_head",
    ),
    Contract("sglang.srt.models.dflash", "DFlashDraftModel.project_target_hidden", None, "platform"),
    Contract("torch", "ops.mkldnn._linear_pointwise", None, "dense_linear"),
    Contract("torch", "ops.mkldnn._reorder_linear_weight", None, "dense_linear"),
    Contract("torch", "ops.mkldnn._is_mkldnn_bf16_supported", None, "dense_linear"),
    Contract(
        "sglang.srt.model_executor.model_runner_components.weight_updater",
        "_unsupported_derived_weight_cache_error",
        ("model",),
        "dense_linear",
    ),
    Contract("sglang.srt.model_executor.forward_context", "get_attn_backend", (), "lean_llama"),
    Contract("sglang.srt.layers.aux_hidden_states", "AuxHiddenStateList.capture", ("hidden", "owned"), "lean_llama"),
    Contract("sglang.srt.layers.rotary_embedding.rope_variant", "Llama3RotaryEmbedding", None, "operators"),
    Contract("sglang.srt.arg_groups.choices", "add_attention_backend_choices", None, "hooks"),
    Contract("sglang.srt.arg_groups.choices", "add_draft_attention_backend_choices", None, "hooks"),
    Contract("sglang.srt.arg_groups.model_override_base", "model_config_of", ("server_args",), "memory_budget"),
    Contract(
        "sglang.srt.model_executor.cuda_graph_config",
        "with_phase",
        ("config", "phase", "changes"),
        "server_defaults",
    ),
    Contract("sglang.srt.plugins.hook_registry", "HookRegistry.apply_hooks", (), "hooks"),
    Contract(
        "sglang.srt.plugins.hook_registry",
        "HookRegistry.register",
        ("target", "hook", "hook_type", "source"),
        "hooks",
    ),
)
"""Engine functions that we call."""


def mismatches() -> list[str]:
    """What the installed SGLang has differently; one sentence each, empty when everything is as written here."""
    found = (_mismatch(entry) for entry in (*REPLACED, *OVERRIDDEN, *CALLED))
    return [message for message in found if message is not None]


def _mismatch(entry: Contract) -> str | None:
    where = f"{entry.module}.{entry.attribute}"
    try:
        value: Any = importlib.import_module(entry.module)
        for name in entry.attribute.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        return f"{where} does not exist ({error}); {entry.used_by} needs it."
    if entry.parameters is None:
        return None
    actual = tuple(name for name in inspect.signature(value).parameters if name != "self")
    if actual == entry.parameters:
        return None
    return f"{where} takes {actual}, not {entry.parameters}; {entry.used_by} needs it."
