"""What rounds under DP attention set on SGLang's objects."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

GROUP_PATCHES = (
    Patch(
        "sglang.srt.managers.schedule_batch.ScheduleBatch",
        "object",
        "ddtree_sglang.engine.stages.attention_ranks:prepare_verify",
        "no graph beside an idle group; lengths are put back",
        "can_run_decode_cuda_graph seq_lens_cpu seq_lens_sum",
    ),
    Patch(
        "sglang.srt.speculative.eagle_info.EagleVerifyInput",
        "object",
        "ddtree_sglang.engine.stages.attention_ranks:prepare_verify",
        "cells and links of the requests that a batch is padded with",
        "custom_mask retrieve_next_sibling retrieve_next_token",
    ),
    Patch(
        "sglang.srt.managers.schedule_batch.ScheduleBatch",
        "object",
        "ddtree_sglang.engine.stages.attention_ranks:_join_verify",
        "an idle group takes part in a verify of no node, without a graph",
        "can_run_decode_cuda_graph spec_info",
    ),
    Patch(
        "sglang.srt.model_executor.model_runner.ModelRunner",
        "object",
        "ddtree_sglang.engine.stages.attention_ranks:_no_attention",
        "nothing is attended in an idle group",
        "attn_backend",
    ),
)
