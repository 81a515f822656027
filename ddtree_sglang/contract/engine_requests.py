"""What the engine adapter relies on of SGLang's arguments, requests and their scheduling."""

from __future__ import annotations

from ddtree_sglang.contract.check import Row

_EXEC = "sglang.srt.arg_groups.fields.exec_"
_GRAMMAR = "sglang.srt.constrained.base_grammar_backend"
_SERVER_ARGS = "sglang.srt.server_args"
_TRANSFER = "sglang.srt.disaggregation.common.conn"

REQUESTS: tuple[Row, ...] = (
    Row("sglang.srt.arg_groups.fields.device", "Device", "device", "server_args"),
    Row(
        "sglang.srt.arg_groups.fields.disagg",
        "Disagg",
        "disaggregation_decode_allocation_policy disaggregation_decode_enable_offload_kvcache "
        "disaggregation_decode_host_receive_threshold disaggregation_decode_retraction_backup disaggregation_mode "
        "enable_pdmux optimistic_prefill_attempts",
        "node_penalties, server_args, split_servers, worker",
    ),
    Row(_TRANSFER, "CommonKVManager", "attn_tp_size prefill_info_table", "split_servers"),
    Row(_TRANSFER, "CommonKVManager.record_failure", "bootstrap_room failure_reason", "split_servers", exact=True),
    Row(_TRANSFER, "CommonKVReceiver", "bootstrap_addr bootstrap_room conclude_state kv_mgr", "split_servers"),
    Row(_TRANSFER, "CommonKVReceiver.abort", "", "split_servers", exact=True),
    Row(_TRANSFER, "CommonKVReceiver.init", "prefill_dp_rank", "split_servers", exact=True),
    Row(_TRANSFER, "PrefillServerInfo", "attn_tp_size", "split_servers"),
    Row(_EXEC, "ExecDeterministic", "enable_deterministic_inference", "request_rules, worker"),
    Row(
        _EXEC,
        "ExecFeatures",
        "enable_return_hidden_states enable_return_indexer_topk enable_return_routed_experts enable_watermark",
        "attention_groups, server_args, split_servers",
    ),
    Row(
        _EXEC,
        "ExecGraph",
        "cuda_graph_config disable_prefill_cuda_graph",
        "attention_default, graph_memory, server_args, worker",
    ),
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
    Row(
        "sglang.srt.arg_groups.fields.memory",
        "Memory",
        "disable_radix_cache enable_flexkv enable_hierarchical_cache enable_lmcache enable_page_major_kv_layout "
        "enable_unified_cache_external_linker enable_unified_memory hicache_host_memory_mode "
        "hicache_storage_backend radix_cache_backend",
        "recurrent_checks, server_args, split_servers, state_memory",
    ),
    Row(
        "sglang.srt.arg_groups.fields.model",
        "Model",
        "dtype kv_cache_dtype load_format model_path revision trust_remote_code",
        "attention_default, server_args",
    ),
    Row(
        "sglang.srt.arg_groups.fields.parallel",
        "Parallel",
        "attn_cp_size attn_dp_size dcp_size enable_dp_attention enable_dp_attention_local_control_broadcast "
        "enable_dp_lm_head pp_size tp_group tp_rank tp_size",
        "attention_groups, attention_ranks, graph_memory, server_args",
    ),
    Row(
        "sglang.srt.arg_groups.fields.schedule",
        "Schedule",
        "disable_overlap_schedule enable_mixed_chunk mamba_full_memory_ratio max_mamba_cache_size max_running_requests "
        "mem_fraction_static page_size prefill_decode_interval",
        "graph_memory, recurrent_checks, server_args, state_memory",
    ),
    Row(
        "sglang.srt.arg_groups.fields.serving",
        "Serving",
        "enable_streaming_session enable_strict_thinking host port preferred_sampling_params reasoning_parser "
        "skip_server_warmup tokenizer_worker_num tool_call_parser warmups",
        "recurrent_checks, server_args, split_servers, token_outputs",
    ),
    Row(
        "sglang.srt.arg_groups.fields.spec",
        "Spec",
        "speculative_accept_threshold_acc speculative_accept_threshold_single "
        "speculative_algorithm speculative_dflash_block_size speculative_draft_attention_backend "
        "speculative_draft_model_path speculative_draft_model_revision speculative_draft_sink_size "
        "speculative_draft_window_size speculative_eagle_topk speculative_moe_runner_backend "
        "speculative_num_draft_tokens speculative_num_steps "
        "speculative_use_rejection_sampling",
        "algorithm, hooks, kv_window, node_counts, server_args, target, worker",
    ),
    Row(
        "sglang.srt.arg_groups.fields.exec_",
        "ExecMoe",
        "moe_a2a_backend moe_runner_backend",
        "attention_groups, server_args",
    ),
    Row("sglang.srt.arg_groups.lora_hook", "check_lora_speculative_compatibility", "server_args", "hooks", exact=True),
    Row("sglang.srt.arg_groups.overrides", "attention_backends_of", "cfg", "server_args"),
    Row("sglang.srt.arg_groups.overrides", "model_config_of", "server_args", "server_args"),
    Row(
        "sglang.srt.arg_groups.overrides",
        "resolving_view",
        "",
        "hooks, round_budget, server_args, state_kernels, trace, worker",
    ),
    Row(
        _GRAMMAR,
        "BaseGrammarObject",
        "accept_token fill_vocab_mask finished is_terminated rollback",
        "grammar_ends, grammar_scouts, node_grammar, node_masks",
    ),
    Row(
        "sglang.srt.constrained.llguidance_backend",
        "GuidanceGrammar",
        "finished ll_matcher llguidance_tokenizer serialized_grammar",
        "grammar_scouts",
    ),
    Row("sglang.srt.constrained.llguidance_backend", "GuidanceGrammar.accept_token", "token", "grammar_scouts"),
    Row("sglang.srt.constrained.reasoner_grammar_backend", "ReasonerGrammarObject", "grammar", "grammar_scouts"),
    Row(_GRAMMAR, "BaseGrammarObject.allocate_vocab_mask", "vocab_size batch_size device", "node_grammar"),
    Row(_GRAMMAR, "GrammarMask", "grammar vocab_mask", "node_grammar"),
    Row(_GRAMMAR, "GrammarMask.apply", "logits", "grammar_rows, node_grammar"),
    Row(
        "sglang.srt.managers.overlap_utils",
        "FutureMap.__init__",
        "device spec_algo req_to_token_pool needs_cpu_seq_lens needs_confidence_relay",
        "algorithm",
    ),
    Row("sglang.srt.lora.backend.base_backend", "BaseLoRABackend", "is_moe_lora", "target_checks"),
    Row("sglang.srt.lora.layers", "unwrap_lora_layer", "module", "ranking, worker"),
    Row("sglang.srt.lora.lora_manager", "LoRAManager", "lora_backend", "target_checks"),
    # The rows of a verify are N to a request, whatever their mask: what adapters are applied by.
    Row("sglang.srt.lora.utils", "generate_sequence_lengths", "forward_batch", "hooks"),
    Row(
        "sglang.srt.managers.schedule_batch",
        "Req",
        "beam_group custom_logit_processor eos_token_ids finished finished_len finished_output finished_reason grammar "
        "hidden_states is_prefill_only is_retracted kv load_kv_cache offload_kv_cache origin_input_ids output_ids "
        "output_ids_through_stop reasoning_tokens retraction_count return_hidden_states return_sampling_mask rid "
        "sampling_params send_token_offset seqlen session skip_radix_cache_insert stream to_finish tokenizer "
        "vocab_size",
        "grammar_ends, hooks, mixed_chunks, node_grammar, node_penalties, node_processors, request_options, "
        "request_rules, retraction_copies, round_ends, run_ends, sessions, token_outputs, worker",
    ),
    Row("sglang.srt.managers.schedule_batch", "Req.update_finish_state", "new_accepted_len", "run_ends"),
    Row("sglang.srt.managers.schedule_batch", "FINISH_ABORT", "message status_code err_type", "node_grammar"),
    Row(
        "sglang.srt.managers.schedule_batch",
        "ReqKvInfo",
        "kv_committed_len mamba_ping_pong_track_buffer req_pool_idx",
        "node_penalties, retraction_copies, run_ends, sessions",
    ),
    Row(
        "sglang.srt.managers.schedule_batch",
        "ScheduleBatch",
        "after_idle_gap can_run_decode_cuda_graph extend_lens forward_mode global_num_tokens "
        "has_grammar is_extend_in_batch "
        "mamba_track_indices req_pool_indices req_pool_indices_cpu reqs return_hidden_states return_logprob "
        "sampling_info seq_lens seq_lens_cpu seq_lens_sum spec_info tree_cache",
        "final_states, kv_window, node_grammar, node_penalties, recurrent_states, round_budget, worker",
    ),
    Row(
        "sglang.srt.managers.scheduler",
        "Scheduler",
        "chunked_prefill_size init_req_max_new_tokens is_mixed_chunk max_req_input_len max_req_len model_config "
        "result_queue draft_worker",
        "context_limit, mixed_chunks, node_processors, cost_report",
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
    Row("sglang.srt.managers.scheduler", "Scheduler.attach_hicache_storage_wrapped", "recv_req", "host_cache"),
    Row("sglang.srt.managers.io_struct", "AttachHiCacheStorageReqOutput", "message success", "host_cache"),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor",
        "metrics_collector model_worker tree_cache",
        "pair_watch, run_ends",
    ),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor.get_sampling_mask_finish_reason",
        "status",
        "run_ends",
    ),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor.process_batch_result_decode",
        "batch result",
        "run_ends",
        exact=True,
    ),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor._resolve_spec_v2_tokens",
        "result batch",
        "pair_watch, run_ends",
    ),
    Row(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor.advance_grammar_fsm",
        "result batch",
        "run_ends",
    ),
    Row(
        "sglang.srt.managers.scheduler_components.internal_state",
        "SchedulerInternalStateController",
        "scheduler _add_speculative",
        "cost_report",
    ),
    Row(
        "sglang.srt.managers.scheduler_components.internal_state",
        "SchedulerInternalStateController._add_speculative",
        "state",
        "cost_report",
        exact=True,
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
        "logits_output new_seq_lens next_draft_input next_token_ids num_correct_drafts_per_req_cpu "
        "routed_experts_output speculative_num_draft_tokens speculative_output_stride",
        "pair_watch, routed_experts, run_ends, worker",
    ),
    Row("sglang.srt.observability.metrics_collector", "SchedulerMetricsCollector", "_gauge_cls labels", "gauges"),
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
    Row("sglang.srt.state_capturer.base", "BaseTopkCapturer", "device_cache host_cache", "routed_experts"),
    Row("sglang.srt.state_capturer.base", "BaseDeviceCache", "buffer", "routed_experts"),
    Row("sglang.srt.state_capturer.base", "BaseHostCache", "buffer", "routed_experts"),
    Row("sglang.srt.state_capturer.base", "TopkCaptureOutput", "out_cache_loc topk", "routed_experts"),
    Row("sglang.srt.state_capturer.routed_experts", "get_global_experts_capturer", "", "routed_experts"),
)
