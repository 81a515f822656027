"""In the HTTP server's process: outputs that wait for their reader stay apart.

SGLang's `TokenizerManager` hands a stream's reader all outputs that have come since it last looked, as one
(tokenizer_manager.py, `_stream_one_response`). In plain decoding there is seldom more than one; the tokens of a round
arrive together. So the reader gets a stand-in for the request's state, to which outputs are moved one at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ddtree_sglang.engine.spec import serves_ddtree

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import ReqState

Output = dict[str, Any]


def read_one_at_a_time(
    original: Callable[..., AsyncIterator[Output]], manager: Any, obj: Any, state: ReqState, request: Any = None
) -> AsyncIterator[Output]:
    """AROUND hook on `TokenizerManager._stream_one_response`: under DDTREE a stream has an output for each message."""
    if not getattr(obj, "stream", False) or not serves_ddtree():
        return original(manager, obj, state, request)
    reader = ReaderState(state)
    return _read(original(manager, obj, reader, request), reader)


async def _read(outputs: AsyncIterator[Output], reader: ReaderState) -> AsyncIterator[Output]:
    async for output in outputs:
        yield output
        reader.offer()


class ReaderState:
    """A request's state as its reader sees it: `out_list` has one output at most. All else is the request's."""

    def __init__(self, state: ReqState) -> None:
        self.out_list: list[Output] = []
        self.finished = False
        self.event = asyncio.Event()
        self._state = state
        self._waiting: deque[WaitingOutput] = deque()
        state.event = _Arrivals(self)
        self.take()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def take(self) -> None:
        """Take what has arrived, and offer the oldest."""
        state = self._state
        for output in state.out_list:
            self._waiting.append(WaitingOutput(output, state))
        state.out_list = []
        self.offer()

    def offer(self) -> None:
        """Offer the oldest output, unless one is offered already or there is none."""
        if self.out_list or not self._waiting:
            return
        self.out_list = [self._waiting.popleft().output(self._state)]
        self.finished = self._state.finished and not self._waiting
        self.event.set()


class _Arrivals(asyncio.Event):
    """What SGLang sets when outputs have arrived."""

    def __init__(self, reader: ReaderState) -> None:
        super().__init__()
        self._reader = reader

    def set(self) -> None:
        """Move them to the reader, before the next message is handled."""
        self._reader.take()


@dataclass
class WaitingOutput:
    """An output that may share its lists and its text with later ones: how much of them is its own."""

    kept: Output
    state: ReqState
    num_chars: int = field(init=False)
    lengths: dict[str, int] = field(init=False)  # of what is shared, by key; those of `meta_info` have its name before

    def __post_init__(self) -> None:
        self.num_chars = len(self.state.get_text())
        meta = self.kept.get("meta_info", {})
        self.lengths = {key: len(value) for key, value in meta.items() if isinstance(value, list)}
        self.num_ids = len(self.kept.get("output_ids", ()))

    def output(self, state: ReqState) -> Output:
        """The output by itself, as it was when it arrived."""
        own = dict(self.kept)
        if "text" in own and own["text"] is None:
            own["text"] = state.get_text()[: self.num_chars]
        if "output_ids" in own:
            own["output_ids"] = own["output_ids"][: self.num_ids]
        if "meta_info" in own:
            cut = {key: own["meta_info"][key][:length] for key, length in self.lengths.items()}
            own["meta_info"] = {**own["meta_info"], **cut}
        return own
