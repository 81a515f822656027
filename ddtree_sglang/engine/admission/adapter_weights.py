"""A LoRA adapter is loaded on all ranks, or on none, and only if its matrices fit where they will be copied to.

SGLang reads an adapter's files when it is loaded, and looks at shapes and names when a batch first needs it: an
assertion in the middle of scheduling (lora/mem_pool.py), over which the server ends, later and for somebody else. So
the copying is done once at the start, into matrices without memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from ddtree_sglang.engine.admission.weight_updates import UpdateFailed, agree

_MATRICES = ("A_buffer", "B_buffer")  # by module, a list with one of each layer
_EMBEDDINGS = (
    "embedding_A_buffer",
    "embedding_B_buffer",
    "lm_head_A_buffer",
    "lm_head_B_buffer",
    "new_embeddings_buffer",
)


def load_where_it_fits(original: Callable[..., Any], lora_manager: Any, lora_ref: Any) -> Any:
    """AROUND hook on `LoRAManager.load_lora_adapter`: a failure on one rank is one on all, and leaves nothing."""
    result = original(lora_manager, lora_ref)
    return _agreed(lora_manager, lora_ref, result.error_message if not result.success else None, result)


def load_tensors_where_they_fit(original: Callable[..., Any], worker: Any, request: Any) -> Any:
    """AROUND hook on `TpModelWorker.load_lora_adapter_from_tensors`: as above, from reading a rank's payload on."""
    result = None
    try:
        result = original(worker, request)
        reason = result.error_message if not result.success else None
    except Exception as error:  # noqa: BLE001
        # Unpickling what a client sent may raise anything.
        reason = f"{type(error).__name__}: {error}"
    return _agreed(worker.model_runner.lora_manager, request.to_ref(), reason, result)


def _agreed(lora_manager: Any, lora_ref: Any, reason: str | None, result: Any) -> Any:
    """The result, if all ranks could load the adapter and it fits on each."""
    reason = _misfit(lora_manager, lora_ref) if reason is None else reason
    try:
        agree(reason, "loaded")
    except UpdateFailed as error:
        _forget(lora_manager, lora_ref)
        return lora_manager.create_lora_update_result(success=False, error_message=reason or str(error))
    return result


def check_adapters_of_the_start(_result: None, lora_manager: Any) -> None:
    """AFTER hook on `LoRAManager.init_memory_pool`: adapters of --lora-paths are loaded before there is a pool.

    Raises:
        ValueError: one does not fit.
    """
    for lora_ref in lora_manager.lora_refs.values():
        reason = _misfit(lora_manager, lora_ref)
        if reason is not None:
            raise ValueError(f"adapter {lora_ref.lora_name} of --lora-paths does not fit the model: {reason}")


def _misfit(lora_manager: Any, lora_ref: Any) -> str | None:
    """Why the adapter cannot be copied into the pool; None if it can, or where there is no pool yet."""
    pool = getattr(lora_manager, "memory_pool", None)
    if pool is None:
        return None
    stand_in = copy.copy(pool)
    for name in _MATRICES:
        matrices = {module: [_without_memory(one) for one in layers] for module, layers in getattr(pool, name).items()}
        vars(stand_in)[name] = matrices
    for name in _EMBEDDINGS:
        vars(stand_in)[name] = {module: _without_memory(one) for module, one in getattr(pool, name).items()}
    try:
        stand_in.load_lora_weight_to_buffer(
            lora_ref.lora_id,
            0,
            lora_manager.loras[lora_ref.lora_id],
            lora_manager.lora_modules,
            lora_manager.embed_tokens_module,
            lora_manager.lm_head_module,
        )
    except Exception as error:  # noqa: BLE001
        # An assertion, a name without a module, a matrix without its partner, a number of dimensions: a client's files.
        return f"{type(error).__name__}: {error}"
    return None


def _without_memory(matrix: torch.Tensor) -> torch.Tensor:
    """One slot of a buffer `[slots, ...]`, on the device that has shapes alone."""
    return torch.empty((1, *matrix.shape[1:]), dtype=matrix.dtype, device="meta")


def _forget(lora_manager: Any, lora_ref: Any) -> None:
    """Undo what loading an adapter has noted; no slot of the pool has it yet."""
    known = lora_manager.lora_refs.pop(lora_ref.lora_id, None)
    lora_manager.configs.pop(lora_ref.lora_id, None)
    lora_manager.loras.pop(lora_ref.lora_id, None)
    if known is not None:
        lora_manager.num_pinned_loras -= int(known.pinned)
