"""What SGLang ends behind a stream: the requests of that stream, and no other of the same id.

Two seconds after a stream has ended, stock aborts what is left of it by its id. So a request that is given that id at
once is cut short: it has the tokens that it had, with status 200.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import BackgroundTasks
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import ReqState, TokenizerManager


def abort_own_alone(
    original: Callable[..., BackgroundTasks], manager: TokenizerManager, obj: GenerateReqInput
) -> BackgroundTasks:
    """AROUND hook on `TokenizerManager.create_abort_task`: `obj` is what the stream was asked for."""
    return original(_OfOneStream(manager, obj), obj)


class _OfOneStream:
    """SGLang's tokenizer manager as its task sees it: it knows of the requests of `obj` alone."""

    def __init__(self, manager: TokenizerManager, obj: GenerateReqInput) -> None:
        self._manager, self._obj = manager, obj
        self.abort_request = manager.abort_request

    @cached_property
    def rid_to_state(self) -> dict[str, ReqState]:
        """By their ids, those that have not ended when the task first asks."""
        # SGLang keeps the parts of a batch that it was asked for (managers/io_struct.py, `__getitem__`).
        own = [self._obj] if self._obj.is_single else vars(self._obj).get("_sub_obj_cache", {}).values()
        living = self._manager.rid_to_state
        return {one.rid: living[one.rid] for one in own if one.rid in living and living[one.rid].obj is one}
