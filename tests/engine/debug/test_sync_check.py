"""The sync check is on for the round alone, and gives back what was set before, also after an error."""

from __future__ import annotations

import pytest
import torch

from ddtree_sglang.engine.debug.sync_check import forbid_sync, permit_sync


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What CUDA was told, in order; the mode before is 1 (warn)."""
    told: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", told.append)
    return told


def test_error_mode_holds_inside_and_the_old_one_comes_back(modes: list[object]) -> None:
    with forbid_sync(True):
        assert modes == ["error"]
    assert modes == ["error", 1]


def test_old_mode_comes_back_after_an_error(modes: list[object]) -> None:
    with pytest.raises(RuntimeError), forbid_sync(True):
        raise RuntimeError
    assert modes == ["error", 1]


def test_inactive_it_touches_nothing(modes: list[object]) -> None:
    with forbid_sync(False):
        pass
    assert modes == []


def test_a_stretch_that_may_wait_is_let_wait_and_the_rest_is_not(modes: list[object]) -> None:
    with forbid_sync(True):
        with permit_sync():
            assert modes == ["error", 1]
        assert modes == ["error", 1, "error"]
    assert modes == ["error", 1, "error", 1]


def test_nothing_is_permitted_where_nothing_is_forbidden(modes: list[object]) -> None:
    with forbid_sync(True):
        pass
    with forbid_sync(False), permit_sync():
        assert modes == ["error", 1]
    assert modes == ["error", 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_host_read_inside_raises() -> None:
    value = torch.ones(1, device="cuda")
    with pytest.raises(RuntimeError, match="synchroniz"), forbid_sync(True):
        value.item()
    assert value.item() == 1
