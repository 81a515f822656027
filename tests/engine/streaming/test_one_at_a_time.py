"""A stream's reader gets each output by itself, as it was when it came, however late it looks.

The loop that hands outputs to readers is SGLang's own, with a stand-in for the manager around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.streaming.one_at_a_time import read_one_at_a_time

pytestmark = pytest.mark.sglang

WORDS = ("one ", "two ", "three ", "four ", "five")


@pytest.fixture(autouse=True)
def _under_ddtree(monkeypatch: pytest.MonkeyPatch) -> None:
    import sglang.srt.runtime_context as context

    monkeypatch.setattr(context, "get_spec", lambda: SimpleNamespace(speculative_algorithm="DDTREE"))


class Manager:
    """What the loop asks of its manager."""

    def __init__(self, *, incremental: bool) -> None:
        self.incremental_streaming_output = incremental
        self.request_logger = SimpleNamespace(log_finished_request=lambda *_, **__: None)
        self.request_metrics_exporter_manager = SimpleNamespace(exporter_enabled=lambda: False)
        self.rid_to_state: dict[str, Any] = {}

    def _coalesce_streaming_chunks(self, *args: Any) -> Any:
        from sglang.srt.managers.tokenizer_manager import TokenizerManager

        return TokenizerManager._coalesce_streaming_chunks(self, *args)  # type: ignore[arg-type]

    async def _handle_abort_finish_reason(self, *args: Any) -> Any:
        from sglang.srt.managers.tokenizer_manager import TokenizerManager

        return await TokenizerManager._handle_abort_finish_reason(self, *args)  # type: ignore[arg-type]

    def _release_lora_once(self, state: Any) -> None:
        return None


def new_state(stream: bool = True) -> Any:
    from sglang.srt.managers.tokenizer_manager import ReqState

    times = SimpleNamespace(response_sent_to_client_time=1.0)
    obj = SimpleNamespace(stream=stream, rid="a", background=False)
    return ReqState([], False, asyncio.Event(), obj, time_stats=times)  # type: ignore[arg-type]


def arrive(state: Any, word: str, token: int, *, incremental: bool, last: bool) -> None:
    """One message, as `TokenizerManager._handle_batch_output` files it."""
    state.append_text(word)
    state.output_ids.append(token)
    state.output_token_logprobs_val.append(-token / 2)
    reason = {"type": "length"} if last else None
    state.finished = last
    logprobs = state.output_token_logprobs_val[-1:] if incremental else state.output_token_logprobs_val
    meta = {"finish_reason": reason, "completion_tokens": len(state.output_ids), "output_token_logprobs": logprobs}
    whole = state.get_text() if last else None
    state.out_list.append(
        {
            "text": word if incremental else whole,
            "output_ids": [token] if incremental else state.output_ids,
            "meta_info": meta,
        }
    )
    state.event.set()


def read(
    bursts: Sequence[int], *, incremental: bool = False, hooked: bool = True, slow: bool = False, early: int = 0
) -> list[dict[str, Any]]:
    """The outputs that a reader sees when messages come in bursts; `early` of them before it reads."""
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    async def run() -> list[dict[str, Any]]:
        manager, state = Manager(incremental=incremental), new_state()
        messages = [(word, 10 + index, index == len(WORDS) - 1) for index, word in enumerate(WORDS)]

        def deliver(count: int) -> None:
            for _ in range(count):
                word, token, last = messages.pop(0)
                arrive(state, word, token, incremental=incremental, last=last)

        deliver(early)
        original = unwrap(TokenizerManager._stream_one_response)
        if hooked:
            outputs: Any = read_one_at_a_time(original, manager, state.obj, state)  # type: ignore[arg-type]
        else:
            outputs = original(manager, state.obj, state)  # type: ignore[arg-type]

        async def feed() -> None:
            for count in bursts:
                deliver(min(count, len(messages)))
                await asyncio.sleep(0)

        feeding = asyncio.ensure_future(feed())
        seen = []
        async for output in outputs:
            # What is written to the client is written now.
            seen.append({**output, "output_ids": list(output["output_ids"]), "meta_info": dict(output["meta_info"])})
            seen[-1]["meta_info"]["output_token_logprobs"] = list(output["meta_info"]["output_token_logprobs"])
            if slow:
                await asyncio.sleep(0.01)
        await feeding
        assert not messages
        return seen

    return asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(("bursts", "early"), [([5], 0), ([2, 3], 0), ([1, 3, 1], 0), ([4], 1), ([1] * 5, 0)])
def test_each_output_is_read_by_itself(bursts: list[int], early: int, slow: bool, incremental: bool) -> None:
    seen = read(bursts, incremental=incremental, slow=slow, early=early)
    texts = list(WORDS) if incremental else ["".join(WORDS[: end + 1]) for end in range(len(WORDS))]
    assert [output["text"] for output in seen] == texts
    ids = [10, 11, 12, 13, 14]
    assert [output["output_ids"] for output in seen] == [
        ids[end : end + 1] if incremental else ids[: end + 1] for end in range(5)
    ]
    logprobs = [[-token / 2 for token in output["output_ids"]] for output in seen]
    assert [output["meta_info"]["output_token_logprobs"] for output in seen] == logprobs
    assert [output["meta_info"]["completion_tokens"] for output in seen] == [1, 2, 3, 4, 5]
    assert [output["meta_info"]["finish_reason"] is None for output in seen] == [True] * 4 + [False]


@pytest.mark.parametrize("incremental", [False, True])
def test_sglang_alone_joins_what_arrives_together(incremental: bool) -> None:
    assert len(read([5], incremental=incremental, hooked=False)) == 1


def test_an_abort_is_read_after_what_came_before() -> None:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    async def run() -> list[Any]:
        state, manager = new_state(), Manager(incremental=False)
        manager.rid_to_state["a"] = state
        original = unwrap(TokenizerManager._stream_one_response)
        outputs: Any = read_one_at_a_time(original, manager, state.obj, state)  # type: ignore[arg-type]
        arrive(state, "one ", 10, incremental=False, last=False)
        reason = {"type": "abort", "status_code": 400, "message": "why"}
        state.finished = True
        state.out_list.append({"text": "one ", "output_ids": [10], "meta_info": {"finish_reason": reason}})
        state.event.set()
        return [output["meta_info"]["finish_reason"] async for output in outputs]

    seen = asyncio.run(asyncio.wait_for(run(), 20))
    assert [reason and reason["type"] for reason in seen] == [None, "abort"]


@pytest.mark.parametrize(("algorithm", "stream"), [("DFLASH", True), ("DDTREE", False)])
def test_others_are_left_alone(algorithm: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import sglang.srt.runtime_context as context

    monkeypatch.setattr(context, "get_spec", lambda: SimpleNamespace(speculative_algorithm=algorithm))
    state = new_state(stream)
    event = state.event
    assert read_one_at_a_time(lambda *_: "stock", None, state.obj, state) == "stock"  # type: ignore[arg-type,return-value,comparison-overlap]
    assert state.event is event
