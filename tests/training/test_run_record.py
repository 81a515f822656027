"""What a resumed run may change, and what it is refused for."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.fit.config import TrainingConfig
from ddtree_sglang.training.fit.run_record import check_resumable, data_record

PLAN = TrainingConfig(steps=100, seed=3)


def _conversations(count: int, first: int = 0) -> Conversations:
    """`count` conversations of four tokens, two of them the answer."""
    return Conversations(torch.arange(first, first + 4 * count), torch.arange(count + 1) * 4, torch.full((count,), 2))


def _check(
    plan: TrainingConfig = PLAN,
    conversations: Conversations | None = None,
    percent: int = 5,
    *,
    saved: dict[str, Any] | None = None,
    allow: bool = False,
) -> None:
    held = saved or {"plan": asdict(PLAN), "data": asdict(data_record(_conversations(9), 5))}
    check_resumable(held, plan, conversations or _conversations(9), percent, allow_changes=allow)


def test_the_same_run_and_free_numbers_pass_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    _check()
    _check(replace(PLAN, steps=200, log_every=1, checkpoint_every=7, evaluate_every=9))
    assert capsys.readouterr().out == ""


def test_every_change_is_named_with_its_old_and_new_value() -> None:
    with pytest.raises(ValueError, match=r"rows: 4 -> 8; optimizer: adamw -> muon; seed: 3 -> 4\. .*--allow-changed"):
        _check(replace(PLAN, rows=8, optimizer="muon", seed=4))
    with pytest.raises(ValueError, match=r"data: 9 conversations \w{12} -> 9 conversations \w{12} \(others\)"):
        _check(conversations=_conversations(9, first=1))
    with pytest.raises(ValueError, match=r"9 conversations \w{12} -> 12 conversations \w{12} \(grown by new ones"):
        _check(conversations=_conversations(12))


def test_changes_that_are_asked_for_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _check(replace(PLAN, rows=8), _conversations(12), allow=True)
    rows, data = capsys.readouterr().out.splitlines()
    assert rows == "changed, as allowed: rows: 4 -> 8"
    assert data.startswith("changed, as allowed: data: 9 conversations")


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("percent", [4, 6])
def test_another_split_is_refused_whatever_is_allowed(allow: bool, percent: int) -> None:
    with pytest.raises(ValueError, match=rf"has 5 %, got {percent} %: pass --held-out-percent 5, or another --work"):
        _check(percent=percent, allow=allow)


def test_an_old_checkpoint_says_that_its_data_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    plan = asdict(PLAN)
    del plan["anchor_uncertainty"]  # a number that came later
    _check(conversations=_conversations(12), percent=6, saved={"plan": plan})
    assert "does not say which data and which held-out split" in capsys.readouterr().out
    with pytest.raises(ValueError, match="seed: 3 -> 4"):
        _check(replace(PLAN, seed=4), saved={"plan": plan})
