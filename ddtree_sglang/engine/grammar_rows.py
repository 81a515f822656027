"""A grammar's mask meets the rows of the logits where they are, also where these are a part of wider rows.

SGLang's kernel takes the width of the logits for the distance of their rows (kernels/ops/grammar/bitmask_ops.py). Where
a vocabulary is padded, float32 logits are a part of wider rows (layers/logits_processor.py, `_copy_logits_to_buffer`):
of a prefill's requests all but the first would get their masks at another place, and a first token against its grammar.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ddtree_sglang.engine.spec import serves_ddtree


def on_whole_rows(change: Callable[[torch.Tensor], None], logits: torch.Tensor) -> None:
    """`change` of logits `[R, V]`, in place, by way of a copy whose rows are as far apart as they are wide."""
    whole = logits.contiguous()
    change(whole)
    if whole is not logits:
        logits.copy_(whole)


def mask_whole_rows(original: Callable[..., None], mask: Any, logits: torch.Tensor) -> None:
    """AROUND hook on `GrammarMask.apply`, by which a prefill's first tokens are masked."""
    if logits.is_contiguous() or not serves_ddtree():
        original(mask, logits)
    else:
        on_whole_rows(partial(original, mask), logits)
