"""Every change that the engine adapter makes to other packages' code; `cpu_patches`, `worker_patches`: the rest."""

from __future__ import annotations

from ddtree_sglang.contract.attention_patches import SINK_PATCHES, WINDOW_PATCHES
from ddtree_sglang.contract.entry_patches import (
    ADMISSION_PATCHES,
    ENTRY_PATCHES,
    REQUEST_PATCHES,
    RESPONSES_PATCHES,
    TOKENIZER_PATCHES,
)
from ddtree_sglang.contract.grammar_patches import GRAMMAR_PATCHES, GRAMMAR_STATE_PATCHES
from ddtree_sglang.contract.group_patches import GROUP_PATCHES
from ddtree_sglang.contract.patch import Patch
from ddtree_sglang.contract.state_patches import SHORT_CONVOLUTION_PATCHES, STATE_MEMORY_PATCHES

_ARGS = "sglang.srt.server_args.ServerArgs"
_RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"
_HOOKS = "ddtree_sglang.engine.hooks"
_FLAGS = "ddtree_sglang.engine.cli_flags"
_RUN_ENDS = "ddtree_sglang.engine.run_ends"
_REQ = "sglang.srt.managers.schedule_batch.Req"
_RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
_LIMIT = "ddtree_sglang.engine.admission.context_limit"
_FINAL_STATES = "ddtree_sglang.engine.stages.final_states"

FLAG_PATCHES = (
    Patch(f"{_ARGS}.add_cli_args", "after", f"{_FLAGS}:add_ddtree_flags", "the parser knows our flags"),
    Patch(f"{_ARGS}.from_cli_args", "around", f"{_FLAGS}:translate_ddtree_flags", "flags become SGLang's fields"),
    Patch(
        "sglang.srt.server_args.prepare_server_args",
        "around",
        f"{_HOOKS}:exit_on_bad_flag",
        "a mistake on a command line is one line, not a traceback",
    ),
    Patch(
        f"{_ARGS}.resolve_once",
        "around",
        f"{_HOOKS}:exit_on_bad_arguments",
        "so is what resolution finds, missing files first",
    ),
)
"""Installed even when registration fails, so that the failure is what is reported."""

ROUND_PATCHES = (
    Patch(
        "sglang.srt.plugins.hook_registry._propagate_patch",
        "assign",
        "ddtree_sglang.engine.hook_scan:collect_methods",
        "each hook on a method would go through all modules of the process by itself, seconds of each start",
    ),
    Patch(
        "sglang.srt.plugins.hook_registry.HookRegistry.apply_hooks",
        "assign",
        "ddtree_sglang.engine.hook_scan:apply_with_one_scan",
        "the modules are gone through once, when all methods are wrapped",
    ),
    Patch(
        "sglang.srt.speculative.dflash_utils.validate_dflash_request",
        "around",
        f"{_HOOKS}:refuse_unsupported_request",
        "what DDTREE cannot answer exactly becomes a 400",
    ),
    Patch(
        "sglang.srt.speculative.spec_sampling_mask.validate_spec_sampling_mask_request",
        "around",
        f"{_HOOKS}:answer_sampling_masks",
        "sampling masks that a chain cannot give would be refused for a tree, too",
    ),
    Patch(
        "sglang.srt.mem_cache.allocation_sizing.get_req_to_token_extra_context_len",
        "around",
        "ddtree_sglang.engine.stages.kv_window:row_headroom",
        "a request near the context limit would write into the next one's row",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler.init_model_worker",
        "after",
        f"{_LIMIT}:leave_room_for_rounds",
        "a request at the context limit would have its neighbour read its keys",
    ),
    Patch(
        "sglang.srt.speculative.spec_info.create_dummy_verify_input",
        "around",
        "ddtree_sglang.engine.graphs.target:dummy_verify_input",
        "warm-up forwards of the target are trees too",
    ),
    Patch(
        "sglang.srt.speculative.spec_utils.spec_need_hidden_states",
        "around",
        f"{_HOOKS}:carry_no_hidden_states",
        "overlap scheduling would store and gather hidden states of no width",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler.is_disable_overlap_for_batch",
        "around",
        "ddtree_sglang.engine.stages.node_processors:finish_the_round_before",
        "a custom logit processor would not see the last round's tokens",
    ),
    Patch(
        "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
        "around",
        "ddtree_sglang.engine.streaming.token_outputs:output_token_by_token",
        "parsers of tool calls lose what follows in a piece of several tokens",
    ),
    Patch(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._stream_one_response",
        "around",
        "ddtree_sglang.engine.streaming.one_at_a_time:read_one_at_a_time",
        "pieces that arrive together would be joined again",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler.get_new_batch_prefill",
        "around",
        "ddtree_sglang.engine.mixed_chunks:mix_requests_without_state",
        "a request in another's prefill is sampled without what a round keeps for it",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler.attach_hicache_storage_wrapped",
        "around",
        "ddtree_sglang.engine.admission.host_cache:refuse_storage",
        "storage that is refused at start could be attached later",
    ),
    Patch(
        "sglang.srt.disaggregation.common.conn.CommonKVReceiver.init",
        "around",
        "ddtree_sglang.engine.admission.split_servers:refuse_other_sizes",
        "keys would be cut to another number of ranks, the drafter's with the target's",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req.offload_kv_cache",
        "around",
        "ddtree_sglang.engine.stages.retraction_copies:copy_drafter_keys",
        "a retracted request on a decoding server would lose the drafter's keys",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req.load_kv_cache",
        "around",
        "ddtree_sglang.engine.stages.retraction_copies:restore_drafter_keys",
        "its drafter would read the keys of its slots' last owner",
    ),
    Patch(
        "sglang.srt.session.streaming_session.StreamingSession.try_cache_finished_req",
        "around",
        "ddtree_sglang.engine.sessions:keep_written_tokens",
        "a session's next turn would read keys of its last token that no round has written",
    ),
    Patch(
        "sglang.srt.arg_groups.lora_hook.check_lora_speculative_compatibility",
        "around",
        f"{_HOOKS}:allow_adapters",
        "SGLang lists the algorithms that adapters work with by name",
    ),
    Patch(
        f"{_RUNNER}._extend_forward_kwargs",
        "around",
        f"{_HOOKS}:keep_model_dtype",
        "input embeddings keep the model's dtype, where stock makes them bfloat16",
    ),
    Patch(
        f"{_RESULTS}.process_batch_result_decode",
        "around",
        f"{_RUN_ENDS}:cut_before_supports_are_read",
        "a token past the end, or the last of a run, would take its whole run from a request that asks for supports",
    ),
    Patch(
        f"{_RESULTS}._resolve_spec_v2_tokens",
        "around",
        f"{_RUN_ENDS}:cut_before_tokens_are_resolved",
        "tokens past the one that ends a request would be counted, cached and answered",
    ),
    Patch(
        f"{_RESULTS}._resolve_spec_v2_tokens",
        "after",
        "ddtree_sglang.engine.pair_watch:watch_first_rounds",
        "a drafter that never hits changes no answer, so that nothing else would tell of it",
    ),
    Patch(
        f"{_RESULTS}._resolve_spec_v2_tokens",
        "after",
        "ddtree_sglang.engine.decision_metrics:export_decisions",
        "what the adaptive budget decides, and whether it came true, would stand in no metric",
    ),
    Patch(
        "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController._add_speculative",
        "after",
        "ddtree_sglang.engine.cost_report:report_costs",
        "what rounds cost would be known to nobody but the server",
    ),
    *STATE_MEMORY_PATCHES,
    *GRAMMAR_PATCHES,
    Patch(
        f"{_REQ}.update_finish_state",
        "around",
        f"{_RUN_ENDS}:end_as_plain",
        "a run would be judged at once, and its end, or its grammar's, be another than plain decoding's",
    ),
    Patch(
        f"{_RESULTS}._mamba_can_cache_finished_req",
        "around",
        f"{_RUN_ENDS}:keep_only_states_of_the_end",
        "the prefix cache would take a recurrent state that is past the end of its text",
    ),
)
"""Each but `keep_model_dtype` passes through under any other algorithm."""

SCHEDULER_PATCHES = (
    Patch(
        f"{_REQ}.is_prefill_only",
        "assign",
        f"{_RUN_ENDS}:prefill_only_at_no_tokens",
        "a request for no token would be answered with the log-probability of one",
    ),
)
"""Installed when a scheduler makes its worker: before, the request's module cannot be imported."""

ENGINE_PATCHES = (
    *FLAG_PATCHES,
    *ROUND_PATCHES,
    *SCHEDULER_PATCHES,
    *WINDOW_PATCHES,
    *SINK_PATCHES,
    *SHORT_CONVOLUTION_PATCHES,
    *GROUP_PATCHES,
    *ADMISSION_PATCHES,
    *ENTRY_PATCHES,
    *TOKENIZER_PATCHES,
    *RESPONSES_PATCHES,
    *REQUEST_PATCHES,
    *GRAMMAR_STATE_PATCHES,
    Patch(
        _REQ,
        "object",
        f"{_RUN_ENDS}:judge",
        "put back after a run was judged",
        "finished_reason finished_len to_finish",
    ),
    Patch(
        _REQ,
        "object",
        f"{_RUN_ENDS}:_end_as_judged",
        "the end that was found; what plain decoding would not cache is not cached",
        "finished_reason finished_len skip_radix_cache_insert",
    ),
    Patch(
        "sglang.srt.managers.utils.GenerationBatchResult",
        "object",
        f"{_RUN_ENDS}:cut_runs",
        "the runs' lengths up to the ends of their requests",
        "accept_lens",
    ),
    Patch(
        "sglang.srt.layers.logits_processor.LogitsProcessorOutput",
        "object",
        f"{_RUN_ENDS}:_cut_supports",
        "supports are as many as the tokens of a run",
        "sampling_mask_output",
    ),
    Patch(
        "sglang.srt.state_capturer.base.BaseDeviceCache",
        "object",
        "ddtree_sglang.engine.stages.routed_experts:make_capture_room",
        "a verify has more rows than the buffer of routed experts is sized for",
        "buffer",
    ),
    Patch(
        "sglang.srt.state_capturer.routed_experts.RoutedExpertsCapturer",
        "object",
        "ddtree_sglang.engine.stages.routed_experts:make_capture_room",
        "all ranks' rows of such a verify have no room, either",
        "gather_buffer",
    ),
    Patch(
        _ARGS,
        "object",
        f"{_FLAGS}:apply_config",
        "the tree's size in SGLang's own fields",
        "speculative_num_draft_tokens speculative_eagle_topk",
    ),
    Patch(
        _ARGS,
        "object",
        "ddtree_sglang.engine.admission.attention_default:complete_raw_arguments",
        "graphs of prefills with adapters have not been shown",
        "disable_prefill_cuda_graph",
    ),
    Patch(
        _ARGS,
        "object",
        "ddtree_sglang.engine.admission.attention_default:_choose_attention_backend",
        "on an NVIDIA GPU SGLang's choice for a tree waits for the device in each round",
        "attention_backend",
    ),
    Patch(
        _ARGS,
        "object",
        "ddtree_sglang.engine.admission.server_args:resolve_server_args",
        "what SGLang infers for DFLASH alone",
        "disable_overlap_schedule speculative_dflash_block_size speculative_num_steps max_running_requests warmups",
    ),
    Patch(
        _RUNNER,
        "object",
        "ddtree_sglang.engine.graphs.target:install_tree_graph_runner",
        "the target's verify is captured as a tree",
        "_decode_cuda_graph_runner_cls",
    ),
    Patch(
        _RUNNER,
        "object",
        "ddtree_sglang.engine.graphs.node_counts:NodeCountStates._use",
        "a round verifies with the backend and graphs of its number of nodes",
        "attn_backend decode_cuda_graph_runner",
    ),
    Patch(
        "sglang.srt.speculative.eagle_info.EagleVerifyInput",
        "object",
        "ddtree_sglang.engine.graphs.target:tree_graph_runner_class.DDTreeTargetGraphRunner",
        "a replay on Triton would copy a cell of the mask onto itself",
        "custom_mask",
    ),
    Patch(
        "sglang.srt.layers.attention.flashattention_backend.FlashAttentionBackend",
        "object",
        "ddtree_sglang.engine.graphs.fa3_metadata:TreeMetadata.make",
        "with --debug-cuda-graph the verify would attend by the last prefill's metadata",
        "forward_metadata forward_metadata_spec_decode_expand",
    ),
    Patch(
        _RUNNER,
        "object",
        "ddtree_sglang.engine.graphs.node_counts:_capture",
        "put back after a second backend was made",
        "init_new_workspace",
    ),
    Patch(
        _RUNNER,
        "object",
        "ddtree_sglang.engine.worker:DDTreeWorker._use_graphs",
        "the drafter's graph ends with the tree (appended to)",
        "capture_tail_hooks",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler",
        "object",
        f"{_LIMIT}:leave_room_for_rounds",
        "what a request is admitted by",
        "max_req_len max_req_input_len",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req",
        "object",
        "ddtree_sglang.engine.streaming.token_outputs:_growing",
        "the streamer sees the request as it was before its newest tokens; put back",
        "finished_len finished_reason hidden_states reasoning_tokens",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req",
        "object",
        "ddtree_sglang.engine.streaming.token_outputs:_Growing.grow",
        "as it was when this token was its last",
        "finished_len",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.Req",
        "object",
        "ddtree_sglang.engine.streaming.token_outputs:_output_all_but_the_last",
        "the same for what is counted as reasoning",
        "reasoning_tokens",
    ),
    Patch(
        "sglang.srt.managers.tokenizer_manager.ReqState",
        "object",
        "ddtree_sglang.engine.streaming.one_at_a_time:ReaderState",
        "its outputs go to a reader that gets one at a time",
        "event out_list",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.ScheduleBatch",
        "object",
        "ddtree_sglang.engine.worker:DDTreeWorker._verify",
        "the target verifies this round's tree",
        "spec_info",
    ),
    Patch(
        "sglang.srt.managers.scheduler.Scheduler",
        "object",
        "ddtree_sglang.engine.mixed_chunks:mix_requests_without_state",
        "while a batch is made; put back",
        "is_mixed_chunk",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.ReqKvInfo",
        "object",
        "ddtree_sglang.engine.sessions:keep_written_tokens",
        "what a session's next turn begins behind",
        "kv_committed_len",
    ),
    Patch(
        "sglang.srt.layers.logits_processor.LogitsProcessorOutput",
        "object",
        f"{_FINAL_STATES}:_take",
        "the scheduler would copy the drafter's states to the host",
        "hidden_states last_hidden_states",
    ),
    Patch(
        "sglang.srt.layers.logits_processor.LogitsProcessorOutput",
        "object",
        f"{_FINAL_STATES}:hand_out_prompt_states",
        "a request that asks for hidden states gets the target's last ones",
        "hidden_states",
    ),
    Patch(
        "sglang.srt.layers.logits_processor.LogitsProcessorOutput",
        "object",
        f"{_FINAL_STATES}:hand_out_round_states",
        "the same of a round, a row per token that it emits",
        "hidden_states",
    ),
    Patch(
        "sglang.srt.layers.logits_processor.LogitsProcessor",
        "object",
        f"{_FINAL_STATES}:keep_final_states",
        "states captured for the drafter would take the place of the last ones",
        "keep_last_hidden_states",
    ),
    Patch(
        "sglang.srt.layers.logits_processor.LogitsProcessorOutput",
        "object",
        "ddtree_sglang.engine.worker:DDTreeWorker._accept",
        "the supports of what was emitted go where SGLang looks for a chain's",
        "sampling_mask_output",
    ),
)
