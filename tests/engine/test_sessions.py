"""What a streaming session keeps of a turn: everything that a round has written, and no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.sessions import keep_written_tokens

PROMPT_LEN = 5


def committed_after(
    algorithm: str, output_len: int, monkeypatch: pytest.MonkeyPatch, is_kept: bool = True, allocated: int = 99
) -> int:
    """As SGLang leaves it: the whole turn, as far as it has slots."""
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm=algorithm))
    kv = SimpleNamespace(kv_committed_len=PROMPT_LEN)
    sessions = SimpleNamespace(slots={"one": SimpleNamespace(kv=kv)})
    req: Any = SimpleNamespace(
        origin_input_ids=list(range(PROMPT_LEN)),
        output_ids=list(range(output_len)),
        session=SimpleNamespace(session_id="one"),
    )

    def original(_sessions: Any, _req: Any) -> bool:
        if is_kept:
            kv.kv_committed_len = min(PROMPT_LEN + output_len, allocated)
        return is_kept

    assert keep_written_tokens(original, sessions, req) is is_kept
    return kv.kv_committed_len


@pytest.mark.parametrize(("output_len", "written"), [(0, 0), (1, 0), (2, 1), (9, 8)])
def test_the_last_token_is_left_to_the_next_turn(
    output_len: int, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert committed_after("DDTREE", output_len, monkeypatch) == PROMPT_LEN + written


def test_never_more_than_sglang_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert committed_after("DDTREE", 9, monkeypatch, allocated=PROMPT_LEN + 3) == PROMPT_LEN + 3


def test_an_aborted_turn_and_other_algorithms_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert committed_after("DDTREE", 4, monkeypatch, is_kept=False) == PROMPT_LEN
    assert committed_after("EAGLE", 4, monkeypatch) == PROMPT_LEN + 4
