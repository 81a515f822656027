"""What the engine adapter relies on of SGLang's attention backends and of the kernels that they launch."""

from __future__ import annotations

from ddtree_sglang.contract.check import Row

ATTENTION: tuple[Row, ...] = (
    # Its mask and where that begins are found by place, the tenth and the twelfth.
    Row(
        "sglang.kernels.ops.attention.extend_attention",
        "extend_attention_fwd",
        "q_extend k_extend v_extend o_extend k_buffer v_buffer qo_indptr kv_indptr kv_indices custom_mask is_causal "
        "mask_indptr max_len_extend k_scale v_scale sm_scale logit_cap skip_prefix_custom_mask sliding_window_size "
        "sinks window_kv_offsets xai_temperature_len lse_extend skip_prefix skip_extend page_size score_mod "
        "aux_tensors extend_seq_lens_cpu identity_kv_indices",
        "trees, window_masks",
        exact=True,
    ),
    # What deterministic inference attends with: no way to leave the prefix columns of a mask unread.
    Row(
        "sglang.kernels.ops.attention.extend_attention",
        "extend_attention_fwd_unified",
        "custom_mask mask_indptr sliding_window_size window_start_pos",
        "trees, window_masks",
    ),
    Row(
        "sglang.kernels.ops.attention.trtllm_mha_page_table",
        "build_trtllm_mha_page_table",
        "req_to_token req_pool_indices cache_seqlens page_table page_size",
        "fa3_metadata",
    ),
    Row(
        "sglang.srt.layers.attention.base_attn_backend",
        "AttentionBackend.get_cuda_graph_seq_len_fill_value",
        "",
        "attention_ranks",
    ),
    Row("sglang.srt.layers.attention.base_attn_backend", "AttentionBackend.verify_mask", "", "trees"),
    Row("sglang.srt.layers.dp_attention", "get_dp_tp_group", "", "attention_ranks"),
    Row("sglang.srt.layers.dp_attention", "is_dp_attention_enabled", "", "attention_ranks"),
    # What pads a batch outside graphs to the requests of the largest group.
    Row(
        "sglang.srt.model_executor.forward_batch_info",
        "ForwardBatch.prepare_mlp_sync_batch",
        "model_runner",
        "attention_ranks",
    ),
    Row(
        "sglang.srt.layers.attention.base_attn_backend",
        "AttentionBackend.init_forward_metadata",
        "forward_batch",
        "attention_ranks",
    ),
    Row(
        "sglang.srt.speculative.eagle_info",
        "EagleVerifyInput.create_idle_input",
        "topk spec_steps num_verify_tokens device",
        "attention_ranks",
    ),
    # What it makes of a tree before each replay, by this name, our verify graph makes itself.
    Row(
        "sglang.srt.layers.attention.flashattention_backend",
        "FlashAttentionBackend._apply_cuda_graph_metadata",
        "req_pool_indices seq_lens spec_info",
        "fa3_metadata",
    ),
    Row(
        "sglang.srt.layers.attention.flashattention_backend",
        "FlashAttentionBackend",
        "forward_metadata forward_metadata_spec_decode_expand has_swa kv_index_translator page_size req_to_token "
        "target_verify_metadata_topk_expand target_verify_metadata_topk_normal topk use_mla "
        "use_sliding_window_kv_pool verify_mask",
        "fa3_latent, fa3_metadata, fa3_windows, target_checks",
    ),
    Row(
        "sglang.srt.layers.attention.flashattention_backend",
        "FlashAttentionBackend._init_sliding_window_attn_spec_metadata",
        "metadata metadata_expand metadata_swa",
        "fa3_windows",
        exact=True,
    ),
    Row(
        "sglang.srt.layers.attention.flashattention_backend",
        "FlashAttentionBackend.get_paged_mha_kv_cache",
        "layer head_group_num",
        "fa3_windows",
        exact=True,
    ),
    Row(
        "sglang.srt.layers.attention.flashattention_backend",
        "FlashAttentionBackend.forward_extend",
        "q k v layer forward_batch sinks",
        "attention_sinks, fa3_latent",
    ),
    # The backend calls it by this name of its own module.
    Row("sglang.srt.layers.attention.flashattention_backend", "flash_attn_with_kvcache", "", "fa3_latent"),
    Row(
        "sglang.kernels.ops.attention.flash_attention",
        "flash_attn_with_kvcache",
        "k_cache v_cache page_table",
        "fa3_latent",
    ),
    Row("sglang.srt.mem_cache.layout.paged_view", "paged_view", "flat page_size", "fa3_latent"),
    Row(
        "sglang.srt.layers.attention.flashattention_backend",
        "merge_state_v2_wrapper",
        "o s_a o_exp s_b",
        "attention_sinks",
        exact=True,
    ),
    Row(
        "sglang.srt.layers.attention.flashattention_backend",
        "FlashAttentionMetadata",
        "cache_seqlens_int32 cu_seqlens_k max_seq_len_k page_table swa_spec_metadata",
        "fa3_metadata, fa3_windows",
    ),
    # By these names the target's backend is told from a wrapper of some model's.
    Row(
        "sglang.srt.layers.attention.flashinfer_backend",
        "FlashInferAttnBackend",
        "cuda_graph_custom_mask num_wrappers",
        "flashinfer_windows, target_checks",
    ),
    Row(
        "sglang.srt.layers.attention.flashinfer_backend",
        "FlashInferAttnBackend._create_prefill_wrappers",
        "bs use_custom_mask",
        "flashinfer_windows",
        exact=True,
    ),
    Row(
        "sglang.srt.layers.attention.flashinfer_backend",
        "FlashInferIndicesUpdaterPrefill",
        "attn_backend kv_indptr sliding_window_size",
        "flashinfer_windows",
    ),
    Row(
        "sglang.srt.layers.attention.flashinfer_backend",
        "FlashInferIndicesUpdaterPrefill.call_begin_forward",
        "wrapper_paged paged_kernel_lens_sum seq_lens kv_indptr spec_info",
        "flashinfer_windows",
    ),
    Row(
        "sglang.srt.layers.attention.hybrid_attn_backend",
        "HybridAttnBackend",
        "decode_backend prefill_backend",
        "target_checks, trees",
    ),
    Row(
        "sglang.srt.layers.attention.hybrid_attn_backend", "HybridAttnBackend._select_backend", "forward_mode", "trees"
    ),
    Row(
        "sglang.srt.layers.attention.triton_backend",
        "TritonAttnBackend",
        "extend_attention_fwd_unified forward_metadata sliding_window_size verify_mask",
        "target_checks, trees, window_masks",
    ),
    Row(
        "sglang.srt.layers.attention.triton_backend",
        "TritonAttnBackend.init_forward_metadata",
        "forward_batch",
        "window_masks",
        exact=True,
    ),
    Row(
        "sglang.srt.layers.attention.triton_backend",
        "TritonAttnBackend.init_forward_metadata_out_graph",
        "forward_batch in_capture",
        "window_masks",
        exact=True,
    ),
    Row(
        "sglang.srt.layers.attention.triton_backend",
        "TritonAttnBackend._forward_extend_kernel",
        "layer",
        "window_masks",
    ),
    Row(
        "sglang.srt.layers.attention.triton_backend",
        "TritonAttnBackend._forward_extend_unified",
        "q o layer",
        "window_masks",
    ),
    Row(
        "sglang.srt.layers.attention.triton_backend",
        "ForwardMetadata",
        "custom_mask max_extend_len",
        "window_masks",
    ),
    # It copies `custom_mask` onto its own buffer, as far as it is handed, and reads the buffer.
    Row(
        "sglang.srt.layers.attention.triton_backend",
        "TritonAttnBackend._update_target_verify_buffers",
        "spec_info",
        "trees",
    ),
    Row("sglang.srt.layers.attention.verify_mask", "VerifyMask", "buffer is_read max_bs mode", "trees"),
)
