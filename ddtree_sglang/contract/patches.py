"""Every change that the engine adapter makes to other packages' code; `cpu_patches`, `worker_patches`: the rest."""

from __future__ import annotations

from ddtree_sglang.contract.attention_patches import (
    LATENT_PATCHES,
    SINK_PATCHES,
    SLOT_PATCHES,
    WINDOW_PATCHES,
    WRAPPER_PATCHES,
)
from ddtree_sglang.contract.entry_patches import (
    ADMISSION_PATCHES,
    ENTRY_PATCHES,
    REQUEST_PATCHES,
    RESPONSES_PATCHES,
    TOKENIZER_PATCHES,
)
from ddtree_sglang.contract.grammar_patches import GRAMMAR_PATCHES, GRAMMAR_STATE_PATCHES
from ddtree_sglang.contract.group_patches import GROUP_PATCHES
from ddtree_sglang.contract.object_patches import OBJECT_PATCHES
from ddtree_sglang.contract.patch import Patch
from ddtree_sglang.contract.state_patches import (
    SHORT_CONVOLUTION_PATCHES,
    STATE_KERNEL_PATCHES,
    STATE_MEMORY_PATCHES,
)

_ARGS = "sglang.srt.server_args.ServerArgs"
_RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"
_HOOKS = "ddtree_sglang.engine.hooks"
_FLAGS = "ddtree_sglang.engine.cli_flags"
_RUN_ENDS = "ddtree_sglang.engine.run_ends"
_REQ = "sglang.srt.managers.schedule_batch.Req"
_RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
_LIMIT = "ddtree_sglang.engine.admission.context_limit"

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
    *STATE_KERNEL_PATCHES,
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
    *WRAPPER_PATCHES,
    *SINK_PATCHES,
    *SLOT_PATCHES,
    *LATENT_PATCHES,
    *SHORT_CONVOLUTION_PATCHES,
    *GROUP_PATCHES,
    *ADMISSION_PATCHES,
    *ENTRY_PATCHES,
    *TOKENIZER_PATCHES,
    *RESPONSES_PATCHES,
    *REQUEST_PATCHES,
    *GRAMMAR_STATE_PATCHES,
    *OBJECT_PATCHES,
)
