"""What the engine adapter relies on of SGLang's recurrent layers, whose states follow a tree."""

from __future__ import annotations

from ddtree_sglang.contract.check import Row

_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator"
_EXEC = "sglang.srt.arg_groups.fields.exec_"
_HYBRID = "sglang.srt.layers.attention.hybrid_linear_attn_backend"
_POOL = "sglang.srt.mem_cache.memory_pool"

STATES: tuple[Row, ...] = (
    Row(
        _EXEC,
        "ExecMamba",
        "enable_int8_mamba_checkpoint enable_linear_replayssm "
        "enable_mamba_cache_stochastic_rounding linear_attn_backend linear_attn_decode_backend "
        "linear_attn_verify_backend mamba_backend mamba_radix_cache_strategy mamba_track_interval",
        "recurrent_checks",
    ),
    Row(
        "sglang.srt.arg_groups.kimi_k3_hook",
        "apply_kimi_k3_spec_backend_defaults",
        "server_args",
        "state_kernels",
        exact=True,
    ),
    Row("sglang.srt.arg_groups.overrides", "declare_resolution", "server_args source", "state_kernels"),
    Row("sglang.srt.configs.hybrid_arch", "mambaish_config", "model_config", "recurrent_checks, recurrent_states"),
    Row("sglang.srt.configs.mamba_utils", "BaseLinearStateParams", "mamba_cache_per_req", "state_memory"),
    Row("sglang.srt.configs.mamba_utils", "Mamba2StateDType", "conv", "recurrent_checks"),
    Row("sglang.srt.configs.mamba_utils", "mamba2_state_dtype", "config", "recurrent_checks"),
    Row(
        _HYBRID,
        "HybridLinearAttnBackend",
        "full_attn_backend linear_attn_backend verify_mask",
        "target_checks, trees",
    ),
    Row(_HYBRID, "ShortConvHybridAttnBackend", "short_conv_backend", "short_convolutions, target_checks"),
    Row(_HYBRID, "Mamba2AttnBackend", "", "target_checks"),
    # They read the links of a verify input, as first children and next siblings.
    Row(_HYBRID, "MambaAttnBackendBase", "retrieve_next_sibling_list retrieve_next_token_list", "recurrent_states"),
    Row("sglang.srt.layers.attention.linear.gdn_backend", "GDNAttnBackend", "", "target_checks"),
    Row("sglang.srt.layers.attention.linear.kda_backend", "KDAAttnBackend", "", "target_checks"),
    Row("sglang.srt.layers.attention.linear.short_conv_backend", "ShortConvAttnBackend", "", "target_checks"),
    Row(
        "sglang.srt.layers.attention.linear.short_conv_backend",
        "ShortConvMetadata",
        "cache_indices layer_cache",
        "short_convolutions",
    ),
    Row(
        "sglang.kernels.ops.mamba.causal_conv1d_triton",
        "causal_conv1d_update",
        "x conv_state weight bias activation conv_state_indices intermediate_conv_window intermediate_state_indices "
        "retrieve_next_token retrieve_next_sibling retrieve_parent_token",
        "short_convolutions",
    ),
    Row("sglang.srt.model_executor.forward_context", "get_attn_backend", "", "short_convolutions"),
    *(
        Row(
            f"sglang.srt.models.{module}",
            "shortconv_target_verify",
            "conv Bx meta draft_token_num arch",
            "short_convolutions",
            exact=True,
        )
        for module in ("lfm2", "lfm2_moe")
    ),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor._mamba_can_cache_finished_req",
        "req result i",
        "run_ends",
        exact=True,
    ),
    Row("sglang.srt.mem_cache.base_prefix_cache", "BasePrefixCache", "supports_mamba", "run_ends"),
    Row(
        _CONFIGURATOR,
        "KVCacheConfigurator",
        "extra_mamba_cache_bytes_per_req mambaish_config server_args",
        "state_memory",
    ),
    Row(_CONFIGURATOR, "KVCacheConfigurator._calculate_mamba_ratio", "", "state_memory", exact=True),
    Row(
        _CONFIGURATOR,
        "KVCacheConfigurator._handle_max_mamba_cache",
        "total_rest_memory",
        "state_memory",
        exact=True,
    ),
    Row(_POOL, "HybridLinearKVPool", "full_kv_pool", "kv_moves"),
    Row(_POOL, "HybridReqToTokenPool", "mamba_pool", "recurrent_states"),
    Row(_POOL, "MambaPool", "mamba_cache", "recurrent_states"),
    Row(_POOL, "MambaPool.SpeculativeState", "intermediate_conv_window intermediate_ssm", "recurrent_states"),
    Row("sglang.srt.runtime_context", "get_memory", "", "state_memory"),
    Row("sglang.srt.runtime_context", "get_schedule", "", "state_memory"),
    Row("sglang.srt.runtime_context", "mamba_track_grid", "tree_page", "recurrent_states"),
    Row(
        "sglang.srt.speculative.spec_utils",
        "commit_mamba_states_after_verify",
        "target_worker batch accept_lens accept_index draft_token_num prepared_step_indices",
        "recurrent_states",
    ),
)
