"""What the target's last state is after each token of its vocabulary alone, computed once and kept in a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOKENS_AT_ONCE = 512


@torch.inference_mode()
def token_states(target: Any, first_token: int, path: Path, fingerprint: str) -> Tensor:
    """States [V, H] float32 behind the last norm, each after two tokens: `first_token`, and the one of the row.

    A first token attends to itself alone, which states of later ones do not resemble, so it is not the row's.

    Args:
        target: a Hugging Face causal language model.
        path: file that keeps the states, in bfloat16.
        fingerprint: the target's (`target_fingerprint`).

    Raises:
        ValueError: the file is of another target.
    """
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if (kept["target"], kept["first_token"]) != (fingerprint, first_token):
            raise ValueError(f"{path} must hold states of this target, it has another's: remove it.")
        return kept["states"].float()
    vocab_size, device = target.config.vocab_size, next(target.parameters()).device
    started, parts = time.monotonic(), []
    for ids in torch.arange(vocab_size, device=device).split(TOKENS_AT_ONCE):
        rows = torch.stack((torch.full_like(ids, first_token), ids), dim=1)
        parts.append(target.model(input_ids=rows, use_cache=False).last_hidden_state[:, 1].to(torch.bfloat16).cpu())
    # Some tokens stand in no text, and a state of theirs may overflow.
    states = torch.cat(parts).nan_to_num(posinf=0.0, neginf=0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"states": states, "target": fingerprint, "first_token": first_token}, partial)
    partial.replace(path)
    print(f"states after {vocab_size} tokens, {time.monotonic() - started:.0f} s", flush=True)
    return states.float()
