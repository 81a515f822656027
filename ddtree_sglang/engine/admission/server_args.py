"""The rules that SGLang's arguments must obey under DDTREE, checked before any model is loaded.

SGLang runs `_handle_dflash` for its own algorithm only (arg_groups/speculative_hook.py), so its checks and
inferences are made again here, with those that a tree adds. Losslessness outranks reach: a combination that has
not been shown to be exact is refused by name.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND
from ddtree_sglang.engine.admission.attention_groups import check_groups, check_groups_target
from ddtree_sglang.engine.admission.cache_types import CACHE_TYPES
from ddtree_sglang.engine.admission.context_limit import check_context_len
from ddtree_sglang.engine.admission.default_policy import config_of
from ddtree_sglang.engine.admission.drafter_checks import (
    DrafterShape,
    check_checkpoint_folder,
    check_drafter_configuration,
    check_drafter_fits_target,
    check_same_dtype,
)
from ddtree_sglang.engine.admission.drafter_fields import MAX_DEPTH
from ddtree_sglang.engine.admission.drafter_weights import check_drafter_weights
from ddtree_sglang.engine.admission.host_cache import check_storage
from ddtree_sglang.engine.admission.other_backends import why_not
from ddtree_sglang.engine.admission.recurrent_checks import check_recurrent_arguments
from ddtree_sglang.engine.admission.rules import ArgumentRule, broken_rule
from ddtree_sglang.engine.admission.split_servers import check_split, check_split_target, is_split
from ddtree_sglang.engine.admission.target_checks import check_target
from ddtree_sglang.engine.cli_flags import apply_config
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.spec import ALGORITHM, is_ddtree, max_path_len
from ddtree_sglang.exceptions import DDTreeConfigError

TREE_BACKENDS = ("flashinfer", "triton", "fa3", ATTENTION_BACKEND)
"""Attention backends that were seen to honour an ancestor-only mask in TARGET_VERIFY. FA4 should, by SGLang's code for
FA3, which it shares; its kernels have run with no tree, and ask for pages of 128 tokens elsewhere."""
GRAMMAR_BACKENDS = ("xgrammar", "llguidance", "none")
"""Grammar backends that can take tokens back, and none."""
COSTS_WARMUP = "ddtree_costs"
"""In `--warmups`; `engine/entry/first_costs.py` is it."""
DEFAULT_MAX_RUNNING_REQUESTS = 48
"""SGLang's own default for block drafters (speculative_hook.py, _handle_dflash)."""


ARGUMENT_RULES: tuple[ArgumentRule, ...] = (
    ArgumentRule(
        lambda cfg: cfg.speculative_draft_model_path is None,
        "needs a DFlash drafter, got none; add --speculative-draft-model-path.",
    ),
    # Nor does SGLang's DFLASH serve any (speculative_hook.py, _handle_dflash). Its relay between stages carries EAGLE's
    # trees (pp_spec_relay.py), and no states of the layers that the drafter reads.
    ArgumentRule(
        lambda cfg: cfg.pp_size != 1,
        "needs all target layers on one pipeline stage, for its drafter reads states of several and SGLang sends none "
        "from stage to stage; remove --pp-size, and use --tp-size to spread the model.",
    ),
    # Slots are numbered over all ranks there, and a rank's pool has rows for its own (mem_cache/allocator).
    ArgumentRule(
        lambda cfg: cfg.dcp_size not in (None, 1),
        "keeps all of a request's keys on each rank; remove --dcp-size.",
    ),
    # Nobody has run a tree whose prompt's tokens were shared out.
    ArgumentRule(
        lambda cfg: cfg.attn_cp_size != 1,
        "has all of a prompt's tokens on each rank; remove --attn-cp-size.",
    ),
    ArgumentRule(
        lambda cfg: bool(cfg.speculative_use_rejection_sampling),
        "samples from the target alone; remove --speculative-use-rejection-sampling, which no tree's round reads.",
    ),
    ArgumentRule(
        lambda cfg: cfg.speculative_accept_threshold_single != 1.0 or cfg.speculative_accept_threshold_acc != 1.0,
        "is lossless, and acceptance thresholds below 1.0 are not; remove --speculative-accept-threshold-*.",
    ),
    ArgumentRule(
        lambda cfg: bool(cfg.enable_two_batch_overlap or cfg.enable_pdmux),
        "does not support two-batch overlap or PD multiplexing; remove --enable-two-batch-overlap / --enable-pdmux.",
    ),
    # SGLang reads it for the heads of EAGLE and MTP alone, and says nothing of it to a block drafter.
    ArgumentRule(
        lambda cfg: cfg.speculative_draft_sink_size is not None,
        "keeps no first tokens in its drafter's window; remove --speculative-draft-sink-size.",
    ),
    # The drafter's pool is copied beside the target's (speculative/base_spec_worker.py, `_build_hicache_draft_plan`).
    # One pool of all layers holds it in another way.
    ArgumentRule(
        lambda cfg: bool(cfg.enable_unified_cache_external_linker),
        "has not been shown to read the drafter's keys back through a linker; remove "
        "--enable-unified-cache-external-linker.",
    ),
    ArgumentRule(
        lambda cfg: bool(cfg.enable_hierarchical_cache and cfg.enable_unified_memory),
        "has not been shown to bring the drafter's keys back from the host into unified memory; remove "
        "--enable-hierarchical-cache or --enable-unified-memory.",
    ),
    # Neither knows of a drafter (mem_cache/storage/lmcache, mem_cache/storage/flexkv).
    ArgumentRule(
        lambda cfg: bool(cfg.enable_lmcache or cfg.enable_flexkv or cfg.radix_cache_backend),
        "needs a prefix cache that brings back the drafter's keys with the target's; remove --enable-lmcache, "
        "--enable-flexkv and --radix-cache-backend.",
    ),
    # The host knows a round's root before the draft where no round is overlapped.
    ArgumentRule(
        lambda _cfg: is_device_path() and DDTreeConfig.from_env().ngrams is True,
        "reads requests' texts on the host, which a GPU's rounds do not wait for; remove --speculative-ddtree-ngrams.",
    ),
    # The rows that a round moves have scales beside them there, and no tree has been shown with those.
    ArgumentRule(
        lambda cfg: cfg.kv_cache_dtype not in CACHE_TYPES,
        "has not been shown with a KV cache whose rows share scales; set --kv-cache-dtype to auto, bf16, fp8_e4m3 or "
        "fp8_e5m2.",
    ),
    # The mark of a token is drawn from those before it, which differ from node to node (sampling_batch_info.py).
    ArgumentRule(lambda cfg: bool(cfg.enable_watermark), "marks no tree's nodes; remove --enable-watermark."),
    ArgumentRule(
        lambda cfg: cfg.grammar_backend not in (None, *GRAMMAR_BACKENDS),
        "walks a grammar along its tree and back, which outlines cannot; use --grammar-backend xgrammar or llguidance.",
    ),
    # Only sparse attention has an indexer, and such targets are refused.
    ArgumentRule(
        lambda cfg: bool(cfg.enable_return_indexer_topk),
        "serves no target with an indexer; remove --enable-return-indexer-topk.",
    ),
)


ADAPTER_RULES: tuple[ArgumentRule, ...] = (
    ArgumentRule(
        lambda cfg: cfg.lora_backend not in _adapter_backends(),
        "verifies trees with adapters on the LoRA backends csgmv and triton (torch_native without a GPU); change "
        "--lora-backend.",
    ),
    # The metadata of a verify's graphs is made for one number of nodes, and SGLang keeps one (triton_backend.py,
    # init_decode_cuda_graph_batch_info).
    ArgumentRule(
        lambda cfg: is_device_path() and DDTreeConfig.from_env().policy not in (None, "fixed"),
        "serves adapters with a fixed number of nodes on a GPU; remove --speculative-ddtree-policy or --enable-lora / "
        "--lora-paths.",
    ),
    # An adapter's copy is there when a rank's own event says so, and ranks do not tell one another
    # (lora/lora_overlap_loader.py). Which one makes room is not asked of a prefill in flight, nor of a waiting chunk.
    ArgumentRule(
        lambda cfg: bool(cfg.enable_lora_overlap_loading),
        "does not load adapters beside a running batch yet; remove --enable-lora-overlap-loading.",
    ),
    # Its router asks for the adapters' configuration in each forward, the drafter's too (lora_hook.py).
    ArgumentRule(
        lambda cfg: "experimental_sgl_trtllm" in (cfg.moe_runner_backend, cfg.speculative_moe_runner_backend),
        "does not serve adapters on the MoE runner experimental_sgl_trtllm; change --moe-runner-backend.",
    ),
)
"""What is refused of a server with LoRA adapters."""


def _adapter_backends() -> tuple[str, ...]:
    """LoRA backends that take N rows per request in a verify, in graphs too where there are any."""
    # The torch backend's buffers have room for one row per request of a graph (torch_backend.py, prepare_lora_batch).
    return ("csgmv", "triton") if is_device_path() else ("torch_native",)


def resolve_server_args(cfg: Any) -> None:
    """Check and complete the arguments; `cfg` is the stand-in that SGLang hands to a plugin.

    Fills in the number of nodes, the drafter's block size, the tree flag, the batch limit, and, for policy "adaptive",
    the warm-up that measures rounds.

    Raises:
        DDTreeConfigError: the first rule that is broken, with the value found and what to do.
    """
    has_adapters = bool(cfg.enable_lora or cfg.lora_paths)
    rules = (*ARGUMENT_RULES, *(ADAPTER_RULES if has_adapters else ()))
    if (message := broken_rule(rules, cfg)) is not None:
        raise DDTreeConfigError(f"{ALGORITHM} {message}")
    config = config_of(cfg)
    apply_config(cfg, config)
    check_attention_backend(cfg)
    shape = read_drafter_shape(cfg)
    drafter = _config_of_drafter(cfg).to_dict()
    check_groups(cfg, drafter)
    check_split(cfg, drafter)
    _check_block_size(cfg, shape)
    _check_draft_window(cfg, shape)
    if cfg.speculative_num_steps not in (None, shape.draft_depth):
        raise DDTreeConfigError(
            f"--speculative-num-steps is no knob of {ALGORITHM}: the drafter's block gives {shape.draft_depth}, got "
            f"{cfg.speculative_num_steps}; remove it."
        )
    if not is_device_path():
        # Nothing to overlap with; also when SGLang's own CPU engine serves.
        cfg.disable_overlap_schedule = True
    if is_device_path() and shape.draft_depth > MAX_DEPTH:
        raise DDTreeConfigError(
            f"{ALGORITHM} on a GPU builds trees of at most {MAX_DEPTH} drafted positions, the drafter proposes "
            f"{shape.draft_depth}; use another drafter, or SGLang's chain with this one."
        )
    cfg.speculative_dflash_block_size = shape.block_size
    cfg.speculative_num_steps = shape.draft_depth
    if cfg.max_running_requests is None:
        cfg.max_running_requests = DEFAULT_MAX_RUNNING_REQUESTS
    # A split server has no client of its own to measure rounds with.
    measures = config.measures_at_start and not is_split(cfg)
    if measures and not cfg.skip_server_warmup and cfg.tokenizer_worker_num == 1:
        given = [] if cfg.warmups is None else cfg.warmups.split(",")
        if COSTS_WARMUP not in given:
            cfg.warmups = ",".join([*given, COSTS_WARMUP])


def check_attention_backend(cfg: Any) -> None:
    """Refuse a backend that would verify no tree, or was not seen to: those of `other_backends`, and unknown ones."""
    names = {
        "--attention-backend": cfg.attention_backend,
        "--prefill-attention-backend": cfg.prefill_attention_backend,
        "--decode-attention-backend": cfg.decode_attention_backend,
        "--speculative-draft-attention-backend": cfg.speculative_draft_attention_backend,
    }
    wrong = {flag: one for flag, one in names.items() if one is not None and one not in TREE_BACKENDS}
    if wrong:
        got = " and ".join(f"{backend!r} in {flag}, {why_not(backend)}" for flag, backend in wrong.items())
        raise DDTreeConfigError(
            f"{ALGORITHM} needs an attention backend with tree masks, one of {list(TREE_BACKENDS)}, got {got}; change "
            "it or leave it out."
        )


def check_resolved_target(server_args: Any) -> None:
    """Under DDTREE, refuse a target on which a tree is not exact, a context without room for a request, or two dtypes.

    After resolution, which chooses the attention
    backend. A window that only the loaded model knows of is checked by the worker.
    """
    if not is_ddtree(server_args.speculative_algorithm):
        return
    from sglang.srt.arg_groups.overrides import attention_backends_of, model_config_of, resolving_view
    from sglang.srt.configs.hybrid_arch import mambaish_config

    cfg, model_config = resolving_view(server_args), model_config_of(server_args)
    window = model_config.sliding_window_size if model_config.is_hybrid_swa else None
    check_target(model_config, window, attention_backends_of(cfg))
    check_recurrent_arguments(model_config, cfg)
    is_recurrent = mambaish_config(model_config) is not None
    check_groups_target(cfg, model_config.hf_config.architectures[0])
    check_split_target(cfg, is_recurrent)
    check_storage(model_config, cfg)
    check_context_len(int(model_config.context_len), max_path_len(cfg))
    _check_prefills_with_adapters(cfg)
    if str(cfg.dtype) == "auto":
        _check_auto_dtype(cfg, model_config)


def _check_prefills_with_adapters(cfg: Any) -> None:
    """SGLang's graphs of prefills hold the adapters' rows in buffers of their own, which has not been shown here."""
    has_adapters = bool(cfg.enable_lora or cfg.lora_paths)
    backend = cfg.cuda_graph_config.prefill.backend
    if has_adapters and is_device_path() and backend != "disabled":
        raise DDTreeConfigError(
            f"{ALGORITHM} serves adapters without graphs of prefills on a GPU, got {backend!r}; remove "
            "--cuda-graph-backend-prefill."
        )


def _check_auto_dtype(cfg: Any, model_config: Any) -> None:
    """SGLang takes each model's dtype from its own checkpoint, and float16 for a float32 one."""
    from sglang.srt.configs.model_config import _get_and_verify_dtype

    drafter = _get_and_verify_dtype(_config_of_drafter(cfg), "auto")
    check_same_dtype(*(str(dtype).removeprefix("torch.") for dtype in (model_config.dtype, drafter)))


def check_checkpoints(server_args: Any) -> None:
    """Under DDTREE, refuse folders that cannot be checkpoints, and a drafter that SGLang would reject or misread."""
    if not is_ddtree(server_args.speculative_algorithm):
        return
    has_weights = server_args.load_format != "dummy"
    folders = [(server_args.model_path, "the target model", "--model-path")]
    if server_args.speculative_draft_model_path is not None:
        folders.append((server_args.speculative_draft_model_path, "the drafter", "--speculative-draft-model-path"))
    for path, role, flag in folders:
        check_checkpoint_folder(path, role, flag, has_weights)
    if server_args.speculative_draft_model_path is None:
        return
    drafter = Path(server_args.speculative_draft_model_path).expanduser()
    check_drafter_configuration(drafter)
    if has_weights:
        check_drafter_weights(drafter)


def check_port_is_free(server_args: Any) -> None:
    """Under DDTREE, refuse a taken port now: SGLang itself notices after the model has loaded."""
    if not is_ddtree(server_args.speculative_algorithm):
        return
    address = (server_args.host, server_args.port)
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # What the HTTP server does too: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise DDTreeConfigError(
                f"the server's port must be free, got {address[1]} on {address[0]} ({error.strerror}); stop what "
                "listens there, or choose another --port."
            ) from error


def read_drafter_shape(cfg: Any) -> DrafterShape:
    """Read both configurations and check that the drafter fits; nothing of the weights is read."""
    from sglang.srt.utils.hf_transformers_utils import get_config

    target = get_config(cfg.model_path, trust_remote_code=cfg.trust_remote_code, revision=cfg.revision)
    return check_drafter_fits_target(_config_of_drafter(cfg).to_dict(), target.to_dict())


def _config_of_drafter(cfg: Any) -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_config

    return get_config(
        cfg.speculative_draft_model_path,
        trust_remote_code=cfg.trust_remote_code,
        revision=cfg.speculative_draft_model_revision,
    )


def _check_block_size(cfg: Any, shape: DrafterShape) -> None:
    asked = cfg.speculative_dflash_block_size
    if asked is not None and int(asked) not in (shape.stated_size, shape.block_size):
        raise DDTreeConfigError(
            f"the block size must be the one that the drafter was trained for, {shape.stated_size}, got {asked}; "
            "remove --speculative-dflash-block-size."
        )


def _check_draft_window(cfg: Any, shape: DrafterShape) -> None:
    """SGLang's own rule for block drafters (speculative_hook.py, _handle_dflash)."""
    window = cfg.speculative_draft_window_size
    if window is not None and int(window) < shape.block_size:
        raise DDTreeConfigError(
            f"the drafter's window must be at least its block of {shape.block_size} tokens, got {window}; raise "
            "--speculative-draft-window-size, or remove it for the whole context."
        )
