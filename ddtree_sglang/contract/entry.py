"""What the admission of requests relies on of SGLang and of the web framework below it; the engine's, too."""

from __future__ import annotations

from ddtree_sglang.contract.check import Row

_IO_STRUCT = "sglang.srt.managers.io_struct"
_SCHEDULE_BATCH = "sglang.srt.managers.schedule_batch"
_SCHEDULER = "sglang.srt.managers.scheduler"
_MANAGERS_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater"
_RUNNERS_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater"
_TOKENIZER_MANAGER = "sglang.srt.managers.tokenizer_manager"

ENTRY: tuple[Row, ...] = (
    Row("concurrent.futures.thread", "ThreadPoolExecutor.submit", "fn", "weight_undo"),
    Row("fastapi.dependencies.utils", "solve_dependencies", "request", "bodies"),
    Row("fastapi.routing", "run_endpoint_function", "", "bodies"),
    Row("fastapi.exceptions", "RequestValidationError", "", "bodies"),
    Row("fastapi.exceptions", "WebSocketRequestValidationError", "", "bodies"),
    Row("sglang.srt.arg_groups.fields.exec_", "ExecFeatures", "enable_custom_logit_processor", "logit_processors"),
    Row(
        "sglang.srt.arg_groups.fields.observability",
        "Observability",
        "enable_metrics tokenizer_metrics_allowed_custom_labels",
        "request_fields",
    ),
    Row(
        "sglang.srt.entrypoints.openai.serving_responses",
        "OpenAIServingResponses._generate_with_builtin_tools",
        "request_id request_prompt adapted_request",
        "refusals",
    ),
    Row("sglang.srt.layers.sampler", "sampling_from_probs_torch", "probs", "drawing"),
    Row("sglang.srt.layers.sampler", "top_k_top_p_min_p_sampling_from_probs_torch", "probs", "drawing"),
    Row(
        "sglang.srt.layers.sampler",
        "apply_custom_logit_processor",
        "logits sampling_batch_info num_tokens_in_batch",
        "processor_failures",
        exact=True,
    ),
    Row("sglang.srt.configs.load_config", "LoadFormat", "", "memory"),
    Row(
        "sglang.srt.configs.model_config",
        "ModelConfig",
        "hidden_size model_path vocab_size",
        "hooks, refusals, weight_updates",
    ),
    Row("sglang.srt.constrained.grammar_manager", "GrammarManager", "grammar_queue", "request_ids"),
    Row("sglang.srt.constants", "HEALTH_CHECK_RID_PREFIX", "", "refusals"),
    Row("sglang.srt.entrypoints.http_server", "_setup_and_run_http_server", "", "install"),
    Row("sglang.srt.entrypoints.http_server", "app", "", "http_workers"),
    Row("sglang.srt.entrypoints.http_server", "execute_warmups", "tokenizer_manager warmup_names", "first_costs"),
    Row("sglang.srt.entrypoints.warmup", "warmup", "name", "install"),
    Row(
        "sglang.srt.environ",
        "Envs",
        "SGLANG_FLASHINFER_USE_PAGED SGLANG_HTTP_SERVER_APP_PATH SGLANG_SCHEDULER_SKIP_ALL_GATHER "
        "SGLANG_USE_PICKLE_IPC",
        "attention_groups, install, refusals, target_checks",
    ),
    Row("sglang.srt.environ", "envs", "", "attention_groups, refusals, target_checks"),
    Row(_IO_STRUCT, "AbortReq", "abort_all rid finished_reason", "request_ids, hooks"),
    Row(
        _IO_STRUCT,
        "GenerateReqInput",
        "contains_mm_input custom_labels input_ids log_metrics rid sampling_params text",
        "first_costs, refusals",
    ),
    Row(_IO_STRUCT, "GenerateReqInput.__getitem__", "i", "ended_streams, refusals"),
    Row(_IO_STRUCT, "ExpertDistributionReq", "", "refusals"),
    Row(_IO_STRUCT, "GenerateReqInput.normalize_batch_and_arguments", "", "refusals", exact=True),
    Row(
        _IO_STRUCT,
        "SessionParams",
        "drop_previous_output id offset replace rid",
        "request_fields, session_requests",
    ),
    Row(_IO_STRUCT, "SlowDownReqInput", "forward_sleep_time", "memory"),
    Row(_IO_STRUCT, "UpdateWeightFromDiskReqInput", "load_format", "memory"),
    Row(
        _IO_STRUCT,
        "TokenizedGenerateReqInput",
        "cache_salt custom_logit_processor extra_key http_worker_ipc input_embeds input_ids logprob_start_len lora_id "
        "mm_inputs multi_item_delimiter_indices positional_embed_overrides priority return_hidden_states "
        "return_logprob return_sampling_mask rid routed_experts_start_len routing_key sampling_params session_id "
        "session_params token_indices_to_pool top_logprobs_num",
        "embedding_prompts, hooks, request_ids, request_kinds, request_fields, request_rules, session_requests",
    ),
    Row(_IO_STRUCT, "UpdateWeightsFromTensorReqInput", "load_format", "new_weights"),
    Row(_IO_STRUCT, "UpdateWeightsFromTensorReqOutput", "success message", "new_weights"),
    Row(_IO_STRUCT, "LoadLoRAAdapterFromTensorsReqInput.to_ref", "", "adapter_weights"),
    Row(_IO_STRUCT, "UpdateWeightFromDiskReqOutput", "success message", "weight_updates"),
    Row(_IO_STRUCT, "UpdateWeightsFromDistributedReqOutput", "success message", "weight_updates"),
    Row(_IO_STRUCT, "UpdateWeightsFromIPCReqOutput", "success message", "weight_updates"),
    Row(_IO_STRUCT, "msgpack_encode", "obj", "refusals"),
    Row(_SCHEDULE_BATCH, "FINISH_ABORT", "message status_code err_type", "processor_failures, stop_patterns"),
    Row(
        _SCHEDULE_BATCH,
        "Req",
        "custom_logit_processor finished_reason input_embeds multi_item_delimiter_indices positional_embed_overrides "
        "return_hidden_states return_hidden_states_mode return_indexer_topk return_routed_experts "
        "return_sampling_mask rid sampling_params to_finish token_indices_to_pool",
        "request_ids, embedding_prompts, hooks, processor_failures, stop_patterns",
    ),
    Row(_SCHEDULE_BATCH, "Req._check_str_based_finish", "new_accepted_len", "stop_patterns"),
    Row(_SCHEDULE_BATCH, "Req.set_finish_with_abort", "error_msg", "hooks"),
    Row(_SCHEDULE_BATCH, "get_return_hidden_states_mode", "", "hooks"),
    Row(_IO_STRUCT, "SetInternalStateReq", "server_args", "control_requests"),
    Row("sglang.srt.managers.schedule_policy", "AddReqResult", "OTHER", "embedding_prompts"),
    Row("sglang.srt.managers.schedule_policy", "PrefillAdder", "can_run_list", "embedding_prompts"),
    Row("sglang.srt.managers.schedule_policy", "PrefillAdder.add_one_req", "req", "embedding_prompts"),
    Row(
        _SCHEDULER,
        "Scheduler",
        "_request_dispatcher chunked_req collect_inflight_reqs grammar_manager waiting_queue",
        "request_ids, control_requests",
    ),
    Row(_SCHEDULER, "Scheduler.abort_request", "recv_req", "request_ids", exact=True),
    Row(_SCHEDULER, "Scheduler.handle_generate_request", "recv_req", "hooks"),
    Row(_SCHEDULER, "Scheduler.init_request_dispatcher", "", "control_requests"),
    Row(_SCHEDULER, "Scheduler.run_batch", "batch", "processor_failures"),
    Row(_SCHEDULER, "Scheduler.send_abort_output", "abort_req req", "hooks"),
    *(
        Row(_MANAGERS_UPDATER, f"SchedulerWeightUpdaterManager.{name}", "recv_req", "weight_updates", exact=True)
        for name in (
            "update_weights_from_disk",
            "update_weights_from_distributed",
            "update_weights_from_ipc",
            "update_weights_from_tensor",
        )
    ),
    Row(_MANAGERS_UPDATER, "SchedulerWeightUpdaterManager._select_runners", "selector", "weight_updates", exact=True),
    Row(
        _RUNNERS_UPDATER,
        "WeightUpdater",
        "device get_model get_model_runner gpu_id load_weights_from_distributed model_config recapture_cuda_graph "
        "receive_weights_from_distributed update_weights_from_ipc update_weights_from_tensor",
        "weight_updates",
    ),
    Row(
        _RUNNERS_UPDATER,
        "WeightUpdater.update_weights_from_disk",
        "model_path load_format weight_name_filter recapture_cuda_graph",
        "weight_updates",
        exact=True,
    ),
    Row("sglang.srt.model_executor.model_runner", "ModelRunner", "load_config lora_manager model", "weight_updates"),
    Row(
        "sglang.srt.model_executor.model_runner",
        "ModelRunner.update_model_fields",
        "new_model model_path load_format load_config",
        "weight_updates",
        exact=True,
    ),
    Row("sglang.srt.utils", "get_available_gpu_memory", "device gpu_id empty_cache", "weight_updates"),
    Row(
        "sglang.srt.lora.lora_manager",
        "LoRAManager",
        "configs embed_tokens_module init_memory_pool lm_head_module lora_modules lora_refs loras memory_pool "
        "num_pinned_loras",
        "adapter_weights",
    ),
    Row(
        "sglang.srt.lora.lora_manager",
        "LoRAManager.create_lora_update_result",
        "success error_message",
        "adapter_weights",
        exact=True,
    ),
    Row("sglang.srt.lora.lora_manager", "LoRAManager.load_lora_adapter", "lora_ref", "adapter_weights", exact=True),
    Row("sglang.srt.lora.lora_registry", "LoRARef", "lora_id lora_name pinned", "adapter_weights"),
    Row(
        "sglang.srt.lora.mem_pool",
        "LoRAMemoryPool",
        "A_buffer B_buffer embedding_A_buffer embedding_B_buffer lm_head_A_buffer lm_head_B_buffer "
        "new_embeddings_buffer",
        "adapter_weights",
    ),
    Row(
        "sglang.srt.lora.mem_pool",
        "LoRAMemoryPool.load_lora_weight_to_buffer",
        "uid buffer_id lora_adapter lora_modules lora_embed_tokens_module lora_lm_head_module",
        "adapter_weights",
        exact=True,
    ),
    Row(
        "sglang.srt.managers.tp_worker",
        "TpModelWorker.load_lora_adapter_from_tensors",
        "recv_req",
        "adapter_weights",
        exact=True,
    ),
    Row("sglang.srt.managers.tp_worker", "TpModelWorker", "model_runner", "adapter_weights"),
    Row(
        _TOKENIZER_MANAGER,
        "TokenizerManager",
        "init_weights_send_group_for_remote_instance init_weights_update_group is_pause model_config "
        "preferred_sampling_params release_memory_occupation resume_memory_occupation rid_to_state "
        "sampling_params_class send_weights_to_remote_instance slow_down tokenizer update_weights_from_disk "
        "update_weights_from_distributed update_weights_from_ipc update_weights_from_tensor",
        "ended_streams, memory, refusals, weight_groups",
    ),
    Row(_TOKENIZER_MANAGER, "ReqState", "obj", "ended_streams"),
    Row(_TOKENIZER_MANAGER, "TokenizerManager.abort_request", "abort_all", "ended_streams, first_costs"),
    Row(_TOKENIZER_MANAGER, "TokenizerManager.create_abort_task", "obj", "ended_streams", exact=True),
    Row(_TOKENIZER_MANAGER, "TokenizerManager.generate_request", "obj", "first_costs"),
    Row(_TOKENIZER_MANAGER, "TokenizerManager.get_internal_state", "", "first_costs", exact=True),
    Row(_TOKENIZER_MANAGER, "TokenizerManager._async_dispatch_to_scheduler", "obj", "refusals", exact=True),
    Row(_TOKENIZER_MANAGER, "TokenizerManager._create_tokenized_object", "obj", "refusals"),
    Row(_TOKENIZER_MANAGER, "TokenizerManager._init_req_state", "obj request", "refusals"),
    Row(_TOKENIZER_MANAGER, "TokenizerManager._dispatch_to_scheduler", "obj", "refusals", exact=True),
    Row(_TOKENIZER_MANAGER, "TokenizerManager._tokenize_one_request", "obj", "refusals", exact=True),
    Row(
        "sglang.srt.managers.tp_worker",
        "TpModelWorker.deserialize_own_rank",
        "serialized_named_tensors",
        "new_weights",
        exact=True,
    ),
    Row("sglang.srt.managers.utils", "msgpack_decode_explained", "data", "refusals"),
    Row("sglang.srt.runtime_context", "get_observability", "", "request_fields"),
    Row(
        "sglang.srt.model_executor.model_runner_components.weight_updater",
        "LocalSerializedTensor.get",
        "rank",
        "new_weights",
    ),
    Row("sglang.srt.distributed.parallel_state", "GroupCoordinator.all_gather_object", "obj", "new_weights"),
    Row(
        "sglang.srt.arg_groups.fields.model",
        "Model",
        "custom_weight_loader load_format model_path",
        "new_weights, weight_updates",
    ),
    Row("sglang.srt.arg_groups.fields.serving", "Serving", "tokenizer_worker_num", "install, memory"),
    Row("sglang.srt.plugins", "load_plugins", "", "http_workers"),
    Row("sglang.srt.runtime_context", "get_model", "", "new_weights, weight_updates"),
    Row("sglang.srt.runtime_context", "publish", "server_args role", "install"),
    Row("sglang.srt.sampling.custom_logit_processor", "CustomLogitProcessor.from_str", "json_str", "logit_processors"),
    Row("sglang.srt.sampling.sampling_batch_info", "ProcessorEntry", "indices processor rows", "processor_failures"),
    Row(
        "sglang.srt.sampling.sampling_batch_info",
        "SamplingBatchInfo",
        "custom_logit_processor custom_params",
        "processor_failures",
    ),
    Row(
        "sglang.srt.sampling.sampling_params",
        "SamplingParams",
        "custom_params ebnf frequency_penalty json_schema logit_bias max_new_tokens min_new_tokens min_p normalize "
        "presence_penalty regex repetition_penalty sampling_seed stop_regex_strs stop_token_ids stream_interval "
        "structural_tag temperature top_k top_p verify",
        "hooks, logit_processors, refusals, request_fields, request_kinds, stop_patterns",
    ),
    Row("sglang.srt.session.session_controller", "Session", "req_nodes streaming", "session_requests"),
    Row("sglang.srt.session.session_controller", "Session.create_req", "req", "session_requests"),
    Row("sglang.srt.session.session_controller", "SessionReqNode.abort", "", "session_requests", exact=True),
    Row("torch", "ops.aten.copy_.default", "", "weight_undo", compiled=True),
    Row("torch.utils._python_dispatch", "TorchDispatchMode", "", "weight_undo"),
    Row("starlette.responses", "StreamingResponse", "body_iterator", "refusals"),
    Row("starlette.responses", "StreamingResponse.stream_response", "send", "refusals"),
)
