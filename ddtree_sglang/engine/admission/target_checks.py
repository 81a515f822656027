"""Can a tree be verified exactly on this target? Answered once its configuration is read, and again when it is loaded.

A backend may take a mask and leave it unused, or cut a window by a node's index instead of its depth; some layers keep
a state that only a chain can advance. Each of these gives wrong tokens without an error, so what has not been shown
to be exact is refused by name.
"""

from __future__ import annotations

from typing import Any

from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND
from ddtree_sglang.engine.admission.cache_types import check_cache_type
from ddtree_sglang.engine.admission.recurrent_checks import STATE_BACKEND_CLASSES, check_recurrent_target
from ddtree_sglang.engine.attention_layers import window_sizes
from ddtree_sglang.engine.spec import ALGORITHM
from ddtree_sglang.exceptions import DDTreeConfigError

WINDOW_BACKENDS = ("fa3", "flashinfer", "triton", ATTENTION_BACKEND)
"""Those on which a sliding window ends at each node's position: FA3 expands it per node (flashattention_backend.py,
`_init_sliding_window_attn_spec_metadata`), ours reads positions, and on Triton and FlashInfer the window is part of a
mask (engine/stages/window_masks.py, engine/stages/flashinfer_windows.py)."""

ONE_WINDOW_BACKENDS = ("flashinfer", "triton")
"""Those that keep one table of keys for all layers with a window, as long as the server's."""

PAGED_PREFILLS = "SGLANG_FLASHINFER_USE_PAGED"
"""SGLang's environment variable for prefills on FlashInfer that read all keys from the pool."""

LATENT_BACKENDS = ("fa3", "triton")
"""Those that honour a tree's mask where keys and values are one latent row for all heads: Triton's kernel is the one of
other targets, FA3 attends to prefix and nodes apart as there. FlashInfer drops the mask (flashinfer_mla_backend.py,
`call_begin_forward`)."""

WIDTH_BACKENDS = ("fa3", "triton")
"""Those that read values of another width than keys. FlashInfer's wrappers are planned with one width for both, and the
CPU platform's backend has one for both, too."""

BACKEND_CLASSES = ("DDTreeCpuAttnBackend", "FlashAttentionBackend", "FlashInferAttnBackend", "TritonAttnBackend")
"""Of a target whose layers all attend in the same way. For others SGLang puts a backend of its own around these
(layers/attention/attention_registry.py, `attn_backend_wrapper`), such as MiniMax-M3's for its sparse layers. By name,
because a module of a backend needs the libraries of its GPU."""

NOT_SHOWN = {
    "Glm5NextForConditionalGeneration": "whose layers are KDA, which takes a tree, and latent attention behind an "
    "indexer, which does not",
    "InklingForConditionalGeneration": "whose layers convolve keys, values and outputs with those of tokens before",
    "KimiK3LinearForCausalLM": "for which SGLang chooses no way to keep states in its prefix cache, as it does for "
    "KimiK3ForConditionalGeneration",
    "LagunaForCausalLM": "whose class tells SGLang of no windows, and has one token less in them than it is told of",
    "MiniMaxM3SparseForConditionalGeneration": "whose sparse layers pick blocks of keys in a backend without masks",
    "Qwen4ExpForConditionalGeneration": "which reads the tokens before one by their place, where a tree has siblings",
}
"""Classes that SGLang's chain serves, and what of each no tree has been shown with; tests/support/others.py has all."""

NOT_HANDED_OUT = ("Cosmos3ForConditionalGeneration", "Qwen3VLForConditionalGeneration")
"""Classes that ask their layers for states by a method that these lack, so that SGLang's own chain ends over it, too
(models/qwen3_vl.py, `set_dflash_layers_to_capture`). The layers of Qwen3-VL's mixtures of experts have it."""

_CHAIN = "use --speculative-algorithm DFLASH, whose chain SGLang supports there"


def check_loaded_target(runner: Any) -> None:
    """`check_target` of a loaded model's runner: only the model knows for certain whether a layer has a window.

    Raises:
        DDTreeConfigError: as `check_target`; the model keeps no LM head where SGLang's DFLASH looks for it, or hands
            no layer's states to a drafter; or it has windows that a backend would misplace.
    """
    from sglang.srt.runtime_context import attention_backends

    check_target(runner.model_config, runner.sliding_window_size, attention_backends())
    _check_windows(runner, attention_backends())
    if getattr(runner.model, "lm_head", None) is None:
        raise DDTreeConfigError(
            f"{ALGORITHM} drafts through the target's LM head, got {type(runner.model).__name__}, which has none at "
            "its top (`model.lm_head`); use a target whose class in SGLang keeps it there, or a server without "
            f"{ALGORITHM}."
        )
    _check_layers_are_handed_out(runner.model)
    _check_adapters(runner)


def _check_layers_are_handed_out(model: Any) -> None:
    """SGLang asks the model for its layers' states by this method (attention_backend_setup.py), later and with less."""
    if not hasattr(model, "set_dflash_layers_to_capture"):
        raise DDTreeConfigError(
            f"{ALGORITHM} drafts from states of the target's layers, got {type(model).__name__}, whose class in SGLang "
            f"hands none to a drafter (set_dflash_layers_to_capture); use a server without {ALGORITHM}."
        )


def _check_adapters(runner: Any) -> None:
    manager = runner.lora_manager
    if manager is not None and manager.lora_backend.is_moe_lora:
        raise DDTreeConfigError(
            f"{ALGORITHM} does not support LoRA adapters of experts yet, got --lora-target-modules that name some of "
            f"{type(runner.model).__name__}'s; leave them out, or {_CHAIN}."
        )


def _check_windows(runner: Any, backends: tuple[Any, ...]) -> None:
    """Refuse windows that SGLang does not know of, and several lengths where a backend has one mask for all.

    And a window of the token alone, which SGLang's own code takes for none in places.
    """
    own = runner.sliding_window_size
    name, found = type(runner.model).__name__, window_sizes(runner.model)
    if own == 0 or 0 in found:
        raise DDTreeConfigError(
            f"{ALGORITHM} needs sliding windows of two tokens at least, got one in {name}; {_CHAIN}."
        )
    # Its class tells SGLang of none (get_attention_sliding_window_size), and a backend prepares none for a tree.
    if not own and found:
        raise DDTreeConfigError(
            f"{ALGORITHM} needs sliding windows that SGLang knows of, got {sorted(found)} in layers of {name} and none "
            f"for the server; remove --disable-hybrid-swa-memory, or {_CHAIN}."
        )
    masking = ", ".join(sorted({str(one) for one in backends if one in ONE_WINDOW_BACKENDS}))
    if not own or not masking:
        return
    if not found <= {own}:
        raise DDTreeConfigError(
            f"{ALGORITHM} needs sliding windows of one length on {masking}, got "
            f"{sorted(found)} in {name}, and {own} for the server; set --attention-backend fa3 on a GPU that "
            "has it."
        )


def check_target(model_config: Any, sliding_window: int | None, backends: tuple[Any, ...]) -> None:
    """Refuse a target on which a tree is not verified exactly.

    Args:
        model_config: SGLang's `ModelConfig` of the target.
        sliding_window: tokens, None where no layer has one (configs name windows that are switched off).
        backends: the attention backends of prefill and decode.

    Raises:
        DDTreeConfigError: a class of `NOT_SHOWN` or `NOT_HANDED_OUT`, recurrent layers that no tree was shown on, a
            rotation that is one for a whole forward, sparse attention, attention in chunks, a window on a backend that
            does not place it per node or leaves it out of a prefill, latent attention on one that drops the mask, or
            values of another width than keys on one that has a width for both.
    """
    from sglang.srt.configs.model_config import AttentionArch, is_deepseek_dsa

    name = (model_config.hf_config.architectures or ["this target"])[0]
    _check_class(name)
    check_recurrent_target(model_config)
    _check_rotation(model_config, name)
    if is_deepseek_dsa(model_config.hf_config):
        raise DDTreeConfigError(
            f"{ALGORITHM} needs a target whose layers see every key before a node, got {name} with an indexer that "
            f"picks some (DSA), whose backends take no tree; {_CHAIN}."
        )
    unmasked = sorted({str(one) for one in backends if one not in LATENT_BACKENDS})
    if model_config.attention_arch == AttentionArch.MLA and unmasked:
        raise DDTreeConfigError(
            f"{ALGORITHM} needs an attention backend that honours a tree's mask with latent attention (MLA), one of "
            f"{list(LATENT_BACKENDS)}, got {', '.join(unmasked)} for {name}; set --attention-backend triton or, on a "
            "GPU that has it, fa3."
        )
    _check_widths(model_config, name, backends)
    # MiMo-V2 states a number, and none of its layers reads it.
    is_in_chunks = model_config.is_local_attention_model or not model_config.is_hybrid_swa
    if model_config.attention_chunk_size is not None and is_in_chunks:
        raise DDTreeConfigError(
            f"{ALGORITHM} does not support attention in chunks, got {name} with chunks of "
            f"{model_config.attention_chunk_size}; {_CHAIN}."
        )
    _check_window_backends(name, sliding_window, backends)


def _check_widths(model_config: Any, name: str, backends: tuple[Any, ...]) -> None:
    from sglang.srt.configs.model_config import AttentionArch

    wrong = sorted({str(one) for one in backends if one not in WIDTH_BACKENDS})
    if model_config.attention_arch == AttentionArch.MHA and model_config.has_asymmetric_kv and wrong:
        raise DDTreeConfigError(
            f"{ALGORITHM} needs an attention backend that reads values of another width than keys, one of "
            f"{list(WIDTH_BACKENDS)}, got {', '.join(wrong)} for {name}; set --attention-backend triton or, on a GPU "
            "that has it, fa3. Keys in fp8 (--kv-cache-dtype) are not taken by triton, nor those of a quantized "
            "checkpoint by fa3."
        )


def _check_window_backends(name: str, sliding_window: int | None, backends: tuple[Any, ...]) -> None:
    """Refuse windows on a backend that would misplace them, and on FlashInfer where a prefill would leave them out.

    Its wrapper for a prefill's own keys is planned without a window (flashinfer_backend.py, `forward_extend`): a prompt
    that is prefilled in one go is attended to as a whole, one behind a prefix by tiles of the kernel.
    """
    from sglang.srt.environ import envs

    wrong = sorted({str(one) for one in backends if one not in WINDOW_BACKENDS})
    # An own window may be as long as the context, and still the backend's layer is the sliding one.
    if sliding_window is not None and wrong:
        raise DDTreeConfigError(
            f"{ALGORITHM} needs an attention backend that places a sliding window per node, one of "
            f"{list(WINDOW_BACKENDS)}, got {', '.join(wrong)} for {name} with a window of {sliding_window}; set "
            "--attention-backend triton or, on a GPU that has it, fa3."
        )
    if sliding_window is not None and "flashinfer" in backends and not envs.SGLANG_FLASHINFER_USE_PAGED.get():
        raise DDTreeConfigError(
            f"{ALGORITHM} needs prefills that keep to a sliding window, got flashinfer for {name} with a window of "
            f"{sliding_window}, which SGLang leaves out there; set {PAGED_PREFILLS}=1, or --attention-backend triton."
        )


def _check_class(name: str) -> None:
    if name in NOT_SHOWN:
        raise DDTreeConfigError(f"{ALGORITHM} has not been run with {name}, {NOT_SHOWN[name]}; {_CHAIN}.")
    if name in NOT_HANDED_OUT:
        raise DDTreeConfigError(
            f"{ALGORITHM} drafts from states of the target's layers, got {name}, whose class in SGLang asks for them "
            f"by a method that its layers lack (set_dflash_layers_to_capture); use a server without {ALGORITHM}."
        )


def _check_rotation(model_config: Any, name: str) -> None:
    """Refuse LongRoPE beyond the positions of its short factors: SGLang rotates all of a forward as its furthest token.

    So a tree's root and its nodes would be rotated otherwise than in plain decoding (layers/rotary_embedding/
    rope_variant.py, `Phi3LongRoPEScaledRotaryEmbedding`), and so is a request beside a longer one.
    """
    config = model_config.hf_config.get_text_config()
    rotation = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "longrope" not in (rotation.get("rope_type"), rotation.get("type")):
        return
    short = rotation.get("original_max_position_embeddings") or config.original_max_position_embeddings
    if int(model_config.context_len) > int(short):
        raise DDTreeConfigError(
            f"{ALGORITHM} needs each token rotated by its own position, got {name} with LongRoPE, which SGLang rotates "
            f"otherwise once a token of a forward is past {short}; set --context-length {short}."
        )


def check_target_backend(runner: Any) -> None:
    """Refuse a target some of whose layers attend elsewhere than in a backend that honours a tree's mask.

    Args:
        runner: the target's model runner, its attention backend built.

    Raises:
        DDTreeConfigError: the class of the backend is not one of `BACKEND_CLASSES`, nor a pair of those, nor such a
            one beside one of `STATE_BACKEND_CLASSES`; or as `check_cache_type`.
    """
    parts = _parts(runner.attn_backend)
    for one in parts:
        if type(one).__name__ not in (*BACKEND_CLASSES, *STATE_BACKEND_CLASSES):
            name = (runner.model_config.hf_config.architectures or ["this target"])[0]
            raise DDTreeConfigError(
                f"{ALGORITHM} needs a target whose layers all use one attention backend with tree masks, got {name}, "
                f"for which SGLang builds {type(one).__name__}; {_CHAIN}."
            )
    check_cache_type(runner, parts)


def _parts(backend: Any) -> tuple[Any, ...]:
    """The two of a pair for prefill and decode (layers/attention/hybrid_attn_backend.py), or the one.

    With those of recurrent layers, which attend beside it (layers/attention/hybrid_linear_attn_backend.py).
    """
    if type(backend).__name__ in ("HybridLinearAttnBackend", "ShortConvHybridAttnBackend"):
        return (*_parts(backend.full_attn_backend), backend.linear_attn_backend)
    if type(backend).__name__ != "HybridAttnBackend":
        return (backend,)
    return (backend.prefill_backend, backend.decode_backend)
