"""Objects of classes of SGLang's models without layers, and what SGLang asks a loaded target for."""

from __future__ import annotations

from importlib import import_module

import torch


def bare(place: str) -> torch.nn.Module:
    """An object of a class of SGLang's models, without layers."""
    module, _, name = place.partition(":")
    made: torch.nn.Module = (found := getattr(import_module(f"sglang.srt.models.{module}"), name)).__new__(found)
    torch.nn.Module.__init__(made)
    return made


def asked_for_states(model: torch.nn.Module) -> None:
    """What SGLang does with a loaded target of a block drafter."""
    from sglang.srt.model_executor.model_runner_components.attention_backend_setup import (
        configure_aux_hidden_state_capture,
    )

    configure_aux_hidden_state_capture(
        model=model,
        eagle_use_aux_hidden_state=False,
        eagle_aux_hidden_state_layer_ids=None,
        dflash_use_aux_hidden_state=True,
        dflash_target_layer_ids=[0, 2],
        is_dspark=False,
    )
