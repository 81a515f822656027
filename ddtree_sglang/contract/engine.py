"""What the engine adapter relies on of SGLang; `start.py` says which release that is."""

from __future__ import annotations

from ddtree_sglang.contract.check import Row
from ddtree_sglang.contract.engine_attention import ATTENTION
from ddtree_sglang.contract.engine_requests import REQUESTS
from ddtree_sglang.contract.engine_states import STATES

_MODEL_RUNNER = "sglang.srt.model_executor.model_runner"
_RUNTIME_CONTEXT = "sglang.srt.runtime_context"
_DFLASH_WORKER_V2 = "sglang.srt.speculative.dflash_worker_v2"

ENGINE: tuple[Row, ...] = (
    *REQUESTS,
    *ATTENTION,
    *STATES,
    Row("sglang.kernels.ops.speculative.spec_tree", "TreeMaskMode", "FULL_MASK", "trees"),
    Row("sglang.srt.configs.model_config", "AttentionArch", "MHA MLA SSM", "target_checks, recurrent_checks"),
    Row(
        "sglang.srt.configs.model_config",
        "ModelConfig",
        "attention_arch attention_chunk_size context_len dtype has_asymmetric_kv hf_config is_hybrid_swa "
        "is_local_attention_model num_attention_heads sliding_window_size v_head_dim vocab_size",
        "context_limit, graph_memory, server_args, target_checks, worker",
    ),
    Row("sglang.srt.configs.model_config", "is_deepseek_dsa", "config", "target_checks"),
    Row("sglang.srt.configs.model_config", "_get_and_verify_dtype", "config dtype", "server_args"),
    Row("sglang.srt.configs.model_config", "ModelConfig.get_default_sampling_params", "", "target_checks"),
    Row("sglang.srt.distributed.parallel_state", "GroupCoordinator", "cpu_group world_size", "candidates, rank_check"),
    Row("sglang.srt.distributed.parallel_state", "GroupCoordinator.all_gather", "dim", "candidates, rank_check"),
    Row(
        "sglang.srt.layers.logits_processor",
        "LogitsProcessorOutput",
        "hidden_states last_hidden_states next_token_logits sampling_mask_output",
        "final_states, sampling_supports, target_choice, worker",
    ),
    Row(
        "sglang.srt.layers.logits_processor",
        "LogitsProcessor",
        "_get_last_hidden_states_to_store keep_last_hidden_states",
        "final_states",
    ),
    Row(
        "sglang.srt.layers.logits_processor",
        "SamplingMaskOutput",
        "lengths num_accept_tokens selected_logprobs statuses support_logprobs token_ids",
        "run_ends, sampling_supports",
    ),
    Row("sglang.srt.layers.logits_processor", "SamplingMaskStatus", "OK", "run_ends, sampling_supports"),
    Row(
        "sglang.srt.layers.logprob_processor",
        "compute_spec_logprobs",
        "batch logits_output predict accept_index",
        "worker",
    ),
    Row("sglang.srt.layers.quantization.base_config", "QuantizeMethodBase", "apply", "candidates"),
    Row("sglang.srt.layers.quantization.unquant", "UnquantizedEmbeddingMethod.apply", "layer x bias", "candidates"),
    Row(
        "sglang.srt.layers.sampler",
        "Sampler.forward",
        "logits_output sampling_info return_logprob top_logprobs_nums token_ids_logprobs positions",
        "node_processors, target_choice",
    ),
    Row(
        "sglang.srt.layers.sampler", "Sampler._preprocess_logits", "logits sampling_info", "node_processors", exact=True
    ),
    Row("sglang.srt.utils.async_probe", "sanitize_nan_logits", "logits msg", "target_choice", exact=True),
    Row(
        "sglang.srt.layers.vocab_parallel_embedding",
        "ParallelLMHead",
        "quant_method shard_indices weight",
        "candidates",
    ),
    Row("sglang.srt.mem_cache.allocation_sizing", "get_alloc_page_size", "", "kv_window"),
    Row("sglang.srt.mem_cache.allocation_sizing", "get_req_to_token_extra_context_len", "", "kv_window"),
    Row("sglang.srt.mem_cache.allocator", "TokenToKVPoolAllocator", "available_size", "worker"),
    Row("sglang.srt.mem_cache.kv_index_translator", "KVIndexTranslator", "reads_are_translated", "fa3_metadata"),
    Row(
        "sglang.srt.mem_cache.kv_index_translator",
        "KVIndexTranslator.plan",
        "req_pool_indices seq_lens seq_lens_cpu write_virtual read_extent",
        "worker",
    ),
    Row("sglang.srt.mem_cache.kv_loc_plan", "KVLocPlan", "", "verify_input, worker"),
    Row(
        "sglang.srt.mem_cache.memory_pool",
        "MHATokenToKVPool",
        "get_cpu_copy is_quantized_kv_cache k_buffer kv_cache_layout layer_num load_cpu_copy use_native_move_kv_cache "
        "v_buffer",
        "kv_moves, retraction_copies",
    ),
    Row("sglang.srt.mem_cache.memory_pool", "MHATokenToKVPool.move_kv_cache", "tgt_loc src_loc", "kv_moves"),
    Row("sglang.srt.mem_cache.memory_pool", "ReqToTokenPool", "req_to_token", "draft_window, worker"),
    Row("sglang.srt.mem_cache.swa_memory_pool", "SWAKVPool", "full_kv_pool swa_kv_pool", "kv_moves"),
    Row(
        "sglang.srt.mem_cache.swa_memory_pool",
        "SWAKVPool.translate_loc_from_full_to_swa",
        "kv_indices",
        "kv_moves",
    ),
    Row(
        "sglang.srt.model_executor.forward_batch_info",
        "CaptureHiddenMode",
        "FULL LAST NULL need_capture",
        "draft_block, final_states, target, verify_input",
    ),
    Row("sglang.srt.model_executor.forward_batch_info", "get_server_return_hidden_states_mode", "", "final_states"),
    Row(
        "sglang.srt.model_executor.forward_batch_info",
        "ForwardBatch",
        "batch_size can_run_decode_cuda_graph capture_hidden_mode forward_mode "
        "global_num_token_non_padded_cpu input_embeds input_ids out_cache_loc positions req_pool_indices "
        "seq_lens seq_lens_cpu seq_lens_sum spec_algorithm spec_info",
        "drafter_tail, hooks, worker",
    ),
    Row(
        "sglang.srt.model_executor.forward_batch_info",
        "ForwardMode",
        "TARGET_VERIFY is_extend is_idle is_target_verify",
        "attention_sinks, trees, window_masks, worker",
    ),
    Row("sglang.srt.model_executor.cuda_graph_config", "CudaGraphConfig", "decode", "graph_memory, worker"),
    Row("sglang.srt.model_executor.cuda_graph_config", "PhaseConfig", "backend bs", "graph_memory, worker"),
    Row("sglang.srt.model_executor.cuda_graph_config", "Backend", "DISABLED", "graph_memory"),
    Row(
        _MODEL_RUNNER,
        "ModelRunner",
        "attn_backend capture_tail_hooks decode_cuda_graph_runner dtype forward init_new_workspace kv_cache_dtype "
        "kv_index_translator lora_manager max_running_requests model model_config page_size prewarm_sampling "
        "req_to_token_pool sampler sliding_window_size token_to_kv_pool token_to_kv_pool_allocator",
        "cache_types, hooks, node_counts, target_checks, worker",
    ),
    Row(_MODEL_RUNNER, "ModelRunner._decode_cuda_graph_runner_cls", "", "node_counts, target"),
    Row(_MODEL_RUNNER, "ModelRunner._extend_forward_kwargs", "forward_batch pp_proxy_tensors", "hooks"),
    Row(_MODEL_RUNNER, "ModelRunner._get_attention_backend", "init_new_workspace", "node_counts"),
    Row(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner",
        "buffers max_bs",
        "node_counts, target",
    ),
    Row(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner._init_replay_attn_metadata",
        "forward_batch",
        "target",
    ),
    Row(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner._replay_attn_backend",
        "",
        "target",
    ),
    Row(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner._run_in_graph_metadata_prep",
        "attn_backend forward_batch",
        "target",
    ),
    Row(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner.get_spec_info",
        "num_tokens",
        "target",
    ),
    Row("sglang.srt.platforms", "current_platform", "", "device_path"),
    Row("sglang.srt.platforms.interface", "SRTPlatform", "is_out_of_tree", "attention_default"),
    Row("sglang.srt.platforms.interface", "PlatformCapabilities", "supports_triton", "device_path"),
    Row("sglang.srt.plugins.hook_registry", "HookRegistry.apply_hooks", "", "hook_scan, plugin", exact=True),
    Row("sglang.srt.plugins.hook_registry", "HookRegistry.register", "target hook hook_type", "plugin"),
    Row("sglang.srt.plugins.hook_registry", "HookType", "AFTER AROUND", "plugin"),
    Row(
        "sglang.srt.plugins.hook_registry",
        "_propagate_patch",
        "original wrapped source_module",
        "hook_scan",
        exact=True,
    ),
    Row(_RUNTIME_CONTEXT, "_ConfigBag", "override", "kv_window, node_counts, worker"),
    Row(_RUNTIME_CONTEXT, "attention_backends", "", "target_checks"),
    Row(_RUNTIME_CONTEXT, "get_disagg", "", "node_penalties, worker"),
    Row(_RUNTIME_CONTEXT, "get_exec", "", "request_rules, worker"),
    Row(_RUNTIME_CONTEXT, "get_platform", "", "attention_default"),
    Row(_RUNTIME_CONTEXT, "get_parallel", "", "worker"),
    Row(_RUNTIME_CONTEXT, "get_serving", "", "token_outputs"),
    Row(
        _RUNTIME_CONTEXT,
        "get_spec",
        "",
        "algorithm, hooks, host_cache, kv_window, node_counts, node_processors, one_at_a_time, target, token_outputs, "
        "worker",
    ),
    # What a drafter's head holds: scorers read its parameters.
    Row("sglang.srt.models.dflash", "DFlashDraftModel", "candidate_selector lilicorr", "pair_scores"),
    Row(
        "sglang.srt.models.dflash",
        "CandidateSelector",
        "hidden_projection predecessor_codebook successor_codebook top_k",
        "pair_scores",
    ),
    Row("sglang.srt.models.dspark", "DSparkDraftMixin", "markov_head sample_from_anchor", "pair_scores, ranking"),
    Row("sglang.srt.models.dspark", "DSparkDraftMixin.attach_shared_modules", "embed_tokens lm_head", "ranking"),
    Row(
        "sglang.srt.models.dspark",
        "GatedMarkovHead",
        "compute_gate gate_proj get_prev_embeddings markov_w2",
        "pair_scores",
    ),
    Row("sglang.srt.models.lilicorr", "LiLiCorrHead", "candidate_topk context_proj slot_embedding", "pair_scores"),
    Row("sglang.srt.models.lilicorr", "LiLiCorrHead.log_factors", "start_scores pair_scores", "pair_scores"),
    Row("sglang.srt.models.lilicorr", "LiLiCorrHead.materialize_inference_buffers", "device dtype", "pair_scores"),
    Row(
        "sglang.srt.models.lilicorr",
        "LiLiCorrHead.score",
        "token_embeddings candidate_log_probs pass_hidden anchor_hidden anchor_valid",
        "pair_scores",
    ),
    Row(
        "sglang.srt.speculative.dflash_info",
        "DFlashVerifyInput",
        "custom_mask draft_token draft_token_num positions",
        "flashinfer_windows, verify_input",
    ),
    Row(
        "sglang.srt.speculative.dflash_info",
        "DFlashVerifyInput.generate_attn_arg_prefill",
        "req_pool_indices paged_kernel_lens paged_kernel_lens_sum translator plan kind kv_start_idx",
        "flashinfer_windows, verify_input",
    ),
    Row(
        "sglang.srt.speculative.dflash_info_v2",
        "DFlashDraftInputV2",
        "bonus_tokens future_indices hidden_states new_seq_lens nxt_kv_lens_cpu topk_index topk_p",
        "algorithm, kv_window",
    ),
    Row(
        "sglang.srt.speculative.dflash_disaggregation",
        "build_dflash_disagg_draft_input",
        "batch last_tokens_tensor future_map",
        "algorithm",
    ),
    Row("sglang.srt.speculative.dflash_info_v2", "DFlashDraftInputV2.prepare_for_decode", "batch", "kv_window"),
    Row("sglang.srt.speculative.dflash_utils", "parse_dflash_draft_config", "draft_hf_config", "ranking"),
    Row("sglang.srt.speculative.dflash_utils", "validate_dflash_request", "req enable_overlap", "hooks"),
    Row(
        _DFLASH_WORKER_V2,
        "DFlashWorkerV2",
        "_draft_block_spec_info _full_embed_gpu _lilicorr_anchor _mask_token_id "
        "_noise_embed_scale _tp_sync alloc_memory_pool block_size device draft_model draft_model_runner "
        "draft_parallel_layout draft_window_size init_attention_backends init_cuda_graphs model_runner page_size "
        "prewarm_sampling speculative_num_draft_tokens",
        "worker",
    ),
    Row(_DFLASH_WORKER_V2, "DFlashWorkerV2.__init__", "server_args gpu_id nccl_port target_worker", "worker"),
    Row(
        _DFLASH_WORKER_V2,
        "DFlashWorkerV2._append_target_hidden_to_draft_kv_by_loc",
        "target_hidden cache_loc positions cache_loc_2d commit_lens",
        "worker",
    ),
    Row(_DFLASH_WORKER_V2, "DFlashWorkerV2._defer_target_verify_gather", "", "worker"),
    Row(_DFLASH_WORKER_V2, "DFlashWorkerV2._make_next_draft_input_prefill", "bonus_tokens seq_lens", "worker"),
    Row(_DFLASH_WORKER_V2, "DFlashWorkerV2._maybe_build_draft_sampler", "", "worker"),
    Row(_DFLASH_WORKER_V2, "DFlashWorkerV2._validate_phase1_sampling_support", "batch", "worker"),
    Row(
        _DFLASH_WORKER_V2,
        "DFlashWorkerV2.forward_batch_generation",
        "batch on_publish grammar_barrier pp_proxy_tensors",
        "worker",
    ),
    Row(_DFLASH_WORKER_V2, "_resolve_dflash_embedding_module", "", "worker"),
    Row(
        "sglang.srt.speculative.eagle_info",
        "EagleVerifyInput",
        "custom_mask draft_token draft_token_num is_draft_input kv_loc_plan max_tree_depth pad_batch positions "
        "prepared_out_cache_loc retrieve_index retrieve_next_sibling retrieve_next_token spec_steps tree_topk",
        "verify_input",
    ),
    Row(
        "sglang.srt.speculative.eagle_info",
        "EagleVerifyInput.generate_attn_arg_prefill",
        "req_pool_indices paged_kernel_lens paged_kernel_lens_sum translator plan kind",
        "verify_input",
    ),
    Row("sglang.srt.speculative.eagle_utils", "TreeMaskMode", "", "trees"),
    Row(
        "sglang.srt.speculative.eagle_utils",
        "eagle_prepare_for_verify",
        "verify_input req_to_token_pool batch target_worker",
        "worker",
    ),
    Row("sglang.srt.speculative.spec_info", "SpeculativeAlgorithm", "DFLASH", "worker"),
    Row(
        "sglang.srt.speculative.spec_info",
        "SpeculativeAlgorithm.register",
        "name supports_overlap spec_class",
        "plugin, worker",
    ),
    Row(
        "sglang.srt.speculative.spec_info",
        "create_dummy_verify_input",
        "spec_algorithm custom_mask num_tokens_per_req is_draft_worker",
        "target",
    ),
    Row(
        "sglang.srt.speculative.spec_registry",
        "CustomSpecAlgo",
        "build_disagg_draft_input get_num_tokens_per_req_for_target_verify handle_server_args has_draft_kv is_dflash "
        "is_dflash_family supports_grammar_overlap supports_mixed_chunk supports_prefill_shared_read_done "
        "supports_target_verify_for_draft",
        "algorithm",
    ),
    Row(
        "sglang.srt.speculative.spec_sampling_mask",
        "validate_spec_sampling_mask_request",
        "req spec_algorithm",
        "hooks",
    ),
    Row("sglang.srt.speculative.spec_tp_sync", "SpecTpSync", "sync", "worker"),
    Row("sglang.srt.speculative.spec_tp_sync", "SpecTpSyncSite", "DFLASH_ACCEPT_GREEDY DFLASH_ACCEPT_SAMPLE", "worker"),
    Row("sglang.srt.speculative.spec_utils", "draft_tp_context", "", "worker"),
    Row("sglang.srt.speculative.spec_utils", "spec_need_hidden_states", "", "hooks"),
    Row("sglang.srt.utils.common", "async_h2d", "args dtype device", "final_states, node_penalties, round_ends"),
    # What `get_platform()` asks, by these names (runtime_context.py, _PLATFORM_PROBES).
    Row("sglang.srt.utils.common", "get_device_memory_capacity", "device", "graph_memory"),
    Row("sglang.srt.utils.common", "is_cuda", "", "attention_default"),
    Row("sglang.srt.utils.common", "is_hopper_with_cuda_12_3", "", "attention_default"),
    Row("sglang.srt.utils.hf_transformers_utils", "get_config", "", "server_args"),
)
