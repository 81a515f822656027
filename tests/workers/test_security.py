"""Who the ingress answers."""

from __future__ import annotations

import pytest

from workers.security import ApiKey


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer secretly"])
def test_wrong_or_missing_key_is_turned_away(header: str | None) -> None:
    assert not ApiKey("secret").admits("/v1/models", header)


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "Bearer  secret "])
def test_right_key_passes(header: str) -> None:
    assert ApiKey("secret").admits("/v1/models", header)


def test_health_and_metrics_need_no_key() -> None:
    assert all(ApiKey("secret").admits(path, None) for path in ("/health", "/ready", "/metrics"))


def test_without_a_key_everybody_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("K", raising=False)
    assert ApiKey.from_env("K").admits("/v1/models", None)
    monkeypatch.setenv("K", "")
    assert not ApiKey.from_env("K").is_set
