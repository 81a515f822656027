"""Targets some of whose layers keep a recurrent state: which are served, and with what arguments.

A tree needs kernels that read the state of a node's parent and keep one per node. SGLang has them in Triton, for gated
delta nets, Mamba2 and convolutions; its other kernels of recurrent layers advance one state along a chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.spec import ALGORITHM, max_path_len
from ddtree_sglang.exceptions import DDTreeConfigError

GATED_DELTA = (
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen3NextForCausalLM",
)
OTHER_NAMES = ("InternS2MobiusForConditionalGeneration", "InternS2PreviewForConditionalGeneration")
"""Classes of gated delta nets that are Qwen3.5's under another name."""
MAMBA2 = ("NemotronHForCausalLM", "NemotronHPuzzleForCausalLM", "NemotronH_Omni_Reasoning_V3")
WITH_IMAGES = ("Lfm2VlForConditionalGeneration",)
"""Classes of short convolutions for which SGLang sees to no states in its prefix cache (arg_groups/overrides.py,
`_MAMBA_RADIX_CACHE_ARCHS`): neither to overlap, nor to pages."""
SHORT_CONVOLUTIONS = ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM", *WITH_IMAGES)
KDA = ("KimiK3ForConditionalGeneration",)
MIXED = (*GATED_DELTA, *OTHER_NAMES, *MAMBA2, *KDA)
"""Of these, whose prefix cache has states at fixed lengths, too."""
ADAPTED = ("NemotronHForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
"""Of these, those that were shown with adapters."""
SERVED = (*MIXED, *SHORT_CONVOLUTIONS)
"""Architectures with recurrent layers that are verified as trees, by the kind of those layers."""

STATE_BACKEND_CLASSES = ("GDNAttnBackend", "KDAAttnBackend", "Mamba2AttnBackend", "ShortConvAttnBackend")
"""SGLang's backends of recurrent layers whose kernels have been shown to take a tree (layers/attention/linear)."""

NOT_SERVED = {
    "KimiLinearForCausalLM": (
        "whose class in SGLang hands its layers' states to no drafter, though the Triton kernel of its KDA takes a "
        f"tree; use a server without {ALGORITHM}"
    ),
    **dict.fromkeys(
        ("MiniCPMV", "MiniCPMV4_6ForConditionalGeneration", "MiniCPMV4_7ForConditionalGeneration"),
        "which this SGLang ends over at its warm-up, whatever the algorithm; use another target",
    ),
}
"""Architectures that are refused for more than that their states were not shown, and what to do.

MiniCPM-V's class answers for the model within it, `eval` included, so that SGLang's loader hands out that one, and what
it has told the class of shared experts is lost (models/minicpmv.py, `__getattr__`; model_loader/loader.py,
`_initialize_model`; model_executor/runner/base_runner.py, `model_context`)."""

_CHAIN = "use --speculative-algorithm DFLASH, whose chain SGLang supports there"


class RecurrentRule(NamedTuple):
    """One combination of server arguments that is refused for a target with recurrent layers."""

    broken: Callable[[Any], bool]
    message: str
    architectures: tuple[str, ...] = SERVED


def _other_than_triton(cfg: Any) -> bool:
    kernels = (cfg.linear_attn_decode_backend, cfg.linear_attn_verify_backend)
    return cfg.linear_attn_backend != "triton" or any(one not in (None, "triton") for one in kernels)


def _attends_on_triton(cfg: Any) -> bool:
    return "triton" in (cfg.attention_backend, cfg.prefill_attention_backend, cfg.decode_attention_backend)


def _keeps_states_too_often(cfg: Any) -> bool:
    """Whether the state that a request's last round kept can be overwritten by the round that is in flight at its end.

    Both have the same slot. The last round may end a path behind the length that it keeps, less one token, so another
    path must not reach the next such length. SGLang itself wants more tokens between them than a tree has nodes.
    """
    num_nodes = int(cfg.speculative_num_draft_tokens)
    longest = min(num_nodes, max_path_len(cfg))
    return (cfg.mamba_track_interval or 0) < max(num_nodes + 1, 2 * longest)


RECURRENT_RULES: tuple[RecurrentRule, ...] = (
    RecurrentRule(
        lambda cfg: not is_device_path(),
        "is served where SGLang launches Triton kernels, which a tree of states needs; serve it on a machine "
        "with a GPU, for the CPU platform keeps no recurrent states.",
    ),
    # FlashInfer's and CuTe DSL's verify a chain (linear/gdn_backend.py, GDNKernelDispatcher), and a round of one node
    # would go through them.
    RecurrentRule(
        _other_than_triton,
        "verifies trees with the Triton kernels of linear attention; give triton to --linear-attn-backend, "
        "--linear-attn-decode-backend and --linear-attn-verify-backend.",
    ),
    # It keeps a chain's tokens in a ring, and no states of nodes. SGLang refuses that of a verify itself.
    RecurrentRule(
        lambda cfg: bool(cfg.enable_linear_replayssm),
        "keeps a state per node, where ReplaySSM replays a chain; remove --enable-linear-replayssm.",
    ),
    RecurrentRule(
        lambda cfg: bool(cfg.enable_int8_mamba_checkpoint),
        "has not been shown to resume from rounded states; remove --enable-int8-mamba-checkpoint.",
    ),
    RecurrentRule(
        lambda cfg: cfg.mamba_radix_cache_strategy == "extra_buffer_lazy",
        "has not been shown to plan the prefix cache's states ahead; change --mamba-radix-cache-strategy.",
    ),
    RecurrentRule(
        _keeps_states_too_often,
        "keeps states for the prefix cache at lengths further apart than a tree has nodes, and than two of its "
        "longest paths; raise --mamba-track-interval or lower --speculative-ddtree-budget.",
    ),
    # A draw of the rounding is another one at a node than in plain decoding.
    RecurrentRule(
        lambda cfg: bool(cfg.enable_mamba_cache_stochastic_rounding),
        "cannot round states as plain decoding does by chance; remove --enable-mamba-cache-stochastic-rounding.",
    ),
    # FlashInfer's kernel of Mamba2 was not shown to take a tree.
    RecurrentRule(
        lambda cfg: cfg.mamba_backend != "triton",
        "verifies trees with the Triton kernels of Mamba2; give triton to --mamba-backend.",
        MAMBA2,
    ),
    # The kernel counts a request's states by the nodes of the round (attention/mamba/mamba.py, cache_steps), and those
    # that are committed are looked for behind the states of the largest one.
    RecurrentRule(
        lambda _cfg: DDTreeConfig.from_env().policy not in (None, "fixed"),
        "keeps the states of Mamba2's nodes with a fixed number of nodes; remove --speculative-ddtree-policy.",
        MAMBA2,
    ),
    RecurrentRule(
        lambda cfg: bool(cfg.enable_hierarchical_cache),
        "has not been shown to bring inputs of convolutions back from the host; remove --enable-hierarchical-cache.",
        WITH_IMAGES,
    ),
    # SGLang's buffers of adapters do not fit a gated q_proj, unless the class says how wide it is: Qwen3.5's that take
    # images do, those of text alone do not (models/qwen3_5.py, get_hidden_dim; models/qwen3_5_text.py has none).
    # Kimi-K3's latent attention multiplies by its gate in o_proj's own forward, which the layer of adapters around it
    # does not call (models/kimi_k3.py, KimiK3MLAAttention; lora/layers.py, RowParallelLinearWithLoRA).
    RecurrentRule(
        lambda cfg: bool(cfg.enable_lora or cfg.lora_paths),
        "has not been shown with adapters; remove --enable-lora and --lora-paths.",
        tuple(name for name in (*MIXED, *WITH_IMAGES) if name not in ADAPTED),
    ),
    # For LFM2's other classes SGLang says so itself (arg_groups/model_hook.py).
    RecurrentRule(
        _attends_on_triton,
        "needs an attention backend that takes a first layer without keys; give fa3 or flashinfer to "
        "--attention-backend, and remove triton from --prefill-attention-backend and --decode-attention-backend.",
        WITH_IMAGES,
    ),
    # Of LFM2's other classes SGLang lets rounds not overlap, and takes no larger pages, beside a cache that gets the
    # state that a request ends with (arg_groups/mamba_hook.py, no_buffer).
    RecurrentRule(
        lambda cfg: not cfg.disable_radix_cache and (not cfg.disable_overlap_schedule or int(cfg.page_size or 1) > 1),
        "has been shown with a prefix cache where no rounds overlap and a page has one token, and SGLang does not see "
        "to that for this class; add --disable-overlap-schedule and remove --page-size, or add --disable-radix-cache.",
        WITH_IMAGES,
    ),
    # SGLang keeps no copies of a convolution's inputs at fixed lengths, as it does of other states (below).
    RecurrentRule(
        lambda cfg: bool(cfg.enable_mixed_chunk) and not cfg.disable_radix_cache,
        "keeps wrong inputs of convolutions of a request that ends in another one's prefill; remove "
        "--enable-mixed-chunk, or add --disable-radix-cache.",
        SHORT_CONVOLUTIONS,
    ),
    # Where a request ends in another one's prefill, SGLang gives the cache the state behind its last token as that
    # before it (managers/scheduler_components/batch_result_processor.py, mem_cache/common.py). Copies at fixed lengths
    # are none of such steps.
    RecurrentRule(
        lambda cfg: (
            bool(cfg.enable_mixed_chunk)
            and not cfg.disable_radix_cache
            and cfg.mamba_radix_cache_strategy != "extra_buffer"
        ),
        "keeps a wrong state of a request that ends in another one's prefill; remove --enable-mixed-chunk, or let "
        "--mamba-radix-cache-strategy be extra_buffer.",
        MIXED,
    ),
    # A mixed prefill has room for a chunk that ends within a page. The next one's state is kept behind so many tokens
    # of its own, and found under the page before that (schedule_batch.py, _mamba_radix_cache_v2_req_prepare_for_extend;
    # mem_cache/unified_radix_cache.py, checkpoint_into_tree).
    RecurrentRule(
        lambda cfg: bool(cfg.prefill_decode_interval) and int(cfg.page_size or 1) > 1,
        "keeps a state under fewer tokens than it has seen where rounds between two chunks leave the next one less "
        "than a page; remove --prefill-decode-interval or let --page-size be 1.",
    ),
    RecurrentRule(
        lambda cfg: bool(cfg.enable_mixed_chunk) and int(cfg.page_size or 1) > 1,
        "keeps a state under fewer tokens than it has seen where a chunk ends within a page; remove "
        "--enable-mixed-chunk or let --page-size be 1.",
        MIXED,
    ),
    # A round that is in flight at a turn's end advances the session's state past the tokens that it keeps.
    RecurrentRule(
        lambda cfg: bool(cfg.enable_streaming_session),
        "has not been shown to keep a session's state from turn to turn; remove --enable-streaming-session.",
    ),
)
"""What is refused of a server whose target has recurrent layers."""


def check_recurrent_target(model_config: Any) -> None:
    """Refuse a target whose recurrent layers no kernel verifies as a tree.

    Args:
        model_config: SGLang's `ModelConfig` of the target.

    Raises:
        DDTreeConfigError: it has recurrent layers, and its architecture is not one of `SERVED`.
    """
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch

    name = (model_config.hf_config.architectures or ["this target"])[0]
    is_recurrent = mambaish_config(model_config) is not None or model_config.attention_arch == AttentionArch.SSM
    if is_recurrent and name not in SERVED:
        why = NOT_SERVED.get(name, f"whose states have not been shown to follow a tree; {_CHAIN}")
        raise DDTreeConfigError(
            f"{ALGORITHM} serves targets with recurrent layers of the architectures {', '.join(SERVED)}, got {name}, "
            f"{why}."
        )


def check_recurrent_arguments(model_config: Any, cfg: Any) -> None:
    """Under a target with recurrent layers, refuse what advances a state along a chain alone.

    Args:
        model_config: SGLang's `ModelConfig` of the target.
        cfg: the resolved arguments.

    Raises:
        DDTreeConfigError: the first rule that is broken; or convolutions keep their inputs in another type than the
            model's, which a tree's nodes do not go through.
    """
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.mamba_utils import mamba2_state_dtype

    if mambaish_config(model_config) is None:
        return
    name = (model_config.hf_config.architectures or ["this target"])[0]
    for rule in RECURRENT_RULES:
        if name in rule.architectures and rule.broken(cfg):
            raise DDTreeConfigError(f"{ALGORITHM} for {name}, which has recurrent layers, {rule.message}")
    kept = mamba2_state_dtype(model_config.hf_config).conv
    if kept != model_config.dtype:
        raise DDTreeConfigError(
            f"{ALGORITHM} needs inputs of convolutions kept in the model's dtype, {model_config.dtype}, got {kept}: "
            "plain decoding rounds each token's input to it, a tree's nodes read one another's as they are. Set "
            f"SGLANG_MAMBA_CONV_DTYPE={str(model_config.dtype).removeprefix('torch.')}, or --dtype "
            f"{str(kept).removeprefix('torch.')}."
        )
