"""Prompts of embeddings in place of tokens: of the target's width, and not in one prefill with prompts of tokens.

Stock makes one tensor of all embeddings of a prefill, which is then read in place of its tokens. A row of another
width ends the server in the first matrix product, and so does a prompt of tokens beside one of embeddings: the tensor
has no rows for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.schedule_policy import PrefillAdder

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_embeddings(request: TokenizedGenerateReqInput, hidden_size: int) -> str | None:
    """Why these `input_embeds` must not reach a scheduler; None where they may.

    Args:
        request: SGLang's `TokenizedGenerateReqInput`.
        hidden_size: width of the target's embedding.
    """
    if request.input_embeds is None:
        return None
    try:
        rows = np.asarray(request.input_embeds, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        return f"input_embeds must be rows of {hidden_size} numbers, got {error}; send one row for each token."
    if rows.ndim != 2 or rows.shape[1] != hidden_size or rows.shape[0] == 0:
        return f"input_embeds must have the shape [tokens, {hidden_size}], got {list(rows.shape)}; use the target's."
    if not (np.abs(rows) <= _FLOAT32_MAX).all():
        return f"input_embeds must be finite numbers of at most {_FLOAT32_MAX:.2g}, got others; check for NaN."
    return None


def keep_embeddings_apart(
    original: Callable[..., Any], adder: PrefillAdder, req: Req, *args: Any, **kwargs: Any
) -> Any:
    """AROUND hook on `PrefillAdder.add_one_req`: a request of the other kind waits for the next prefill.

    Returns:
        SGLang's verdict, or `OTHER`, over which the batch is closed and the request stays in the queue.
    """
    from sglang.srt.managers.schedule_policy import AddReqResult

    # All of them are of the last one's kind.
    last = adder.can_run_list[-1] if adder.can_run_list else req
    is_other_kind = (last.input_embeds is None) != (req.input_embeds is None)
    return AddReqResult.OTHER if is_other_kind else original(adder, req, *args, **kwargs)
