"""Changes to other packages' code by which what one client sends ends no server; the engine's, under any algorithm."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

_HOOKS = "ddtree_sglang.engine.hooks"
_ENTRY = "ddtree_sglang.engine.entry"
_NEW_WEIGHTS = "ddtree_sglang.engine.admission.new_weights"
_PROCESSORS = "ddtree_sglang.engine.processor_failures"
_TOKENIZER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"

_UPDATES = "ddtree_sglang.engine.admission.weight_updates"
_ADAPTERS = "ddtree_sglang.engine.admission.adapter_weights"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_RUNNERS_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
_LORA_MANAGER = "sglang.srt.lora.lora_manager.LoRAManager"

ADMISSION_PATCHES = (
    Patch(
        "sglang.srt.runtime_context.publish",
        "after",
        f"{_ENTRY}.install:install_where_requests_enter",
        "a process that tokenizes gets the changes of that side",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler.handle_generate_request",
        "around",
        f"{_HOOKS}:refuse_what_came_another_way",
        "what no tokenizer's process of ours has seen is looked at before it is scheduled",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler.init_request_dispatcher",
        "after",
        "ddtree_sglang.engine.admission.control_requests:answer_failures",
        "a handler of a control request that raises would end the scheduler",
    ),
    Patch(
        f"{_UPDATER}.update_weights_from_tensor",
        "around",
        f"{_NEW_WEIGHTS}:answer_unreadable_weights",
        "new weights that cannot be read, or loaded, would end the scheduler",
    ),
    *(
        Patch(
            f"{_UPDATER}.{name}",
            "around",
            f"{_UPDATES}:take_back_failures",
            "an update that fails would end the scheduler, or leave half of the new weights",
        )
        for name in ("update_weights_from_disk", "update_weights_from_distributed", "update_weights_from_ipc")
    ),
    *(
        Patch(
            f"{_RUNNERS_UPDATER}.{name}",
            "around",
            f"{_UPDATES}:load_on_all_ranks",
            "a rank that fails alone would leave the others with new weights, or waiting",
        )
        for name in ("update_weights_from_tensor", "load_weights_from_distributed", "update_weights_from_ipc")
    ),
    Patch(
        f"{_RUNNERS_UPDATER}.update_weights_from_disk",
        "around",
        f"{_UPDATES}:load_checkpoint_on_all_ranks",
        "as above; and a checkpoint without some of the weights would be half of a model",
    ),
    Patch(
        f"{_RUNNERS_UPDATER}.receive_weights_from_distributed",
        "around",
        f"{_UPDATES}:receive_on_all_ranks",
        "as above",
    ),
    Patch(
        "concurrent.futures.thread.ThreadPoolExecutor.submit",
        "around",
        "ddtree_sglang.engine.admission.weight_undo:watch_threads",
        "loaders of experts write weights in threads, where nothing would keep what was there",
    ),
    Patch(
        f"{_LORA_MANAGER}.load_lora_adapter",
        "around",
        f"{_ADAPTERS}:load_where_it_fits",
        "an adapter of other shapes would end the scheduler when a batch first needs it",
    ),
    Patch(
        "sglang.srt.managers.tp_worker.TpModelWorker.load_lora_adapter_from_tensors",
        "around",
        f"{_ADAPTERS}:load_tensors_where_they_fit",
        "as above; and a rank that cannot read its own would leave the others waiting",
    ),
    Patch(
        f"{_LORA_MANAGER}.init_memory_pool",
        "after",
        f"{_ADAPTERS}:check_adapters_of_the_start",
        "as above, of an adapter that is named at start",
    ),
    Patch(
        "sglang.srt.managers.tp_worker.TpModelWorker.deserialize_own_rank",
        "around",
        f"{_NEW_WEIGHTS}:read_on_all_ranks",
        "a rank that could not read its own would leave the others waiting",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req.set_finish_with_abort",
        "after",
        f"{_HOOKS}:leave_nothing_that_runs",
        "a refused request is prefilled, with its own processor, grammar and embeddings",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler.abort_request",
        "around",
        "ddtree_sglang.engine.admission.request_ids:abort_no_other",
        "an abort would end every request whose id begins with the aborted one's",
    ),
    Patch(
        "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req",
        "around",
        "ddtree_sglang.engine.admission.embedding_prompts:keep_embeddings_apart",
        "a prefill of tokens and embeddings would end the server",
    ),
    Patch(
        "sglang.srt.session.session_controller.Session.create_req",
        "before",
        "ddtree_sglang.engine.admission.session_requests:clear_before_replacing",
        "a request that begins its session anew would end the server",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler.run_batch",
        "before",
        f"{_PROCESSORS}:note_running",
        "whose processor it is that raises",
    ),
    Patch(
        "sglang.srt.layers.sampler.apply_custom_logit_processor",
        "around",
        f"{_PROCESSORS}:let_processors_fail_alone",
        "a processor that raises would end the scheduler",
    ),
    Patch(
        "sglang.srt.layers.sampler.sampling_from_probs_torch",
        "around",
        "ddtree_sglang.engine.admission.drawing:draw_where_nothing_is_left",
        "torch raises over a row that a grammar and a client's bans leave empty, and the server ends",
    ),
    Patch(
        "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch",
        "around",
        "ddtree_sglang.engine.admission.drawing:draw_where_nothing_is_left",
        "as above",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req._check_str_based_finish",
        "around",
        "ddtree_sglang.engine.admission.stop_patterns:end_slow_patterns",
        "a pattern with a repetition inside a repetition would hold the scheduler for hours",
    ),
)
"""Under any algorithm, in each process: what one client sends must not end the server for the others."""

TOKENIZER_PATCHES = (
    Patch(
        f"{_TOKENIZER}._create_tokenized_object",
        "around",
        f"{_ENTRY}.refusals:check_request",
        "what would end the scheduler, or cannot be answered exactly, becomes a 400 and is never sent",
    ),
    Patch(
        f"{_TOKENIZER}.create_abort_task",
        "around",
        f"{_ENTRY}.ended_streams:abort_own_alone",
        "behind a stream, whoever has its id two seconds later would be ended",
    ),
    Patch(
        f"{_TOKENIZER}._init_req_state",
        "around",
        f"{_ENTRY}.refusals:check_reading",
        "lists of other lengths and ids that are no strings are a 500 in plain text",
    ),
    Patch(
        f"{_TOKENIZER}._tokenize_one_request",
        "around",
        f"{_ENTRY}.refusals:check_text",
        "a prompt that no tokenizer takes is a 500 in plain text",
    ),
    Patch(
        f"{_TOKENIZER}._dispatch_to_scheduler",
        "around",
        f"{_ENTRY}.refusals:check_what_is_sent",
        "a value that the scheduler cannot decode would end it",
    ),
    Patch(
        f"{_TOKENIZER}._async_dispatch_to_scheduler",
        "around",
        f"{_ENTRY}.refusals:check_what_is_sent_later",
        "as above",
    ),
    Patch(
        f"{_TOKENIZER}.release_memory_occupation",
        "around",
        f"{_ENTRY}.memory:check_release",
        "the scheduler asserts that it is idle, and has nothing to release on a CPU",
    ),
    Patch(
        f"{_TOKENIZER}.init_weights_update_group",
        "around",
        f"{_ENTRY}.weight_groups:check_receivers",
        "the scheduler waits for the address that a client names, asserts that its group has a name; a CPU has none",
    ),
    *(
        Patch(f"{_TOKENIZER}.{name}", "around", f"{_ENTRY}.weight_groups:check_senders", "as above")
        for name in ("init_weights_send_group_for_remote_instance", "send_weights_to_remote_instance")
    ),
    Patch(
        f"{_TOKENIZER}.update_weights_from_distributed",
        "around",
        f"{_ENTRY}.weight_groups:check_received",
        "lists of several lengths leave the sender waiting",
    ),
    Patch(
        f"{_TOKENIZER}.update_weights_from_ipc",
        "around",
        f"{_ENTRY}.memory:check_handles",
        "the scheduler waits for the sockets that a client names, and a CPU takes no weights",
    ),
    Patch(
        f"{_TOKENIZER}.update_weights_from_tensor",
        "around",
        f"{_ENTRY}.memory:check_weights",
        "a scheduler takes the payload of its rank, and ends if there is none",
    ),
    Patch(
        f"{_TOKENIZER}.update_weights_from_disk",
        "around",
        f"{_ENTRY}.memory:check_checkpoint",
        "a drafter would get the target's weights, and a failure that cannot be taken back ends the scheduler",
    ),
    Patch(
        f"{_TOKENIZER}.slow_down",
        "around",
        f"{_ENTRY}.memory:check_sleep",
        "a scheduler that is told to sleep for NaN seconds ends",
    ),
    Patch(
        f"{_TOKENIZER}.resume_memory_occupation",
        "around",
        f"{_ENTRY}.memory:check_resume",
        "the scheduler asserts that it was released",
    ),
)
"""Under any algorithm, in a process that tokenizes for a scheduler."""

ENTRY_PATCHES = (
    Patch(
        "sglang.srt.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments",
        "around",
        f"{_ENTRY}.refusals:check_shape",
        "one request could ask for so many answers that the memory ends",
    ),
    Patch(
        "sglang.srt.managers.io_struct.GenerateReqInput.__getitem__",
        "around",
        f"{_ENTRY}.refusals:check_reading",
        "as above",
    ),
    Patch(
        "fastapi.routing.run_endpoint_function",
        "around",
        f"{_ENTRY}.bodies:give_each_failure_a_reason",
        "what an endpoint raises is a 500 in plain text",
    ),
    Patch(
        "fastapi.dependencies.utils.solve_dependencies",
        "around",
        f"{_ENTRY}.bodies:name_what_cannot_be_parsed",
        "SGLang's validators raise AttributeError over a body of another kind: a 500 in plain text",
    ),
    Patch(
        "starlette.responses.StreamingResponse.stream_response",
        "around",
        f"{_ENTRY}.refusals:give_a_refused_stream_its_status",
        "a stream's 200 would be sent before its request is looked at",
    ),
)
"""Under any algorithm, in a process that reads requests, an ingress of replicas included."""

RESPONSES_PATCHES = (
    Patch(
        "sglang.srt.entrypoints.openai.serving_responses.OpenAIServingResponses._generate_with_builtin_tools",
        "around",
        f"{_ENTRY}.refusals:check_before_events",
        "a stream of /v1/responses begins before its request is looked at",
    ),
    Patch(
        "sglang.srt.entrypoints.http_server._setup_and_run_http_server",
        "before",
        f"{_ENTRY}.install:load_plugins_in_http_workers",
        "with --tokenizer-worker-num above 1 the processes that tokenize would load no plugins",
    ),
)
"""Under any algorithm, in a process with SGLang's HTTP server."""

REQUEST_PATCHES = (
    Patch(
        "sglang.srt.managers.schedule_batch.Req",
        "object",
        "ddtree_sglang.engine.admission.request_ids:_under_another_id",
        "for the time of another one's abort, its id does not begin like that one's",
        "rid",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler",
        "object",
        "ddtree_sglang.engine.admission.control_requests:answer_failures",
        "its dispatcher, in a guard",
        "_request_dispatcher",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req",
        "object",
        "ddtree_sglang.engine.admission.stop_patterns:end_slow_patterns",
        "the request whose pattern was too slow ends with an error of its own",
        "finished_reason",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req",
        "object",
        f"{_HOOKS}:leave_nothing_that_runs",
        "the sampling state of a refused request is neutral",
        "sampling_params custom_logit_processor input_embeds positional_embed_overrides return_hidden_states "
        "return_hidden_states_mode return_sampling_mask return_routed_experts return_indexer_topk "
        "multi_item_delimiter_indices token_indices_to_pool",
    ),
    Patch(
        "sglang.srt.managers.io_struct.TokenizedGenerateReqInput",
        "object",
        f"{_ENTRY}.refusals:refuse_unservable",
        "an empty processor is none",
        "custom_logit_processor",
    ),
    Patch(
        "starlette.responses.StreamingResponse",
        "object",
        f"{_ENTRY}.refusals:give_a_refused_stream_its_status",
        "the chunk that was waited for is put back",
        "body_iterator",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req",
        "object",
        f"{_PROCESSORS}:_end_at_once",
        "the request whose processor raised ends with an error of its own",
        "to_finish",
    ),
    Patch(
        "torch.Tensor",
        "object",
        "ddtree_sglang.engine.admission.weight_undo:_data_binding",
        "a parameter that a failed update has bound to other memory",
        "data",
    ),
    Patch(
        "sglang.srt.configs.model_config.ModelConfig",
        "object",
        f"{_UPDATES}:_memory_of_the_old_path",
        "a failed update has named the checkpoint anew",
        "model_path",
    ),
    Patch(
        _LORA_MANAGER,
        "object",
        f"{_ADAPTERS}:_forget",
        "an adapter that was loaded and does not fit is none",
        "num_pinned_loras",
    ),
)
"""Attributes of requests, responses, and what a failed update has touched."""
