"""What the engine adapter relies on of SGLang; `start.py` says which release that is."""

from __future__ import annotations

from ddtree_sglang.contract.check import Row

_EXEC = "sglang.srt.arg_groups.fields.exec_"
_GRAMMAR = "sglang.srt.constrained.base_grammar_backend"
_MODEL_RUNNER = "sglang.srt.model_executor.model_runner"
_RUNTIME_CONTEXT = "sglang.srt.runtime_context"
_SERVER_ARGS = "sglang.srt.server_args"
_DFLASH_WORKER_V2 = "sglang.srt.speculative.dflash_worker_v2"

ENGINE: tuple[Row, ...] = (
    Row(
        "sglang.kernels.ops.attention.extend_attention",
        "extend_attention_fwd",
        "custom_mask mask_indptr skip_prefix_custom_mask",
        "trees",
    ),
    # What deterministic inference attends with: no way to leave the prefix columns of a mask unread.
    Row(
        "sglang.kernels.ops.attention.extend_attention",
        "extend_attention_fwd_unified",
        "custom_mask mask_indptr",
        "trees",
    ),
    Row(
        "sglang.kernels.ops.attention.trtllm_mha_page_table",
        "build_trtllm_mha_page_table",
        "req_to_token req_pool_indices cache_seqlens page_table page_size",
        "fa3_metadata",
    ),
    Row("sglang.kernels.ops.speculative.spec_tree", "TreeMaskMode", "FULL_MASK", "trees"),
    Row("sglang.srt.arg_groups.fields.device", "Device", "device", "server_args"),
    Row("sglang.srt.arg_groups.fields.disagg", "Disagg", "disaggregation_mode enable_pdmux", "server_args"),
    Row(_EXEC, "ExecDeterministic", "enable_deterministic_inference", "request_rules, worker"),
    Row(
        _EXEC,
        "ExecFeatures",
        "enable_return_indexer_topk enable_watermark",
        "server_args",
    ),
    Row(_EXEC, "ExecGraph", "cuda_graph_config", "graph_memory, worker"),
    Row(
        _EXEC,
        "ExecKernel",
        "attention_backend decode_attention_backend grammar_backend prefill_attention_backend "
        "triton_attention_num_kv_splits",
        "attention_default, graph_memory, server_args",
    ),
    Row(_EXEC, "ExecOverlap", "enable_two_batch_overlap", "server_args"),
    Row(
        "sglang.srt.arg_groups.fields.lora",
        "Lora",
        "enable_lora enable_lora_overlap_loading lora_backend lora_paths",
        "server_args",
    ),
    Row("sglang.srt.arg_groups.fields.memory", "Memory", "enable_hierarchical_cache", "server_args"),
    Row(
        "sglang.srt.arg_groups.fields.model",
        "Model",
        "dtype kv_cache_dtype load_format model_path revision trust_remote_code",
        "attention_default, server_args",
    ),
    Row(
        "sglang.srt.arg_groups.fields.parallel",
        "Parallel",
        "attn_dp_size enable_dp_attention pp_size tp_group tp_rank tp_size",
        "graph_memory, server_args, worker",
    ),
    Row(
        "sglang.srt.arg_groups.fields.schedule",
        "Schedule",
        "disable_overlap_schedule max_running_requests mem_fraction_static page_size",
        "graph_memory, server_args",
    ),
    Row(
        "sglang.srt.arg_groups.fields.serving",
        "Serving",
        "host port preferred_sampling_params reasoning_parser tool_call_parser",
        "server_args, token_outputs",
    ),
    Row(
        "sglang.srt.arg_groups.fields.spec",
        "Spec",
        "speculative_accept_threshold_acc speculative_accept_threshold_single speculative_adaptive "
        "speculative_algorithm speculative_dflash_block_size speculative_draft_attention_backend "
        "speculative_draft_model_path speculative_draft_model_revision speculative_draft_window_size "
        "speculative_eagle_topk speculative_moe_runner_backend speculative_num_draft_tokens speculative_num_steps "
        "speculative_use_rejection_sampling",
        "algorithm, hooks, kv_window, node_counts, server_args, target, worker",
    ),
    Row("sglang.srt.arg_groups.fields.exec_", "ExecMoe", "moe_runner_backend", "server_args"),
    Row("sglang.srt.arg_groups.lora_hook", "check_lora_speculative_compatibility", "server_args", "hooks", exact=True),
    Row("sglang.srt.arg_groups.overrides", "attention_backends_of", "cfg", "server_args"),
    Row("sglang.srt.arg_groups.overrides", "model_config_of", "server_args", "server_args"),
    Row("sglang.srt.arg_groups.overrides", "resolving_view", "", "server_args"),
    Row(
        _GRAMMAR,
        "BaseGrammarObject",
        "accept_token fill_vocab_mask finished is_terminated rollback",
        "grammar_ends, node_grammar, node_masks",
    ),
    Row(_GRAMMAR, "BaseGrammarObject.allocate_vocab_mask", "vocab_size batch_size device", "node_grammar"),
    Row(_GRAMMAR, "GrammarMask", "grammar vocab_mask", "node_grammar"),
    Row(_GRAMMAR, "GrammarMask.apply", "logits", "node_grammar"),
    Row("sglang.srt.configs.hybrid_arch", "mambaish_config", "model_config", "target_checks"),
    Row("sglang.srt.configs.model_config", "AttentionArch", "MHA SSM", "target_checks"),
    Row(
        "sglang.srt.configs.model_config",
        "ModelConfig",
        "attention_arch attention_chunk_size context_len dtype hf_config is_hybrid_swa num_attention_heads "
        "sliding_window_size v_head_dim vocab_size",
        "context_limit, graph_memory, server_args, target_checks, worker",
    ),
    Row("sglang.srt.configs.model_config", "_get_and_verify_dtype", "config dtype", "server_args"),
    Row("sglang.srt.configs.model_config", "ModelConfig.get_default_sampling_params", "", "target_checks"),
    Row("sglang.srt.distributed.parallel_state", "GroupCoordinator", "world_size", "candidates, rank_check"),
    Row("sglang.srt.distributed.parallel_state", "GroupCoordinator.all_gather", "dim", "candidates, rank_check"),
    Row("sglang.srt.layers.attention.base_attn_backend", "AttentionBackend.verify_mask", "", "trees"),
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
        "target_verify_metadata_topk_expand target_verify_metadata_topk_normal topk use_sliding_window_kv_pool "
        "verify_mask",
        "fa3_metadata, target_checks",
    ),
    Row(
        "sglang.srt.layers.attention.flashattention_backend",
        "FlashAttentionMetadata",
        "cache_seqlens_int32 cu_seqlens_k page_table",
        "fa3_metadata",
    ),
    # By these names the target's backend is told from a wrapper of some model's.
    Row("sglang.srt.layers.attention.flashinfer_backend", "FlashInferAttnBackend", "", "target_checks"),
    Row("sglang.srt.layers.attention.triton_backend", "TritonAttnBackend", "", "target_checks, trees"),
    Row(
        "sglang.srt.layers.attention.hybrid_attn_backend",
        "HybridAttnBackend",
        "decode_backend prefill_backend",
        "target_checks, trees",
    ),
    Row(
        "sglang.srt.layers.attention.hybrid_attn_backend", "HybridAttnBackend._select_backend", "forward_mode", "trees"
    ),
    # It copies `custom_mask` onto its own buffer, as far as it is handed, and reads the buffer.
    Row(
        "sglang.srt.layers.attention.triton_backend",
        "TritonAttnBackend._update_target_verify_buffers",
        "spec_info",
        "trees",
    ),
    Row("sglang.srt.layers.attention.verify_mask", "VerifyMask", "buffer is_read max_bs mode", "trees"),
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
        "sampling_supports",
    ),
    Row("sglang.srt.layers.logits_processor", "SamplingMaskStatus", "OK", "sampling_supports"),
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
    Row(
        "sglang.srt.layers.vocab_parallel_embedding",
        "ParallelLMHead",
        "quant_method shard_indices weight",
        "candidates",
    ),
    Row(
        "sglang.srt.managers.overlap_utils",
        "FutureMap.__init__",
        "device spec_algo req_to_token_pool needs_cpu_seq_lens needs_confidence_relay",
        "algorithm",
    ),
    Row("sglang.srt.lora.backend.base_backend", "BaseLoRABackend", "is_moe_lora", "target_checks"),
    Row("sglang.srt.lora.layers", "unwrap_lora_layer", "module", "worker"),
    Row("sglang.srt.lora.lora_manager", "LoRAManager", "lora_backend", "target_checks"),
    # The rows of a verify are N to a request, whatever their mask: what adapters are applied by.
    Row("sglang.srt.lora.utils", "generate_sequence_lengths", "forward_batch", "hooks"),
    Row(
        "sglang.srt.managers.schedule_batch",
        "Req",
        "beam_group custom_logit_processor eos_token_ids finished finished_len finished_output finished_reason grammar "
        "is_prefill_only is_retracted kv origin_input_ids output_ids output_ids_through_stop reasoning_tokens "
        "return_hidden_states return_sampling_mask rid sampling_params send_token_offset session stream to_finish "
        "tokenizer",
        "grammar_ends, hooks, mixed_chunks, node_grammar, node_penalties, node_processors, request_options, "
        "request_rules, round_ends, run_ends, sessions, token_outputs, worker",
    ),
    Row("sglang.srt.managers.schedule_batch", "Req.update_finish_state", "new_accepted_len", "grammar_ends, run_ends"),
    Row("sglang.srt.managers.schedule_batch", "FINISH_ABORT", "message status_code err_type", "node_grammar"),
    Row("sglang.srt.managers.schedule_batch", "ReqKvInfo", "kv_committed_len req_pool_idx", "node_penalties, sessions"),
    Row(
        "sglang.srt.managers.schedule_batch",
        "ScheduleBatch",
        "can_run_decode_cuda_graph extend_lens forward_mode has_grammar is_extend_in_batch req_pool_indices "
        "req_pool_indices_cpu reqs return_hidden_states return_logprob sampling_info seq_lens seq_lens_cpu "
        "seq_lens_sum spec_info",
        "final_states, kv_window, node_grammar, node_penalties, worker",
    ),
    Row(
        "sglang.srt.managers.scheduler",
        "Scheduler",
        "init_req_max_new_tokens is_mixed_chunk max_req_input_len max_req_len model_config result_queue",
        "context_limit, mixed_chunks, node_processors",
    ),
    Row(
        "sglang.srt.managers.scheduler",
        "Scheduler.is_disable_overlap_for_batch",
        "batch last_batch",
        "node_processors",
        exact=True,
    ),
    Row("sglang.srt.managers.scheduler", "Scheduler.get_new_batch_prefill", "running_batch", "mixed_chunks"),
    Row("sglang.srt.managers.scheduler", "Scheduler.init_model_worker", "", "context_limit"),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor._resolve_spec_v2_tokens",
        "result batch",
        "run_ends",
    ),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor.advance_grammar_fsm",
        "result batch",
        "run_ends",
    ),
    Row(
        "sglang.srt.managers.scheduler_components.output_streamer",
        "SchedulerOutputStreamer",
        "is_generation",
        "token_outputs",
    ),
    Row(
        "sglang.srt.managers.scheduler_components.output_streamer",
        "SchedulerOutputStreamer.stream_output",
        "reqs return_logprob skip_req",
        "token_outputs",
        exact=True,
    ),
    Row(
        "sglang.srt.managers.tokenizer_manager",
        "ReqState",
        "event finished get_text out_list",
        "one_at_a_time",
    ),
    Row(
        "sglang.srt.managers.tokenizer_manager",
        "TokenizerManager._stream_one_response",
        "obj state request",
        "one_at_a_time",
        exact=True,
    ),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor._accept_grammar_tokens",
        "req tokens",
        "grammar_ends",
    ),
    Row("sglang.srt.managers.tp_worker", "TpModelWorker", "model_runner", "worker"),
    Row(
        "sglang.srt.managers.tp_worker",
        "TpModelWorker.forward_batch_generation",
        "batch forward_batch is_verify",
        "worker",
    ),
    Row(
        "sglang.srt.managers.utils",
        "GenerationBatchResult",
        "accept_lens can_run_cuda_graph copy_done extra_keep_alive_refs grammar_advanced "
        "logits_output new_seq_lens next_draft_input next_token_ids routed_experts_output speculative_num_draft_tokens "
        "speculative_output_stride",
        "routed_experts, run_ends, worker",
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
        "is_quantized_kv_cache k_buffer kv_cache_layout layer_num use_native_move_kv_cache v_buffer",
        "kv_moves",
    ),
    Row("sglang.srt.mem_cache.memory_pool", "MHATokenToKVPool.move_kv_cache", "tgt_loc src_loc", "kv_moves"),
    Row("sglang.srt.mem_cache.memory_pool", "ReqToTokenPool", "req_to_token", "worker"),
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
    Row("sglang.srt.model_executor.forward_batch_info", "ForwardMode", "TARGET_VERIFY is_extend is_idle", "worker"),
    Row("sglang.srt.model_executor.cuda_graph_config", "CudaGraphConfig", "decode", "graph_memory, worker"),
    Row("sglang.srt.model_executor.cuda_graph_config", "PhaseConfig", "backend bs", "graph_memory, worker"),
    Row("sglang.srt.model_executor.cuda_graph_config", "Backend", "DISABLED", "graph_memory"),
    Row(
        _MODEL_RUNNER,
        "ModelRunner",
        "attn_backend capture_tail_hooks decode_cuda_graph_runner dtype forward init_new_workspace "
        "kv_index_translator lora_manager max_running_requests model model_config page_size prewarm_sampling "
        "req_to_token_pool sampler sliding_window_size token_to_kv_pool token_to_kv_pool_allocator",
        "hooks, node_counts, target_checks, worker",
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
    Row("sglang.srt.plugins.hook_registry", "HookRegistry.apply_hooks", "", "plugin"),
    Row("sglang.srt.plugins.hook_registry", "HookRegistry.register", "target hook hook_type", "plugin"),
    Row("sglang.srt.plugins.hook_registry", "HookType", "AFTER AROUND", "plugin"),
    Row(_RUNTIME_CONTEXT, "_ConfigBag", "override", "kv_window, node_counts, worker"),
    Row(_RUNTIME_CONTEXT, "attention_backends", "", "target_checks"),
    Row(_RUNTIME_CONTEXT, "get_exec", "", "request_rules, worker"),
    Row(_RUNTIME_CONTEXT, "get_platform", "", "attention_default"),
    Row(_RUNTIME_CONTEXT, "get_parallel", "", "worker"),
    Row(_RUNTIME_CONTEXT, "get_serving", "", "token_outputs"),
    Row(
        _RUNTIME_CONTEXT,
        "get_spec",
        "",
        "algorithm, hooks, kv_window, node_counts, node_processors, one_at_a_time, target, token_outputs, worker",
    ),
    Row(
        "sglang.srt.sampling.sampling_batch_info",
        "SamplingBatchInfo",
        "acc_additive_penalties acc_scaling_penalties grammar_mask grammars has_custom_logit_processor is_all_greedy "
        "logit_bias min_ps penalizer_orchestrator return_sampling_masks return_sampling_support_logprobs "
        "sampling_mask_batch_indices sampling_seed sampling_support_logprobs_capture_indices temperatures top_ks "
        "top_ps vocab_size",
        "node_grammar, node_penalties, node_processors, sampling_supports, target_choice, worker",
    ),
    Row(
        "sglang.srt.sampling.sampling_batch_info",
        "SamplingBatchInfo.filter_batch",
        "keep_indices keep_indices_device",
        "node_processors",
        exact=True,
    ),
    Row(
        "sglang.srt.sampling.sampling_params",
        "SamplingParams",
        "custom_params frequency_penalty ignore_eos max_new_tokens min_new_tokens min_p presence_penalty "
        "repetition_penalty stop_regex_strs stop_strs stop_token_ids",
        "node_penalties, request_options, request_rules, round_ends, run_ends",
    ),
    Row(_SERVER_ARGS, "ServerArgs", "_resolution_finished", "hooks"),
    Row(_SERVER_ARGS, "ServerArgs.add_cli_args", "parser", "cli_flags"),
    Row(_SERVER_ARGS, "ServerArgs.from_cli_args", "args", "cli_flags"),
    Row(_SERVER_ARGS, "ServerArgs.resolve_once", "", "hooks"),
    Row(_SERVER_ARGS, "prepare_server_args", "argv", "hooks"),
    Row("sglang.srt.session.session_controller", "Session", "session_id", "sessions"),
    Row("sglang.srt.session.streaming_session", "SessionSlot", "kv", "sessions"),
    Row("sglang.srt.session.streaming_session", "StreamingSession", "slots", "sessions"),
    Row("sglang.srt.session.streaming_session", "StreamingSession.try_cache_finished_req", "req", "sessions"),
    Row(
        "sglang.srt.speculative.dflash_info",
        "DFlashVerifyInput",
        "custom_mask draft_token draft_token_num positions",
        "verify_input",
    ),
    Row(
        "sglang.srt.speculative.dflash_info",
        "DFlashVerifyInput.generate_attn_arg_prefill",
        "req_pool_indices paged_kernel_lens paged_kernel_lens_sum translator plan kind",
        "verify_input",
    ),
    Row(
        "sglang.srt.speculative.dflash_info_v2",
        "DFlashDraftInputV2",
        "bonus_tokens hidden_states new_seq_lens nxt_kv_lens_cpu topk_index topk_p",
        "kv_window",
    ),
    Row("sglang.srt.speculative.dflash_info_v2", "DFlashDraftInputV2.prepare_for_decode", "batch", "kv_window"),
    Row("sglang.srt.speculative.dflash_utils", "parse_dflash_draft_config", "draft_hf_config", "worker"),
    Row("sglang.srt.speculative.dflash_utils", "validate_dflash_request", "req enable_overlap", "hooks"),
    Row(
        _DFLASH_WORKER_V2,
        "DFlashWorkerV2",
        "_draft_block_spec_info _full_embed_gpu _is_domino _mask_token_id "
        "_noise_embed_scale _tp_sync alloc_memory_pool block_size device draft_model draft_model_runner "
        "draft_parallel_layout init_attention_backends init_cuda_graphs lilicorr model_runner "
        "prewarm_sampling selector speculative_num_draft_tokens",
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
        "custom_mask draft_token draft_token_num kv_loc_plan max_tree_depth positions prepared_out_cache_loc "
        "retrieve_index retrieve_next_sibling retrieve_next_token spec_steps tree_topk",
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
        "get_num_tokens_per_req_for_target_verify handle_server_args has_draft_kv is_dflash is_dflash_family "
        "supports_grammar_overlap supports_mixed_chunk supports_prefill_shared_read_done "
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
    Row("sglang.srt.state_capturer.base", "BaseTopkCapturer", "device_cache host_cache", "routed_experts"),
    Row("sglang.srt.state_capturer.base", "BaseDeviceCache", "buffer", "routed_experts"),
    Row("sglang.srt.state_capturer.base", "BaseHostCache", "buffer", "routed_experts"),
    Row("sglang.srt.state_capturer.base", "TopkCaptureOutput", "out_cache_loc topk", "routed_experts"),
    Row("sglang.srt.state_capturer.routed_experts", "get_global_experts_capturer", "", "routed_experts"),
    Row("sglang.srt.utils.common", "async_h2d", "args dtype device", "final_states, node_penalties, round_ends"),
    # What `get_platform()` asks, by these names (runtime_context.py, _PLATFORM_PROBES).
    Row("sglang.srt.utils.common", "get_device_memory_capacity", "device", "graph_memory"),
    Row("sglang.srt.utils.common", "is_cuda", "", "attention_default"),
    Row("sglang.srt.utils.common", "is_hopper_with_cuda_12_3", "", "attention_default"),
    Row("sglang.srt.utils.hf_transformers_utils", "get_config", "", "server_args"),
)
