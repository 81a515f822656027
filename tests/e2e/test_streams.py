"""Streams token by token: each chunk is one that plain decoding sends, though a round emits several tokens.

The DDTREE server runs with `--speculative-ddtree-stream-tokens`. A plain server joins chunks when its reader is late,
so its chunks are compared as far as it sent them apart.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.asking import PROMPTS, chunks
from tests.e2e.servers import Server
from tests.e2e.stream_cases import FEW, StreamCase, alike, differences

EMOJI = "Answer in emojis only: \N{GRINNING FACE}\N{ROCKET}\N{PILE OF POO} means"


def native(server: Server, prompt: str, **sampling: Any) -> list[dict[str, Any]]:
    params = {"temperature": 0.0, "max_new_tokens": 24, **sampling}
    body = {"text": prompt, "sampling_params": params, "return_logprob": True, "logprob_start_len": -1}
    return chunks(server.url, "/generate", body)


def by_count(sent: list[dict[str, Any]]) -> dict[int, tuple[str, list[int]]]:
    """Text and ids so far, by the number of tokens."""
    return {one["meta_info"]["completion_tokens"]: (one["text"], one["output_ids"]) for one in sent}


@pytest.mark.parametrize("prompt", [*PROMPTS[:3], EMOJI])
def test_every_token_is_a_chunk(prompt: str, plain: Server, ddtree: Server) -> None:
    mine, reference = native(ddtree, prompt), native(plain, prompt)
    assert [one["meta_info"]["completion_tokens"] for one in mine] == list(range(1, len(mine) + 1))
    assert len(mine) == len(mine[-1]["output_ids"])
    ours = by_count(mine)
    assert {count: ours[count] for count in by_count(reference)} == by_count(reference)
    for one in mine:
        tokens = [entry[1] for entry in one["meta_info"]["output_token_logprobs"]]
        assert tokens == one["output_ids"]
        assert (one["meta_info"]["finish_reason"] is None) == (one is not mine[-1])
    assert mine[-1]["meta_info"]["spec_verify_ct"] < len(mine), "rounds must have emitted several tokens"


@pytest.mark.parametrize(
    "sampling", [{"stop": [" the", "was a"]}, {"stream_interval": 4}, {"max_new_tokens": 1}], ids=str
)
def test_what_holds_chunks_back_holds_the_same_back(sampling: dict[str, Any], plain: Server, ddtree: Server) -> None:
    """The beginning of a stop string waits for what follows, and an interval counts tokens."""
    mine, reference = (by_count(native(server, PROMPTS[2], **sampling)) for server in (ddtree, plain))
    assert mine.keys() >= reference.keys()
    assert {count: mine[count] for count in reference} == reference
    if "stream_interval" in sampling:
        assert list(mine) == [1, 5, 9, 13, 17, 21, 24]


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_events_are_plain_decodings(case: StreamCase, plain: Server, ddtree: Server) -> None:
    """One by one, in order, with all that they hold; `test_conformance.py` asks for more of them."""
    expected, mine = alike(plain, ddtree, case)
    assert differences(expected, mine) == []
    assert len(mine) > 8
