"""Every SGLang name that the workers rely on, in one table, checked by tests/contract/test_worker_contract.py.

The engine's side has its own table, `ddtree_sglang.contract.engine`, whose checker this uses: it reads SGLang's source.
"""

from __future__ import annotations

from ddtree_sglang.contract.engine import Entry

_MANAGER = "sglang.srt.managers.tokenizer_manager"
_OPENAI = "sglang.srt.entrypoints.openai"
_SCHEDULE = "sglang.srt.managers.schedule_batch"

SGLANG_NAMES: tuple[Entry, ...] = (
    # Ranks as actors.
    Entry("sglang.srt.arg_groups.fields.device", "Device", ("use_ray",), "plugin"),
    Entry(
        "sglang.srt.ray.scheduler_actor",
        "SchedulerActor.__init__",
        ("server_args", "port_args", "gpu_id", "tp_rank", "pp_rank", "dp_rank", "dist_init_addr"),
        "rank_actor",
    ),
    Entry("sglang.srt.ray.scheduler_actor", "SchedulerActor.run_event_loop", (), "rank_actor"),
    Entry("sglang.srt.ray.engine", "_create_scheduler_actor", ("pg", "bundle_idx", "server_args"), "rank_actor"),
    Entry("sglang.srt.ray.engine", "_validate_custom_placement_group", ("pg", "world_size"), "rank_launch"),
    Entry("sglang.srt.managers.load_snapshot", "shm_path_for", ("ipc_name",), "shared_memory"),
    Entry("sglang.srt.ray.engine", "RayEngine._launch_scheduler_processes", ("placement_group",), "rank_launch"),
    Entry("sglang.srt.ray.engine", "RaySchedulerInitResult", ("scheduler_actors",), "rank_launch"),
    Entry(
        "sglang.srt.entrypoints.engine",
        "SchedulerInitResult",
        ("scheduler_infos", "all_child_pids", "wait_for_ready", "block_until_scheduler_exits"),
        "rank_launch",
    ),
    # What the OpenAI classes expect of a token manager, and whose results they read.
    Entry(
        _MANAGER,
        "TokenizerManager",
        ("generate_request", "create_abort_task", "config_value", "serving_chat_class"),
        "tokenizer_manager",
    ),
    Entry(
        _MANAGER,
        "TokenizerManager.detokenize_logprob_tokens",
        ("token_logprobs_val", "decode_to_text"),
        "answer_view",
    ),
    Entry(_MANAGER, "TokenizerManager._handle_abort_finish_reason", (), "answer_view"),
    Entry(_MANAGER, "TokenizerManager._calculate_spec_decoding_metrics", ("meta_info", "recv_obj"), "answers.meta"),
    Entry(
        f"{_OPENAI}.serving_chat", "OpenAIServingChat.__init__", ("tokenizer_manager", "template_manager"), "ingress"
    ),
    Entry(
        f"{_OPENAI}.serving_completions",
        "OpenAIServingCompletion.__init__",
        ("tokenizer_manager", "template_manager"),
        "frontend",
    ),
    Entry(
        f"{_OPENAI}.serving_base",
        "OpenAIServingBase",
        ("handle_request", "_handle_streaming_request", "_handle_non_streaming_request"),
        "openai_errors",
    ),
    Entry(
        f"{_OPENAI}.serving_base",
        "OpenAIServingBase.create_error_response",
        ("message", "err_type", "status_code"),
        "openai_errors",
    ),
    Entry(
        f"{_OPENAI}.serving_base",
        "OpenAIServingBase.create_streaming_error_response",
        ("message", "err_type", "status_code"),
        "openai_errors",
    ),
    # What a request is.
    Entry("sglang.srt.managers.io_struct", "GenerateReqInput.normalize_batch_and_arguments", (), "generate_input"),
    Entry("sglang.srt.managers.io_struct", "GenerateReqInput.contains_mm_input", (), "generate_input"),
    Entry("sglang.srt.managers.io_struct", "GenerateReqInput.__getitem__", ("i",), "generate_input"),
    Entry("sglang.srt.managers.io_struct", "GenerateReqInput.regenerate_rid", (), "generate_input"),
    Entry(
        "sglang.srt.managers.io_struct",
        "GenerateReqInput",
        (
            "rid",
            "text",
            "input_ids",
            "input_embeds",
            "sampling_params",
            "return_logprob",
            "logprob_start_len",
            "top_logprobs_num",
            "token_ids_logprob",
            "return_text_in_logprobs",
            "return_flat_raw_top_logprobs",
            "return_flat_raw_output_top_logprobs",
            "return_prompt_token_ids",
            "stream",
            "background",
        ),
        "generate_input",
    ),
    Entry("sglang.srt.sampling.sampling_params", "SamplingParams", ("max_new_tokens", "stop", "n"), "generate_input"),
    Entry("sglang.srt.sampling.sampling_params", "SamplingParams.normalize", ("tokenizer",), "generate_input"),
    Entry("sglang.srt.sampling.sampling_params", "SamplingParams.verify", ("vocab_size",), "generate_input"),
    # How an answer ends and becomes text.
    Entry(_SCHEDULE, "INIT_INCREMENTAL_DETOKENIZATION_OFFSET", (), "model_tokenizer"),
    Entry(_SCHEDULE, "Req._check_str_based_finish", ("new_accepted_len",), "text"),
    Entry(_SCHEDULE, "Req._check_token_based_finish", ("new_accepted_tokens",), "resume"),
    Entry(_SCHEDULE, "Req.update_finish_state", ("new_accepted_len",), "resume"),
    Entry(
        "sglang.srt.managers.detokenizer_manager",
        "DetokenizerManager.trim_matched_stop",
        ("output", "finished_reason", "no_stop_trim"),
        "text",
    ),
    Entry(
        "sglang.srt.utils.patch_tokenizer",
        "decode_without_hf_kwargs",
        ("tokenizer", "token_ids", "skip_special_tokens"),
        "model_tokenizer",
    ),
    Entry(
        "sglang.srt.parser.response_template",
        "tool_close_token_ids",
        ("tool_call_parser", "tokenizer"),
        "tokenizer_manager",
    ),
    Entry(
        "sglang.srt.utils.hf_transformers.common", "attach_additional_stop_token_ids", ("tokenizer",), "model_tokenizer"
    ),
    # The process.
    Entry("sglang.srt.parser.template_detection", "resolve_auto_parsers", ("server_args",), "frontend"),
    Entry("sglang.srt.runtime_context", "publish", ("server_args", "role"), "frontend"),
    Entry("sglang.srt.runtime_context", "assert_published", ("server_args", "role"), "tokenizer_manager"),
    Entry("sglang.srt.runtime_context", "get_context", (), "tokenizer_manager"),
    Entry("sglang.srt.runtime_context", "RuntimeContext.config_leaf", ("name",), "tokenizer_manager"),
    Entry("sglang.srt.configs.model_config", "ModelConfig.from_server_args", ("server_args",), "tokenizer_manager"),
    Entry("sglang.srt.configs.model_config", "ModelConfig.get_default_sampling_params", (), "tokenizer_manager"),
    Entry(
        "sglang.srt.utils.hf_transformers.tokenizer",
        "get_tokenizer",
        ("tokenizer_name", "tokenizer_mode", "trust_remote_code", "tokenizer_backend"),
        "model_tokenizer",
    ),
    Entry(
        "sglang.srt.utils.request_logger",
        "RequestLogger.__init__",
        ("log_requests", "log_requests_level", "log_requests_format", "log_requests_target"),
        "tokenizer_manager",
    ),
    Entry(
        "sglang.srt.parser.template_manager",
        "TemplateManager.initialize_templates",
        ("tokenizer_manager", "model_path", "chat_template", "completion_template"),
        "frontend",
    ),
)
