"""The list: target family x attention backend x feature. How to add a row: the folder's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.families import FAMILIES

ALL = "*"
BACKENDS = ("ddtree_cpu", "triton", "flashinfer", "fa3")
"""`ddtree_cpu`: the CPU platform. The others run in the device lane."""
CPU, TRITON, FLASHINFER, FA3 = BACKENDS
ON_A_GPU = (TRITON, FLASHINFER, FA3)
GREEDY = "greedy answers"
POLICY = "policy"
"""Among arguments: of DDTREE's configuration."""

REQUESTS = (
    GREEDY,
    "sampling",
    "seeds (deterministic inference)",
    "logit bias",
    "penalties",
    "minimum length",
    "logit processors",
    "thinking budgets",
    "grammars",
    "ends",
    "streams",
    "log-probabilities",
    "hidden states",
    "routed experts",
    "sampling masks",
    "a smaller tree for one request",
    "images",
)
ENGINE = (
    "requests that join and leave a batch",
    "aborted requests",
    "prefix cache",
    "chunked prefill",
    "mixed chunks",
    "pages of several tokens",
    "priorities",
    "retraction",
    "sessions",
    "the end of the context",
    "budget that follows the load",
    "budget that follows measured costs",
    "tensor parallelism",
    "LoRA adapters",
    "captured graphs and overlap",
    "target of fp8 or int8 weights",
    "drafter of fp8 or int8 weights",
    "other quantizations",
    "pipeline parallelism",
    "DP attention",
    "prefill/decode disaggregation",
    "hierarchical cache",
    "storage behind the hierarchical cache",
    "other stores of prefixes",
    "drafter's window",
    "drafter with sliding layers",
    "two-batch overlap",
    "watermarks",
    "grammars of outlines",
    "captured indexer",
    "acceptance thresholds",
    "rejection sampling",
)
FEATURES = (*REQUESTS, *ENGINE)


@dataclass(frozen=True)
class Shown:
    """A test shows it.

    Attributes:
        test: its pytest id.
        note: what a reader has to know; that a scene is slow, its catalogue says (`document.note_of`).
    """

    test: str
    note: str = ""


@dataclass(frozen=True)
class Refused:
    """Admission refuses it.

    Attributes:
        why: words of the message.
        given: server arguments that are refused, besides a pair and a backend; those of a feature of `ASKED` are there.
        by_sglang: SGLang's own check comes first, with DDTREE or without.
        needed: name of the lane's scene that goes wrong without the refusal, or id of a test of what SGLang, or what a
            round would do then; empty where neither was made.
    """

    why: str
    given: Mapping[str, Any] = field(default_factory=dict, hash=False)
    by_sglang: bool = False
    needed: str = ""


Cell = Shown | Refused


@dataclass(frozen=True)
class Row:
    """A cell of these names; `ALL` stands for every family, backend or feature."""

    family: str
    backend: str
    feature: str
    cell: Cell

    def covers(self, family: str, backend: str, feature: str) -> bool:
        """Whether the row speaks of these."""
        names = ((self.family, family), (self.backend, backend), (self.feature, feature))
        return all(mine in (ALL, name) for mine, name in names)


def shown(test: str, note: str = "") -> Shown:
    """By a test of this id."""
    return Shown(test, note)


def scene(name: str, note: str = "") -> Shown:
    """By a scene of the device lane, of this name in its catalogue."""
    return Shown(f"tests/device_lane/test_scenes.py::test_scene[{name}]", note)


def _e2e(name: str) -> Shown:
    return Shown(f"tests/e2e/{name}")


def _quantized(pair: str) -> Shown:
    return _e2e(f"test_quantized_pairs.py::test_answers_and_rounds_are_those_of_the_stored_values[{pair}]")


_ON_A_CPU = "tests/cpu_platform/test_refused_targets.py::"
_COMMITS = f"{_ON_A_CPU}test_sglang_commits_no_accepted_nodes_state_on_a_cpu"
RECURRENT_HERE = Refused(
    "is served where SGLang launches Triton kernels, which a tree of states needs", needed=f"{_COMMITS}[states]"
)
CONVOLUTIONS_HERE = replace(RECURRENT_HERE, needed=f"{_COMMITS}[convolutions]")
_LIFTED = "tests/engine/admission/test_refusals_lifted.py::"
LATENT = Refused("honours a tree's mask with latent attention")
_LATENT_NEEDED = {
    "ddtree_cpu": f"{_ON_A_CPU}test_latent_rows_are_written_by_no_backend_of_a_cpu",
    "flashinfer": f"{_LIFTED}test_sglang_plans_latent_attention_on_flashinfer_without_a_trees_mask[eager]",
}

CHUNKS = Refused("does not support attention in chunks")
_ACTIVATION = "tests/cpu_platform/test_activation.py::"
_NO_EXPERTS = (
    "tests/engine/admission/test_refused_classes.py::"
    "test_sglang_loads_no_expert_of_llama_4_into_the_class_that_hands_states_out"
)
_ON_FA3 = "tests/device_lane/test_backends_on_references.py::"
_NOT_HANDED_OUT = f"{_LIFTED}test_sglang_ends_over_a_class_that_hands_no_states_to_a_drafter"
_GROUPS = "tests/engine/admission/test_attention_groups.py::"
_SHARDED = f"{_GROUPS}test_sglang_shards_some_classes_heads_over_the_ranks_of_all_groups"
_LEFT_EARLY = f"{_GROUPS}test_sglangs_nemotron_h_leaves_a_layer_of_an_idle_group_before_its_end[True]"
_WIDTHS = "tests/kernels/test_recurrent_trees.py::test_mamba_keeps_states_where_a_larger_rounds_are_not_looked_for[13]"
_HOST_CACHE = "tests/engine/admission/test_host_cache.py::"
_NO_READER = "tests/contract/test_unread_flags.py::test_no_round_calls_any_of_them"
NOT_BY_SGLANG = Refused("requires one of", by_sglang=True)

REFUSED_TARGETS = (
    Row("Qwen3.5 / 3.6", CPU, ALL, RECURRENT_HERE),
    Row("Qwen3.5 / 3.6 MoE", CPU, ALL, RECURRENT_HERE),
    Row("Qwen3-Next", CPU, ALL, RECURRENT_HERE),
    Row("LFM2", CPU, ALL, CONVOLUTIONS_HERE),
    Row("LFM2-MoE", CPU, ALL, CONVOLUTIONS_HERE),
    Row("LFM2-MoE", TRITON, ALL, Refused("the first layer might not be an attention layer", by_sglang=True)),
    Row("LFM2", TRITON, ALL, Refused("the first layer might not be an attention layer", by_sglang=True)),
    Row("Nemotron-H", CPU, ALL, RECURRENT_HERE),
    Row(
        "Kimi-Linear",
        ALL,
        ALL,
        Refused(
            "whose class in SGLang hands its layers' states to no drafter",
            needed=f"{_NOT_HANDED_OUT}[kimi_linear:KimiLinearForCausalLM]",
        ),
    ),
    *(
        Row(family, backend, ALL, replace(LATENT, needed=_LATENT_NEEDED[backend]))
        for family in ("DeepSeek / Kimi-K2", "Kimi-K2.5", "Kimi-K3")
        for backend in (CPU, FLASHINFER)
        if (family, backend) != ("DeepSeek / Kimi-K2", FLASHINFER)
    ),
    Row("DeepSeek / Kimi-K2", FLASHINFER, ALL, replace(LATENT, needed="refused-latent-flashinfer")),
    *(Row("Llama 4", backend, ALL, replace(CHUNKS, needed=_NO_EXPERTS)) for backend in (CPU, TRITON)),
    Row("Llama 4", FA3, ALL, replace(CHUNKS, needed=f"{_ON_FA3}test_fa3_keeps_a_tree_in_no_chunk_of_its_prompt[True]")),
    Row("Llama 4", FLASHINFER, ALL, Refused("is required for Llama4", by_sglang=True)),
    Row(
        "Gemma 3",
        ALL,
        ALL,
        Refused("hands none to a drafter", needed=f"{_NOT_HANDED_OUT}[gemma3_causal:Gemma3ForCausalLM]"),
    ),
    *(
        Row("Gemma 4", backend, ALL, Refused("Gemma4 only supports", by_sglang=True))
        for backend in (CPU, FLASHINFER, FA3)
    ),
    *(Row("gpt-oss", backend, ALL, NOT_BY_SGLANG) for backend in (CPU, FLASHINFER)),
)

ASKED: dict[str, dict[str, Any]] = {
    "seeds (deterministic inference)": {"enable_deterministic_inference": True},
    "logit processors": {"enable_custom_logit_processor": True},
    "hidden states": {"enable_return_hidden_states": True},
    "routed experts": {"enable_return_routed_experts": True},
    "mixed chunks": {"enable_mixed_chunk": True},
    "pages of several tokens": {"page_size": 16},
    "priorities": {"enable_priority_scheduling": True},
    "budget that follows the load": {POLICY: "load"},
    "budget that follows measured costs": {POLICY: "adaptive"},
    "tensor parallelism": {"tp_size": 2},
    "LoRA adapters": {"enable_lora": True, "max_lora_rank": 4, "lora_target_modules": ["q_proj"]},
    "DP attention": {"attn_dp_size": 2, "tp_size": 2, "enable_dp_lm_head": True},
    "prefill/decode disaggregation": {"disaggregation_mode": "decode", "disable_overlap_schedule": True},
    "hierarchical cache": {"enable_hierarchical_cache": True},
    "storage behind the hierarchical cache": {"enable_hierarchical_cache": True, "hicache_storage_backend": "file"},
    "drafter's window": {"speculative_draft_window_size": 16},
    "pipeline parallelism": {"pp_size": 2},
}
"""What a server is asked for a feature by; each cell of these is compared with what admission says."""


def _refused(
    families: Iterable[str], feature: str, why: str, backends: tuple[str, ...] = ON_A_GPU, needed: str = ""
) -> tuple[Row, ...]:
    """Where these families are served, but for this."""
    targets = [row for row in REFUSED_TARGETS if row.feature == ALL]
    return tuple(
        Row(family, backend, feature, Refused(why, needed=needed))
        for family in families
        for backend in backends
        if not any(row.covers(family, backend, ALL) for row in targets)
    )


RECURRENT = ("Qwen3.5 / 3.6", "Qwen3.5 / 3.6 MoE", "Qwen3-Next", "LFM2", "LFM2-MoE", "Nemotron-H", "Kimi-K3")
PAGED_PREFILLS = {"SGLANG_FLASHINFER_USE_PAGED": "1"}
"""What a server on FlashInfer needs in its environment for a target with windows."""
LATENT_FAMILIES = ("DeepSeek / Kimi-K2", "Kimi-K2.5", "Kimi-K3")
_CLASSES = "has been run with DeepseekV3ForCausalLM, GptOssForCausalLM"
_PAGED = "with `SGLANG_FLASHINFER_USE_PAGED=1`"
_ONE_NUMBER = "with a fixed number of nodes"
_NO_ADAPTERS = "has not been shown with adapters"

REFUSED_FEATURES = (
    *(
        Row(
            ALL,
            backend,
            "pipeline parallelism",
            Refused(
                "needs all target layers on one pipeline stage",
                needed=f"{_LIFTED}test_sglang_starts_no_pipeline_with_another_algorithm_than_eagle",
            ),
        )
        for backend in ON_A_GPU
    ),
    Row(
        ALL,
        CPU,
        "pipeline parallelism",
        Refused("must be 1 on the CPU platform", needed=f"{_LIFTED}test_nor_does_sglang_on_the_cpu_platform"),
    ),
    Row(
        ALL,
        CPU,
        "seeds (deterministic inference)",
        Refused("needs a GPU", needed=f"{_ACTIVATION}test_sglangs_deterministic_inference_takes_no_backend_of_a_cpu"),
    ),
    Row(
        ALL,
        CPU,
        "DP attention",
        Refused("needs a GPU", needed=f"{_ACTIVATION}test_sglang_gathers_the_tokens_of_groups_by_a_kernel"),
    ),
    *_refused(("LFM2",), "DP attention", _CLASSES, needed=f"{_SHARDED}[lfm2]"),
    *_refused(("LFM2-MoE",), "DP attention", _CLASSES, needed=f"{_SHARDED}[lfm2_moe]"),
    *_refused(("Nemotron-H",), "DP attention", _CLASSES, (TRITON, FLASHINFER), _LEFT_EARLY),
    *_refused(("Nemotron-H",), "DP attention", _CLASSES, (FA3,), "refused-groups-mamba"),
    *_refused(("Gemma 4",), "DP attention", _CLASSES, needed=f"{_SHARDED}[gemma4]"),
    *_refused(("Llama",), "DP attention", _CLASSES, (TRITON, FLASHINFER), f"{_SHARDED}[llama]"),
    *_refused(("Llama",), "DP attention", _CLASSES, (FA3,), "refused-groups-llama"),
    Row(
        ALL,
        CPU,
        "prefill/decode disaggregation",
        Refused(
            "has not been run without a GPU",
            needed=f"{_ACTIVATION}test_sglangs_decoding_server_keeps_retracted_requests_in_memory_that_a_driver_registers",
        ),
    ),
    Row(
        ALL,
        CPU,
        "hierarchical cache",
        Refused(
            "needs a GPU",
            needed=f"{_ACTIVATION}test_sglangs_copies_of_a_cache_on_the_host_are_registered_with_a_driver",
        ),
    ),
    *_refused(
        ("Kimi-K3",),
        "LoRA adapters",
        _NO_ADAPTERS,
        needed="tests/engine/admission/test_recurrent_checks.py::"
        "test_sglangs_layer_of_adapters_leaves_kimi_k3s_output_gate_out[True]",
    ),
    *_refused(
        ("Qwen3-Next",),
        "LoRA adapters",
        _NO_ADAPTERS,
        needed="tests/engine/admission/test_recurrent_checks.py::"
        "test_sglangs_buffers_of_adapters_do_not_fit_a_gated_q_proj[qwen3_next-Qwen3NextForCausalLM-False]",
    ),
    *(
        row
        for family, backend, needed in (
            ("LFM2", FLASHINFER, "refused-mixed-convolutions-flashinfer"),
            ("LFM2", FA3, "refused-mixed-convolutions"),
            ("LFM2-MoE", FLASHINFER, "refused-mixed-convolutions-experts-flashinfer"),
            ("LFM2-MoE", FA3, "refused-mixed-convolutions-experts"),
        )
        for row in _refused((family,), "mixed chunks", "keeps wrong inputs of convolutions", (backend,), needed)
    ),
    *_refused(("Nemotron-H",), "budget that follows the load", _ONE_NUMBER, (TRITON, FLASHINFER), _WIDTHS),
    *_refused(("Nemotron-H",), "budget that follows the load", _ONE_NUMBER, (FA3,), "refused-mamba-widths"),
    *_refused(("Nemotron-H",), "budget that follows measured costs", _ONE_NUMBER, needed=_WIDTHS),
    *(
        Row(family, backend, "pages of several tokens", Refused("only supports page_size=1", by_sglang=True))
        for family in ("LFM2", "LFM2-MoE")
        for backend in (FLASHINFER, FA3)
    ),
    Row(
        ALL,
        ALL,
        "other stores of prefixes",
        Refused(
            "needs a prefix cache that brings back the drafter's keys",
            {"enable_flexkv": True},
            needed=f"{_HOST_CACHE}test_sglang_tells_no_other_store_of_prefixes_of_a_drafters_keys[False]",
        ),
    ),
    Row(
        ALL,
        CPU,
        "storage behind the hierarchical cache",
        Refused(
            "needs a GPU",
            needed=f"{_ACTIVATION}test_sglangs_copies_of_a_cache_on_the_host_are_registered_with_a_driver",
        ),
    ),
    *_refused(
        LATENT_FAMILIES,
        "storage behind the hierarchical cache",
        "beside latent attention",
        needed=f"{_HOST_CACHE}test_sglang_stores_a_drafters_keys_with_the_targets_or_not_at_all[True-False]",
    ),
    Row(
        ALL,
        ALL,
        "two-batch overlap",
        Refused(
            "does not support two-batch overlap",
            {"enable_two_batch_overlap": True},
            needed=f"{_LIFTED}test_sglang_hands_no_states_out_where_two_batches_overlap[True]",
        ),
    ),
    Row(
        ALL,
        ALL,
        "watermarks",
        Refused(
            "marks no tree's nodes",
            {"enable_watermark": True},
            needed=f"{_LIFTED}test_sglang_marks_no_tokens_of_another_algorithm_than_its_own",
        ),
    ),
    Row(
        ALL,
        ALL,
        "grammars of outlines",
        Refused("which outlines cannot", {"grammar_backend": "outlines"}, needed="refused-outlines"),
    ),
    Row(
        ALL,
        ALL,
        "captured indexer",
        Refused(
            "serves no target with an indexer",
            {"enable_return_indexer_topk": True},
            needed="tests/engine/admission/test_server_args.py::"
            "test_sglang_captures_nothing_of_an_indexer_that_a_target_has_not",
        ),
    ),
    Row(
        ALL,
        ALL,
        "acceptance thresholds",
        Refused("is lossless", {"speculative_accept_threshold_single": 0.5}, needed=_NO_READER),
    ),
    Row(
        ALL,
        ALL,
        "rejection sampling",
        Refused("samples from the target alone", {"speculative_use_rejection_sampling": True}, needed=_NO_READER),
    ),
    Row(
        ALL,
        CPU,
        "other quantizations",
        Refused(
            "serves plain weights and those of fp8 and w8a8_int8",
            {"quantization": "awq"},
            needed=f"{_ACTIVATION}test_sglangs_product_of_awq_weights_is_a_kernel_of_gpus",
        ),
    ),
)

ON_THE_CPU = (
    Row("Llama", CPU, GREEDY, _e2e("test_lossless.py::test_one_at_a_time")),
    Row("Llama", CPU, "sampling", _e2e("test_sampled_distribution.py::test_first_three_tokens_follow_the_targets_law")),
    Row("Llama", CPU, "logit bias", _e2e("test_requests.py::test_logit_bias_is_honoured_at_every_node")),
    Row("Llama", CPU, "penalties", _e2e("test_penalties.py::test_greedy_answers_are_plain_decodings")),
    Row("Llama", CPU, "minimum length", _e2e("test_penalties.py::test_a_minimum_length_holds_inside_a_run_of_tokens")),
    Row("Llama", CPU, "logit processors", _e2e("test_logit_processors.py::test_a_processor_that_keeps_what_it_saw")),
    Row("Llama", CPU, "thinking budgets", _e2e("test_thinking_budget.py::test_a_thinking_budget_ends_the_thoughts")),
    Row("Llama", CPU, "grammars", _e2e("test_grammars.py::test_in_one_batch")),
    Row("Llama", CPU, "ends", _e2e("test_ends.py::test_ends_of_many_shapes_are_plain_decodings[False]")),
    Row("Llama", CPU, "streams", _e2e("test_streams.py::test_every_token_is_a_chunk[The capital of France is]")),
    Row("Llama", CPU, "log-probabilities", _e2e("test_requests.py::test_logprobs_are_the_targets")),
    Row("Llama", CPU, "sampling masks", _e2e("test_sampling_masks.py::test_drawn_tokens_supports_are_plain_decodings")),
    Row(
        "Llama",
        CPU,
        "a smaller tree for one request",
        _e2e("test_ends.py::test_a_request_may_ask_for_a_smaller_tree_or_none_in_a_batch_with_others"),
    ),
    Row("Llama", CPU, "requests that join and leave a batch", _e2e("test_lossless.py::test_eight_at_once")),
    Row(
        "Llama",
        CPU,
        "aborted requests",
        _e2e("test_kv_accounting.py::test_two_hundred_aborted_requests_leave_every_slot_free"),
    ),
    Row("Llama", CPU, "prefix cache", _e2e("test_reused_context.py::test_prefix_hit_in_the_middle_of_a_page")),
    Row(
        "Llama",
        CPU,
        "retraction",
        _e2e("test_reused_context.py::test_a_request_that_was_retracted_goes_on_as_if_it_had_not_been[greedy]"),
    ),
    Row("Llama", CPU, "chunked prefill", _e2e("test_requests.py::test_prompt_longer_than_a_prefill_chunk")),
    Row("Llama", CPU, "mixed chunks", _e2e("test_reused_context.py::test_running_requests_take_part_in_chunks")),
    Row("Llama", CPU, "pages of several tokens", _e2e("test_reused_context.py::test_two_answers_to_one_prompt")),
    Row("Llama", CPU, "priorities", _e2e("test_reused_context.py::test_preemption_by_priority")),
    Row("Llama", CPU, "sessions", _e2e("test_reused_context.py::test_turns_of_a_session[False]")),
    Row(
        "Llama",
        CPU,
        "the end of the context",
        _e2e("test_reused_context.py::test_neighbours_at_the_end_of_the_context"),
    ),
    Row(
        "Llama",
        CPU,
        "budget that follows the load",
        _e2e("test_budget_policy.py::test_budget_follows_the_batch_and_tokens_do_not"),
    ),
    Row(
        "Llama",
        CPU,
        "budget that follows measured costs",
        _e2e("test_budget_policy.py::test_without_a_policy_measured_costs_choose_the_budget_and_tokens_stay"),
    ),
    Row("Llama", CPU, "tensor parallelism", _e2e("test_tensor_parallel.py::test_three_ranks_of_the_embedded_model")),
    Row("Qwen3", CPU, GREEDY, _e2e("test_plain_torch_reference.py::test_rounds_of_a_tiny_pair[DDTREE-4]")),
    Row("Qwen3", CPU, "tensor parallelism", _e2e("test_tensor_parallel.py::test_two_ranks_of_a_tiny_qwen3")),
    Row("Qwen3", CPU, "LoRA adapters", _e2e("test_adapters_and_states.py::test_base_model_and_adapters_in_one_batch")),
    Row(
        "Qwen3",
        CPU,
        "hidden states",
        _e2e("test_adapters_and_states.py::test_hidden_states_end_where_the_answer_does"),
    ),
    Row("Qwen3", CPU, "target of fp8 or int8 weights", _quantized("fp8-fp8-blocks")),
    Row("Qwen3", CPU, "target of fp8 or int8 weights", _quantized("w8a8_int8-fp8")),
    Row("Qwen3", CPU, "drafter of fp8 or int8 weights", _quantized("fp8-fp8-blocks")),
    Row("Qwen3", CPU, "drafter of fp8 or int8 weights", _quantized("w8a8_int8-fp8")),
    Row("Qwen3", CPU, "drafter's window", _e2e("test_plain_torch_reference.py::test_rounds_of_a_tiny_pair[window]")),
    Row(
        "Qwen3",
        CPU,
        "drafter with sliding layers",
        _e2e("test_plain_torch_reference.py::test_rounds_of_a_tiny_pair[window]"),
    ),
    Row("Qwen3-MoE", CPU, GREEDY, _e2e("test_routed_experts.py::test_experts_are_plain_decodings[False]")),
    Row("Qwen3-MoE", CPU, "prefix cache", _e2e("test_routed_experts.py::test_experts_are_plain_decodings[True]")),
    Row("Qwen3-MoE", CPU, "routed experts", _e2e("test_routed_experts.py::test_experts_are_plain_decodings[False]")),
    *(
        Row("Qwen3-VL MoE", CPU, feature, _e2e("test_images.py::test_answers_behind_pictures_are_plain_decodings"))
        for feature in (GREEDY, "images", "prefix cache")
    ),
)

OF_EVERY_KIND = (
    "sampling",
    "logit bias",
    "penalties",
    "minimum length",
    "logit processors",
    "thinking budgets",
    "grammars",
    "streams",
    "log-probabilities",
    "hidden states",
    "sampling masks",
)
"""What tests/device_lane/request_waves.py asks for in one batch."""

IN_THE_LANE = (
    Row("Qwen3", TRITON, GREEDY, scene("triton")),
    Row("Qwen3", TRITON, "captured graphs and overlap", scene("triton")),
    Row("Qwen3", TRITON, "requests that join and leave a batch", scene("triton")),
    Row("Qwen3", TRITON, "prefix cache", scene("triton")),
    Row("Qwen3", TRITON, "chunked prefill", scene("triton")),
    Row("Qwen3", TRITON, "pages of several tokens", scene("triton")),
    Row("Qwen3", TRITON, "aborted requests", scene("triton-3")),
    Row("Qwen3", TRITON, "budget that follows the load", scene("triton-widths")),
    Row("Qwen3", TRITON, "LoRA adapters", scene("adapters")),
    *(
        Row("Qwen3", backend, feature, scene(name))
        for backend, name in ((TRITON, "triton-3"), (FA3, "processors"), (FLASHINFER, "flashinfer"))
        for feature in OF_EVERY_KIND
        if (backend, feature) != (FLASHINFER, "logit processors")
    ),
    Row("Qwen3", FA3, "target of fp8 or int8 weights", scene("fp8", "fp8")),
    Row("Qwen3", FA3, "target of fp8 or int8 weights", scene("int8", "int8")),
    Row("Qwen3", TRITON, "target of fp8 or int8 weights", scene("fp8-blocks", "fp8 in blocks")),
    Row("Qwen3", FA3, "drafter of fp8 or int8 weights", scene("fp8", "fp8")),
    Row("Qwen3", TRITON, "drafter of fp8 or int8 weights", scene("fp8-blocks", "int8")),
    Row("Qwen3", FA3, "other quantizations", scene("awq", "AWQ")),
    Row("Qwen3", TRITON, "other quantizations", scene("gptq", "GPTQ")),
    Row("Llama", TRITON, "log-probabilities", scene("triton-deterministic")),
    Row("Llama", FA3, "log-probabilities", scene("fa3-deterministic")),
    Row("Llama", TRITON, GREEDY, scene("triton-deterministic")),
    Row("Llama", TRITON, "captured graphs and overlap", scene("triton-deterministic")),
    Row("Llama", TRITON, "seeds (deterministic inference)", scene("triton-deterministic")),
    Row("Qwen3", FLASHINFER, GREEDY, scene("flashinfer")),
    Row("Qwen3", FLASHINFER, "captured graphs and overlap", scene("flashinfer")),
    Row("Qwen3", FLASHINFER, "requests that join and leave a batch", scene("flashinfer")),
    Row("Qwen3", FLASHINFER, "prefix cache", scene("flashinfer")),
    Row("Qwen3", FLASHINFER, "chunked prefill", scene("flashinfer")),
    Row("Qwen3", FLASHINFER, "pages of several tokens", scene("flashinfer")),
    Row("Qwen3", FLASHINFER, "ends", scene("flashinfer")),
    Row("Qwen3", FLASHINFER, "aborted requests", scene("flashinfer")),
    Row("Qwen3", FA3, GREEDY, scene("fa3")),
    Row("Qwen3", FA3, "captured graphs and overlap", scene("fa3")),
    Row("Qwen3", FA3, "penalties", scene("penalties")),
    Row("Qwen3", FA3, "minimum length", scene("penalties")),
    Row("Qwen3", FA3, "grammars", scene("grammars")),
    Row("Qwen3", FA3, "ends", scene("fa3")),
    Row("Qwen3", FA3, "requests that join and leave a batch", scene("fa3")),
    Row("Qwen3", FA3, "aborted requests", scene("fa3")),
    Row("Qwen3", FA3, "prefix cache", scene("fa3")),
    Row("Qwen3", FA3, "chunked prefill", scene("fa3")),
    Row("Qwen3", FA3, "mixed chunks", scene("fa3-pages-mixed")),
    Row("Qwen3", FA3, "pages of several tokens", scene("fa3-pages")),
    Row("Qwen3", FA3, "sessions", scene("fa3-pages")),
    Row("Qwen3", FA3, "retraction", scene("retraction")),
    Row("Qwen3", FA3, "the end of the context", scene("context-end")),
    Row("Qwen3", FA3, "budget that follows measured costs", scene("adaptive")),
    Row("Qwen3", FA3, "tensor parallelism", scene("two-ranks")),
    Row("Qwen3", FA3, "LoRA adapters", scene("adapters-triton")),
    Row("Qwen3", FA3, "prefill/decode disaggregation", scene("split")),
    Row("Qwen3", TRITON, "prefill/decode disaggregation", scene("split-penalties")),
    Row("Qwen3", TRITON, "prefill/decode disaggregation", scene("split-ends")),
    Row("Qwen3", FLASHINFER, "prefill/decode disaggregation", scene("split-flashinfer")),
    Row("DeepSeek / Kimi-K2", TRITON, "prefill/decode disaggregation", scene("split-latent")),
    Row("gpt-oss", TRITON, "prefill/decode disaggregation", scene("split-windows")),
    *(
        Row(target, FA3, "prefill/decode disaggregation", scene(f"split-groups{end}", "DP attention on both"))
        for target, end in (
            ("Qwen3-MoE", ""),
            ("Mellum", "-mellum"),
            ("Kimi-K3", "-delta-attention"),
            ("Qwen3-VL MoE", "-images"),
        )
    ),
    Row("gpt-oss", FA3, "prefill/decode disaggregation", scene("split-windows-retraction")),
    Row("Gemma 4", TRITON, "prefill/decode disaggregation", scene("split-windows-gemma")),
    Row("Qwen3.5 / 3.6", FA3, "prefill/decode disaggregation", scene("split-gated-delta")),
    Row("Qwen3.5 / 3.6", FA3, "prefill/decode disaggregation", scene("split-gated-delta-retraction")),
    Row("Qwen3.5 / 3.6", TRITON, "prefill/decode disaggregation", scene("split-gated-delta-tensors")),
    Row("Nemotron-H", FA3, "prefill/decode disaggregation", scene("split-mamba")),
    Row("Nemotron-H", TRITON, "prefill/decode disaggregation", scene("split-mamba-retraction")),
    Row("LFM2", FA3, "prefill/decode disaggregation", scene("split-short-convolution")),
    Row("Qwen3", FA3, "hierarchical cache", scene("host-cache")),
    Row("Qwen3", FA3, "storage behind the hierarchical cache", scene("storage")),
    Row("gpt-oss", TRITON, "storage behind the hierarchical cache", scene("storage-windows")),
    Row("Nemotron-H", TRITON, "storage behind the hierarchical cache", scene("mamba-storage")),
    Row("Qwen3.5 / 3.6", FA3, "storage behind the hierarchical cache", scene("gated-delta-storage")),
    Row("Qwen3.5 / 3.6", FA3, "hierarchical cache", scene("gated-delta-host-cache")),
    Row("Nemotron-H", TRITON, "hierarchical cache", scene("mamba-host-cache")),
    Row("LFM2", FA3, "hierarchical cache", scene("short-convolution-host-cache")),
    Row("LFM2", FLASHINFER, "storage behind the hierarchical cache", scene("short-convolution-storage")),
    Row("LFM2-MoE", FLASHINFER, "hierarchical cache", scene("short-convolution-experts-host-cache")),
    Row("Qwen3", TRITON, "hierarchical cache", scene("host-cache-window")),
    Row("Qwen3", FA3, "drafter's window", scene("draft-window")),
    Row("Qwen3", TRITON, "drafter's window", scene("draft-window-retraction")),
    Row("Qwen3", TRITON, "retraction", scene("draft-window-retraction")),
    Row("Qwen3", FLASHINFER, "drafter's window", scene("draft-window-flashinfer")),
    Row("Qwen3", FA3, "drafter with sliding layers", scene("host-cache")),
    Row("Qwen3", TRITON, "drafter with sliding layers", scene("sliding-drafter-triton")),
    Row("Llama", FA3, GREEDY, scene("late")),
    Row("Llama", FA3, "captured graphs and overlap", scene("late")),
    Row("Llama", FA3, "seeds (deterministic inference)", scene("fa3-deterministic")),
    Row("Llama", FA3, "ends", scene("fa3-deterministic")),
    Row("Llama", FA3, "requests that join and leave a batch", scene("late")),
    Row("Llama", FA3, "hidden states", scene("late")),
    Row("Llama", FA3, "aborted requests", scene("late")),
    *(
        Row("Qwen3-VL MoE", backend, feature, scene(f"images-{backend}"))
        for backend in (FLASHINFER, TRITON, FA3)
        for feature in (
            GREEDY,
            "images",
            "prefix cache",
            "a smaller tree for one request",
            "captured graphs and overlap",
        )
    ),
    Row("Qwen3-MoE", FA3, GREEDY, scene("experts")),
    Row("Qwen3-MoE", FA3, "captured graphs and overlap", scene("experts")),
    Row("Qwen3-MoE", FA3, "routed experts", scene("experts")),
    Row("Qwen3-MoE", FA3, "DP attention", scene("attention-groups")),
    Row("Qwen3", FA3, "DP attention", scene("attention-groups-eager")),
    Row("Qwen3", TRITON, "DP attention", scene("attention-groups-triton")),
    Row("Qwen3", FLASHINFER, "DP attention", scene("attention-groups-flashinfer")),
    Row("DeepSeek / Kimi-K2", FA3, "DP attention", scene("attention-groups-latent")),
    Row("Kimi-K2.5", TRITON, "DP attention", scene("attention-groups-kimi")),
    Row("gpt-oss", TRITON, "DP attention", scene("attention-groups-windows")),
    Row("gpt-oss", FA3, "DP attention", scene("attention-groups-windows-retraction")),
    Row("Qwen3.5 / 3.6", TRITON, "DP attention", scene("attention-groups-gated-delta")),
    Row("Qwen3.5 / 3.6", FA3, "DP attention", scene("attention-groups-gated-delta-graphs")),
    Row("Qwen3.5 / 3.6", FA3, "DP attention", scene("attention-groups-gated-delta-widths")),
    Row("Qwen3.5 / 3.6 MoE", FA3, "DP attention", scene("attention-groups-qwen3.5-moe")),
    Row("Qwen3-Next", TRITON, "DP attention", scene("attention-groups-qwen3-next")),
    Row("Qwen3-MoE", TRITON, "DP attention", scene("attention-groups-of-two-widths", "groups of two ranks")),
    Row("Mellum", FA3, "DP attention", scene("attention-groups-mellum-retraction")),
    Row("Mellum", TRITON, "DP attention", scene("attention-groups-mellum-triton")),
    Row("Mellum", FLASHINFER, "DP attention", scene("attention-groups-mellum-flashinfer", _PAGED)),
    Row("Kimi-K3", FA3, "DP attention", scene("attention-groups-delta-attention-graphs")),
    Row("Kimi-K3", TRITON, "DP attention", scene("attention-groups-delta-attention-triton")),
    *(
        Row("Qwen3-VL MoE", backend, "DP attention", scene(f"attention-groups-images{end}", "with images"))
        for backend, end in ((FA3, ""), (TRITON, "-triton"), (FLASHINFER, "-flashinfer"))
    ),
    Row("gpt-oss", TRITON, GREEDY, scene("windows-triton")),
    Row("gpt-oss", TRITON, "prefix cache", scene("windows-triton")),
    Row("gpt-oss", TRITON, "captured graphs and overlap", scene("windows-triton")),
    Row("gpt-oss", FA3, GREEDY, scene("gpt-oss-20b")),
    Row("gpt-oss", FA3, "prefix cache", scene("gpt-oss-20b")),
    Row("gpt-oss", FA3, "a smaller tree for one request", scene("gpt-oss-20b")),
    Row("gpt-oss", FA3, "captured graphs and overlap", scene("gpt-oss-20b")),
    Row("gpt-oss", TRITON, "seeds (deterministic inference)", scene("windows-deterministic")),
    Row("gpt-oss", TRITON, "chunked prefill", scene("windows-triton-16")),
    Row("gpt-oss", TRITON, "pages of several tokens", scene("windows-triton-16")),
    Row("gpt-oss", TRITON, "requests that join and leave a batch", scene("windows-triton-16")),
    Row("gpt-oss", TRITON, "retraction", scene("windows-retraction")),
    Row("gpt-oss", FA3, "pages of several tokens", scene("windows-fa3-pages")),
    Row("gpt-oss", FA3, "chunked prefill", scene("windows-fa3-pages-16")),
    Row("gpt-oss", FA3, "requests that join and leave a batch", scene("windows-fa3-pages-16")),
    Row("gpt-oss", FA3, "retraction", scene("windows-fa3-pages-retraction")),
    Row("gpt-oss", FA3, "seeds (deterministic inference)", scene("windows-fa3-pages-deterministic")),
    *(
        Row("Mellum", FA3, feature, scene("windows-fa3-pages-mellum"))
        for feature in (GREEDY, "prefix cache", "captured graphs and overlap", "pages of several tokens")
    ),
    Row("Mellum", FA3, "budget that follows the load", scene("windows-fa3-pages-widths")),
    Row("Gemma 4", TRITON, GREEDY, scene("windows-gemma")),
    Row("Gemma 4", TRITON, "prefix cache", scene("windows-gemma")),
    Row("Gemma 4", TRITON, "captured graphs and overlap", scene("windows-gemma")),
    *(
        Row("Mellum", FLASHINFER, feature, scene(name, _PAGED))
        for feature, name in (
            (GREEDY, "windows-flashinfer"),
            ("prefix cache", "windows-flashinfer"),
            ("captured graphs and overlap", "windows-flashinfer"),
            ("chunked prefill", "windows-flashinfer-16"),
            ("pages of several tokens", "windows-flashinfer-16"),
            ("requests that join and leave a batch", "windows-flashinfer-16"),
            ("budget that follows the load", "windows-flashinfer-widths"),
            ("retraction", "windows-flashinfer-retraction"),
            ("seeds (deterministic inference)", "windows-flashinfer-deterministic"),
        )
    ),
    *(
        Row("Mellum", TRITON, feature, scene("windows-mellum"))
        for feature in (GREEDY, "prefix cache", "captured graphs and overlap")
    ),
    Row("Qwen3.5 / 3.6", TRITON, GREEDY, scene("gated-delta")),
    Row("Qwen3.5 / 3.6", TRITON, "prefix cache", scene("gated-delta")),
    Row("Qwen3.5 / 3.6", TRITON, "captured graphs and overlap", scene("gated-delta")),
    *(
        Row("Qwen3.5 / 3.6", FLASHINFER, feature, scene("gated-delta-flashinfer"))
        for feature in (GREEDY, "prefix cache", "captured graphs and overlap")
    ),
    Row("Qwen3.5 / 3.6", FA3, "tensor parallelism", scene("gated-delta-two-ranks")),
    Row("Qwen3.5 / 3.6", FA3, GREEDY, scene("Qwen3.5-4B-7")),
    Row("Qwen3.5 / 3.6", FA3, "captured graphs and overlap", scene("Qwen3.5-4B")),
    Row("Qwen3.5 / 3.6", FA3, "ends", scene("gated-delta-chunks")),
    Row("Qwen3.5 / 3.6", FA3, "requests that join and leave a batch", scene("gated-delta-chunks")),
    Row("Qwen3.5 / 3.6", FA3, "aborted requests", scene("gated-delta-retraction")),
    Row("Qwen3.5 / 3.6", FA3, "chunked prefill", scene("gated-delta-chunks")),
    Row("Qwen3.5 / 3.6", TRITON, "mixed chunks", scene("gated-delta-mixed")),
    Row("Qwen3.5 / 3.6", FA3, "mixed chunks", scene("gated-delta-mixed-kept")),
    Row("Nemotron-H", FA3, "mixed chunks", scene("mamba-mixed")),
    Row("Qwen3.5 / 3.6", FA3, "retraction", scene("gated-delta-retraction")),
    Row("Qwen3.5 / 3.6", FA3, "budget that follows the load", scene("gated-delta-widths")),
    Row("Qwen3.5 / 3.6", FA3, "drafter's window", scene("sliding-drafter-gated-delta")),
    Row("Qwen3.5 / 3.6", FA3, "drafter with sliding layers", scene("Qwen3.5-4B-7")),
    Row("Qwen3.5 / 3.6 MoE", FA3, "drafter with sliding layers", scene("Qwen3.5-35B-A3B-7")),
    Row("Qwen3.5 / 3.6", FA3, "prefix cache", scene("Qwen3.5-4B-7")),
    Row("Qwen3.5 / 3.6", FA3, "a smaller tree for one request", scene("Qwen3.5-4B-7")),
    *(
        Row(family, backend, feature, scene(name))
        for family, backend, name in (
            ("Qwen3.5 / 3.6 MoE", FA3, "Qwen3.5-35B-A3B-7"),
            ("Qwen3-Next", FA3, "Qwen3-Coder-Next-7"),
            ("Kimi-K2.5", TRITON, "Kimi-K2.5"),
        )
        for feature in (GREEDY, "prefix cache", "a smaller tree for one request")
    ),
    *(
        Row(family, backend, feature, scene(f"{name}-{backend}"))
        for family, backend, name in (
            ("Kimi-K2.5", FA3, "Kimi-K2.5"),
            ("Qwen3-MoE", TRITON, "Qwen3-Coder-30B-A3B"),
            ("Qwen3-MoE", FLASHINFER, "Qwen3-Coder-30B-A3B"),
            ("Qwen3.5 / 3.6 MoE", TRITON, "Qwen3.5-35B-A3B"),
            ("Qwen3-Next", TRITON, "Qwen3-Coder-Next"),
            ("Qwen3-Next", FLASHINFER, "Qwen3-Coder-Next"),
        )
        for feature in (GREEDY, "prefix cache", "a smaller tree for one request", "captured graphs and overlap")
    ),
    Row("Qwen3.5 / 3.6 MoE", FA3, "captured graphs and overlap", scene("Qwen3.5-35B-A3B")),
    Row("Qwen3-Next", FA3, "captured graphs and overlap", scene("Qwen3-Coder-Next")),
    Row("Kimi-K2.5", TRITON, "captured graphs and overlap", scene("Kimi-K2.5")),
    Row("Nemotron-H", FA3, GREEDY, scene("mamba")),
    Row("Nemotron-H", FA3, "prefix cache", scene("mamba")),
    Row("Nemotron-H", FA3, "captured graphs and overlap", scene("mamba")),
    Row("Nemotron-H", FA3, "chunked prefill", scene("mamba-chunks")),
    Row("Nemotron-H", FA3, "aborted requests", scene("mamba-chunks")),
    Row("Nemotron-H", FA3, "retraction", scene("mamba-chunks")),
    Row("Nemotron-H", TRITON, GREEDY, scene("mamba-16")),
    Row("Nemotron-H", TRITON, "prefix cache", scene("mamba-16")),
    Row("Nemotron-H", TRITON, "ends", scene("mamba-16")),
    Row("Nemotron-H", TRITON, "requests that join and leave a batch", scene("mamba-16")),
    Row("Nemotron-H", TRITON, "aborted requests", scene("mamba-16")),
    *(
        Row("Kimi-K3", FA3, feature, scene("delta-attention"))
        for feature in (GREEDY, "prefix cache", "captured graphs and overlap")
    ),
    *(
        Row("Kimi-K3", TRITON, feature, scene("delta-attention-16"))
        for feature in (
            GREEDY,
            "prefix cache",
            "ends",
            "a smaller tree for one request",
            "requests that join and leave a batch",
            "aborted requests",
        )
    ),
    Row("Kimi-K3", TRITON, "captured graphs and overlap", scene("delta-attention-ends")),
    *(
        Row("Kimi-K3", FA3, feature, scene("delta-attention-chunks"))
        for feature in ("ends", "requests that join and leave a batch", "chunked prefill")
    ),
    Row("Kimi-K3", FA3, "aborted requests", scene("delta-attention-retraction")),
    Row("Kimi-K3", FA3, "retraction", scene("delta-attention-retraction")),
    Row("Kimi-K3", FA3, "mixed chunks", scene("delta-attention-mixed")),
    Row("Kimi-K3", FA3, "mixed chunks", scene("delta-attention-mixed-kept")),
    Row("Kimi-K3", TRITON, "mixed chunks", scene("delta-attention-mixed-uncached")),
    Row("Kimi-K3", FA3, "hierarchical cache", scene("delta-attention-host-cache")),
    Row("Kimi-K3", FA3, "prefill/decode disaggregation", scene("split-delta-attention")),
    Row("Kimi-K3", TRITON, "prefill/decode disaggregation", scene("split-delta-attention-retraction")),
    Row("Kimi-K3", FA3, "budget that follows the load", scene("delta-attention-widths")),
    Row("Kimi-K3", FA3, "tensor parallelism", scene("delta-attention-two-ranks")),
    *(
        Row("LFM2-MoE", FA3, feature, scene("short-convolution-experts"))
        for feature in (GREEDY, "prefix cache", "captured graphs and overlap")
    ),
    Row("LFM2", FA3, GREEDY, scene("short-convolution")),
    Row("LFM2", FA3, "LoRA adapters", scene("short-convolution-adapters")),
    Row("Nemotron-H", TRITON, "LoRA adapters", scene("mamba-adapters")),
    Row("Qwen3.5 / 3.6", FA3, "LoRA adapters", scene("gated-delta-adapters")),
    Row("Qwen3.5 / 3.6 MoE", TRITON, "LoRA adapters", scene("gated-delta-experts-adapters")),
    Row("LFM2", FA3, "prefix cache", scene("short-convolution")),
    Row("LFM2", FA3, "captured graphs and overlap", scene("short-convolution", "without overlap, as SGLang sets it")),
    Row("LFM2", FA3, "ends", scene("short-convolution")),
    Row("LFM2", FA3, "chunked prefill", scene("short-convolution-16")),
    Row("LFM2", FA3, "retraction", scene("short-convolution-retraction")),
    Row("LFM2", FA3, "requests that join and leave a batch", scene("short-convolution-16")),
    Row("LFM2", FA3, "aborted requests", scene("short-convolution")),
    Row("LFM2", FA3, "budget that follows the load", scene("short-convolution-widths")),
    Row("DeepSeek / Kimi-K2", TRITON, "hierarchical cache", scene("host-cache-latent")),
    Row("gpt-oss", TRITON, "hierarchical cache", scene("host-cache-windows")),
    Row("DeepSeek / Kimi-K2", FA3, "hierarchical cache", scene("host-cache-latent-pages")),
    Row("DeepSeek / Kimi-K2", FA3, "prefill/decode disaggregation", scene("split-latent-pages")),
    Row("gpt-oss", FA3, "hierarchical cache", scene("host-cache-windows-pages")),
    Row("DeepSeek / Kimi-K2", TRITON, GREEDY, scene("latent-triton")),
    Row("DeepSeek / Kimi-K2", TRITON, "prefix cache", scene("latent-triton")),
    Row("DeepSeek / Kimi-K2", TRITON, "captured graphs and overlap", scene("latent-triton")),
    Row("DeepSeek / Kimi-K2", FA3, GREEDY, scene("latent-fa3")),
    Row("DeepSeek / Kimi-K2", FA3, "captured graphs and overlap", scene("latent-fa3")),
    *(
        Row("DeepSeek / Kimi-K2", FA3, feature, scene(f"latent-fa3-pages{end}"))
        for feature, end in (
            ("pages of several tokens", ""),
            ("prefix cache", ""),
            ("a smaller tree for one request", "-16"),
            ("chunked prefill", "-16"),
            ("requests that join and leave a batch", "-16"),
            ("retraction", "-retraction"),
        )
    ),
    Row("Kimi-K2.5", FA3, "pages of several tokens", scene("latent-fa3-pages-kimi")),
    Row("Kimi-K3", FA3, "pages of several tokens", scene("latent-fa3-pages-states")),
)

ROWS = (*REFUSED_TARGETS, *REFUSED_FEATURES, *ON_THE_CPU, *IN_THE_LANE)


def cells(family: str, backend: str, feature: str) -> list[Cell]:
    """What the rows say of these; empty where nobody has run it."""
    return [row.cell for row in ROWS if row.covers(family, backend, feature)]


def refused_target(family: str, backend: str) -> Refused | None:
    """Why this family is refused on this backend, whatever is asked of it."""
    found = [row.cell for row in ROWS if row.feature == ALL and row.covers(family, backend, row.feature)]
    return next((cell for cell in found if isinstance(cell, Refused)), None)


def unknown_names() -> list[str]:
    """Names of rows that are none."""
    known = ({*FAMILIES, ALL}, {*BACKENDS, ALL}, {*FEATURES, ALL})
    return [
        name
        for row in ROWS
        for name, names in zip((row.family, row.backend, row.feature), known, strict=True)
        if name not in names
    ]
