"""The hidden states that a request gets back: the target's last layer after its norm, as in plain decoding.

A round captures other states for the drafter, those of the layers that it was trained on, and SGLang's logits processor
hands on one or the other (layers/logits_processor.py, `_get_hidden_states_to_store`). It can keep the final ones beside
them, which its own `--enable-return-aux-hidden-states` switches on; here the server's flag for hidden states does. What
a batch without such a request pays is a reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, get_server_return_hidden_states_mode
from sglang.srt.utils.common import async_h2d

from ddtree_sglang.exceptions import DDTreeConfigError

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


def keep_final_states(model: torch.nn.Module) -> None:
    """Have the target keep its final states if this server returns them; before any of its graphs is captured.

    Raises:
        DDTreeConfigError: it has no logits processor of SGLang's, or several.
    """
    if not get_server_return_hidden_states_mode().need_capture():
        return
    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    if len(processors) != 1:
        raise DDTreeConfigError(
            f"DDTREE returns the hidden states of a target with one logits processor, got {type(model).__name__} with "
            f"{len(processors)}; remove --enable-return-hidden-states / --return-hidden-states-mode."
        )
    processors[0].keep_last_hidden_states = True


def hand_out_prompt_states(batch: ScheduleBatch, logits_output: Any) -> None:
    """Put a prefill's final states where SGLang looks for them, if a request of the batch asks for any.

    A row per prompt token of the forward, or the last one of each request where the server's mode is `last`: SGLang
    counts rows by that mode (batch_result_processor.py, `_append_prefill_hidden_states`).
    """
    states = _take(batch, logits_output)
    if states is None:
        return
    if get_server_return_hidden_states_mode() is CaptureHiddenMode.LAST:
        lengths = async_h2d(batch.extend_lens, dtype=torch.int64, device=states.device)
        states = states.index_select(0, lengths.cumsum(0) - 1)
    else:
        # A graph's next replay would write over its output while the host's copy is on its way.
        states = states.clone()
    logits_output.hidden_states = states


def hand_out_round_states(
    batch: ScheduleBatch,
    logits_output: Any,
    rows: torch.Tensor,  # [B, L] int64, rows of the flat verify batch: the accepted nodes, what follows is not read
    stride: int,  # P, rows that SGLang expects of each request
) -> None:
    """Put a round's final states where SGLang looks for them, if a request of the batch asks for any: `[B * P, H]`.

    Row j of a request is the state at its j-th accepted node, from which the target chose the j-th token that the round
    emits, as in plain decoding.
    """
    states = _take(batch, logits_output)
    if states is None:
        return
    padded = torch.nn.functional.pad(rows, (0, stride - rows.shape[1]))
    logits_output.hidden_states = states.index_select(0, padded.view(-1))


def _take(batch: ScheduleBatch, logits_output: Any) -> torch.Tensor | None:
    """The final states of a forward, taken out of its output together with the drafter's; None if nobody asks.

    What is left in an output stays until the host has read the result, and SGLang copies `hidden_states` to the host.
    """
    states = logits_output.last_hidden_states
    logits_output.last_hidden_states = logits_output.hidden_states = None
    return states if batch.return_hidden_states else None
