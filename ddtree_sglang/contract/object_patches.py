"""Attributes that the engine adapter sets on single objects of other packages; our functions set them themselves."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

_ARGS = "sglang.srt.server_args.ServerArgs"
_RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"
_FLAGS = "ddtree_sglang.engine.cli_flags"
_RUN_ENDS = "ddtree_sglang.engine.run_ends"
_REQ = "sglang.srt.managers.schedule_batch.Req"
_LIMIT = "ddtree_sglang.engine.admission.context_limit"
_FINAL_STATES = "ddtree_sglang.engine.stages.final_states"

OBJECT_PATCHES = (
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
        "sglang.srt.layers.attention.flashattention_backend.FlashAttentionBackend",
        "object",
        "ddtree_sglang.engine.stages.fa3_windows:_pages_of_one_token",
        "a tree's layers with a sliding window read slots, while their rows are made and their keys viewed; put back",
        "page_size",
    ),
    Patch(
        "sglang.srt.layers.attention.flashattention_backend.FlashAttentionMetadata",
        "object",
        "ddtree_sglang.engine.stages.fa3_windows:making_rows_of_slots",
        "the rows that were made from a copy of it with slots",
        "swa_spec_metadata",
    ),
    Patch(
        "sglang.srt.layers.attention.triton_backend.TritonAttnBackend",
        "object",
        "ddtree_sglang.engine.stages.window_masks:attending_by_position_in_one_go",
        "its kernel gets the windows' mask while a layer with a window attends; put back",
        "extend_attention_fwd_unified",
    ),
    Patch(
        "flashinfer.BatchPrefillWithPagedKVCacheWrapper",
        "object",
        "ddtree_sglang.engine.stages.flashinfer_windows:planning_by_position",
        "a tree's window is in the mask alone; by a node's index it would end too early",
        "forward",
    ),
    Patch(
        "sglang.srt.layers.attention.flashinfer_backend.FlashInferAttnBackend",
        "object",
        "ddtree_sglang.engine.stages.flashinfer_windows:dividing_masks",
        "one half of it for each of a graph's two wrappers; put back",
        "cuda_graph_custom_mask",
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
