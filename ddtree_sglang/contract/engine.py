"""Every SGLang name and signature that the adapter relies on, in one table, checked before anything is registered.

The check reads SGLang's source (`ast`), it imports nothing: it is fast, works on any machine, and cannot be fooled
by a name that exists but takes other parameters. A new SGLang version starts here: run the check, mend `engine/`,
leave `core/` alone.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from ddtree_sglang.exceptions import EngineContractError

SUPPORTED_SGLANG = "0.5.23"


class Entry(NamedTuple):
    """One name of SGLang's.

    Attributes:
        module: dotted module, where the name is defined.
        name: function, class, `Class.method`, `Class.field` or module-level constant.
        uses: parameters of a function, or members of a class, that must be there.
        why: what of ours depends on it.
    """

    module: str
    name: str
    uses: tuple[str, ...]
    why: str


_DFLASH = "sglang.srt.speculative.dflash_worker_v2"
_APPEND = "DFlashWorkerV2._append_target_hidden_to_draft_kv_by_loc"

CONTRACT: tuple[Entry, ...] = (
    # registration
    Entry(
        "sglang.srt.speculative.spec_info",
        "SpeculativeAlgorithm.register",
        ("name", "supports_overlap", "spec_class"),
        "plugin",
    ),
    Entry(
        "sglang.srt.speculative.spec_registry",
        "CustomSpecAlgo",
        ("handle_server_args", "get_num_tokens_per_req_for_target_verify", "is_dflash_family", "has_draft_kv"),
        "algorithm",
    ),
    Entry("sglang.srt.plugins.hook_registry", "HookRegistry.register", ("target", "hook", "hook_type"), "hooks"),
    Entry(
        "sglang.srt.managers.overlap_utils",
        "FutureMap.__init__",
        ("device", "spec_algo", "req_to_token_pool", "needs_cpu_seq_lens", "needs_confidence_relay"),
        "algorithm",
    ),
    # arguments
    Entry("sglang.srt.server_args", "ServerArgs.add_cli_args", ("parser",), "cli_flags"),
    Entry("sglang.srt.server_args", "ServerArgs.from_cli_args", ("args",), "cli_flags"),
    Entry("sglang.srt.server_args", "ServerArgs.resolve_once", (), "hooks"),
    Entry("sglang.srt.server_args", "prepare_server_args", ("argv",), "hooks"),
    Entry(
        "sglang.srt.arg_groups.fields.spec",
        "Spec",
        (
            "speculative_algorithm",
            "speculative_draft_model_path",
            "speculative_num_steps",
            "speculative_eagle_topk",
            "speculative_num_draft_tokens",
            "speculative_dflash_block_size",
        ),
        "server_args",
    ),
    # what the target is
    Entry("sglang.srt.configs.hybrid_arch", "mambaish_config", ("model_config",), "target_checks"),
    Entry("sglang.srt.configs.model_config", "AttentionArch", ("MHA", "SSM"), "target_checks"),
    Entry("sglang.srt.configs.model_config", "ModelConfig.get_default_sampling_params", (), "target_checks"),
    Entry("sglang.srt.arg_groups.model_override_base", "model_config_of", ("server_args",), "server_args"),
    Entry("sglang.srt.arg_groups.model_override_base", "attention_backends_of", ("cfg",), "server_args"),
    Entry("sglang.srt.runtime_context", "attention_backends", (), "target_checks"),
    # functions that are wrapped
    Entry("sglang.srt.speculative.dflash_utils", "validate_dflash_request", ("req", "enable_overlap"), "hooks"),
    Entry("sglang.srt.mem_cache.allocation_sizing", "get_req_to_token_extra_context_len", (), "kv_window"),
    Entry(
        "sglang.srt.speculative.spec_info",
        "create_dummy_verify_input",
        ("spec_algorithm", "custom_mask", "num_tokens_per_req", "is_draft_worker"),
        "graph_runner",
    ),
    Entry(
        "sglang.srt.model_executor.model_runner",
        "ModelRunner._extend_forward_kwargs",
        ("forward_batch", "pp_proxy_tensors"),
        "hooks",
    ),
    # what the worker inherits
    Entry(_DFLASH, "DFlashWorkerV2.__init__", ("server_args", "gpu_id", "nccl_port", "target_worker"), "worker"),
    Entry(
        _DFLASH,
        "DFlashWorkerV2.forward_batch_generation",
        ("batch", "on_publish", "grammar_barrier", "pp_proxy_tensors"),
        "worker",
    ),
    Entry(_DFLASH, _APPEND, ("target_hidden", "cache_loc", "positions", "cache_loc_2d", "commit_lens"), "worker"),
    Entry(_DFLASH, "DFlashWorkerV2._make_next_draft_input_prefill", ("bonus_tokens", "seq_lens"), "worker"),
    Entry(_DFLASH, "DFlashWorkerV2._defer_target_verify_gather", (), "worker"),
    Entry(_DFLASH, "DFlashWorkerV2._maybe_build_draft_sampler", (), "worker"),
    Entry(_DFLASH, "DFlashWorkerV2._validate_phase1_sampling_support", ("batch",), "worker"),
    Entry(_DFLASH, "_resolve_dflash_embedding_module", (), "worker"),
    Entry("sglang.srt.speculative.spec_utils", "draft_tp_context", (), "worker"),
    Entry("sglang.srt.speculative.dflash_info_v2", "DFlashDraftInputV2.prepare_for_decode", ("batch",), "kv_window"),
    Entry(
        "sglang.srt.speculative.dflash_info_v2",
        "DFlashDraftInputV2",
        ("topk_p", "topk_index", "bonus_tokens", "new_seq_lens", "hidden_states", "nxt_kv_lens_cpu"),
        "kv_window",
    ),
    Entry("sglang.srt.speculative.dflash_utils", "parse_dflash_draft_config", ("draft_hf_config",), "worker"),
    # verify
    Entry(
        "sglang.srt.speculative.eagle_info",
        "EagleVerifyInput",
        (
            "draft_token",
            "custom_mask",
            "positions",
            "retrieve_index",
            "retrieve_next_token",
            "retrieve_next_sibling",
            "spec_steps",
            "draft_token_num",
            "prepared_out_cache_loc",
            "kv_loc_plan",
            "max_tree_depth",
            "tree_topk",
        ),
        "verify_input",
    ),
    *(
        Entry(
            f"sglang.srt.speculative.{module}",
            f"{name}.generate_attn_arg_prefill",
            ("req_pool_indices", "paged_kernel_lens", "paged_kernel_lens_sum", "translator", "plan", "kind"),
            "verify_input",
        )
        for module, name in (("eagle_info", "EagleVerifyInput"), ("dflash_info", "DFlashVerifyInput"))
    ),
    Entry(
        "sglang.srt.speculative.dflash_info",
        "DFlashVerifyInput",
        ("draft_token", "positions", "draft_token_num", "custom_mask"),
        "verify_input",
    ),
    Entry(
        "sglang.srt.speculative.eagle_utils",
        "eagle_prepare_for_verify",
        ("verify_input", "req_to_token_pool", "batch", "target_worker"),
        "worker",
    ),
    Entry(
        "sglang.kernels.ops.speculative.spec_tree",
        "verify_tree_greedy_func",
        (
            "predicts",
            "accept_index",
            "accept_token_num",
            "candidates",
            "retrieve_index",
            "retrieve_next_token",
            "retrieve_next_sibling",
            "target_predict",
            "topk",
        ),
        "tree_walk",
    ),
    Entry(
        "sglang.srt.layers.logprob_processor",
        "compute_spec_logprobs",
        ("batch", "logits_output", "predict", "accept_index"),
        "worker",
    ),
    Entry(
        "sglang.srt.layers.quantization.unquant",
        "UnquantizedEmbeddingMethod.apply",
        ("layer", "x", "bias"),
        "drafter",
    ),
    Entry(
        "sglang.srt.layers.sampler",
        "Sampler.forward",
        ("logits_output", "sampling_info", "return_logprob", "top_logprobs_nums", "token_ids_logprobs", "positions"),
        "target_choice",
    ),
    Entry(
        "sglang.srt.sampling.sampling_batch_info",
        "SamplingBatchInfo",
        ("temperatures", "top_ps", "top_ks", "min_ps", "sampling_seed", "logit_bias", "is_all_greedy"),
        "target_choice",
    ),
    Entry(
        "sglang.srt.managers.utils",
        "GenerationBatchResult",
        (
            "next_token_ids",
            "accept_lens",
            "next_draft_input",
            "speculative_output_stride",
            "new_seq_lens",
            "extra_keep_alive_refs",
        ),
        "worker",
    ),
    # graphs
    Entry("sglang.srt.model_executor.model_runner", "ModelRunner._decode_cuda_graph_runner_cls", (), "graph_runner"),
    Entry(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner.get_spec_info",
        ("num_tokens",),
        "graph_runner",
    ),
    Entry("sglang.srt.layers.attention.base_attn_backend", "AttentionBackend.verify_mask", (), "tree_stage"),
    Entry(
        "sglang.srt.layers.attention.verify_mask", "VerifyMask", ("buffer", "mode", "max_bs", "is_read"), "tree_stage"
    ),
    Entry("sglang.kernels.ops.speculative.spec_tree", "TreeMaskMode", ("FULL_MASK",), "tree_stage"),
    # The Triton backend's default for this parameter is why cells of the prefix are never written.
    Entry(
        "sglang.kernels.ops.attention.extend_attention",
        "extend_attention_fwd",
        ("custom_mask", "mask_indptr", "skip_prefix_custom_mask"),
        "tree_stage",
    ),
    Entry("sglang.srt.mem_cache.memory_pool", "MHATokenToKVPool.move_kv_cache", ("tgt_loc", "src_loc"), "worker"),
    Entry(
        "sglang.srt.mem_cache.kv_index_translator",
        "KVIndexTranslator.plan",
        ("req_pool_indices", "seq_lens", "seq_lens_cpu", "write_virtual", "read_extent"),
        "worker",
    ),
    Entry("sglang.srt.speculative.spec_tp_sync", "SpecTpSyncSite", ("DFLASH_ACCEPT_SAMPLE",), "worker"),
)


def check_contract(entries: tuple[Entry, ...] = CONTRACT) -> None:
    """Raise `EngineContractError`, naming every mismatch, unless the installed SGLang is the one we know."""
    installed = version("sglang")
    problems = [problem for entry in entries if (problem := find_mismatch(entry)) is not None]
    if problems:
        raise EngineContractError(
            f"SGLang {installed} is not what ddtree_sglang was written against ({SUPPORTED_SGLANG}): "
            f"{'; '.join(problems)}. Install sglang=={SUPPORTED_SGLANG}, or a ddtree_sglang made for {installed}."
        )
    if installed != SUPPORTED_SGLANG:
        raise EngineContractError(
            f"ddtree_sglang supports sglang=={SUPPORTED_SGLANG}, got {installed}; install the supported version."
        )


def find_mismatch(entry: Entry) -> str | None:
    """What is wrong with one entry in the installed SGLang, or None."""
    tree = _parse_module(entry.module)
    if tree is None:
        return f"no module {entry.module}"
    node: ast.AST = tree
    for part in entry.name.split("."):
        found = _member(node, part)
        if found is None:
            return f"{entry.module} has no {entry.name}"
        node = found
    present = _parameters(node) if isinstance(node, ast.FunctionDef) else _members(node)
    missing = [use for use in entry.uses if use not in present]
    return f"{entry.module}.{entry.name} has no {missing}" if missing else None


@cache
def _parse_module(module: str) -> ast.Module | None:
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *rest)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return ast.parse(candidate.read_text(encoding="utf-8"))
    return None


def _member(node: ast.AST, name: str) -> ast.AST | None:
    for child in ast.iter_child_nodes(node):
        if name in _names(child):
            return child
    return None


def _members(node: ast.AST) -> set[str]:
    return {name for child in ast.iter_child_nodes(node) for name in _names(child)}


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _parameters(node: ast.FunctionDef) -> set[str]:
    arguments = node.args
    return {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
