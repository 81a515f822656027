"""Who the ingress answers."""

from __future__ import annotations

import pytest

from workers.http.security import ApiKey


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer secretly"])
def test_wrong_or_missing_key_is_turned_away(header: str | None) -> None:
    assert not ApiKey("secret").admits("/v1/models", header)


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "Bearer  secret "])
def test_right_key_passes(header: str) -> None:
    assert ApiKey("secret").admits("/v1/models", header)


def test_health_and_metrics_need_no_key() -> None:
    assert all(ApiKey("secret").admits(path, None) for path in ("/health", "/ready", "/metrics"))


@pytest.mark.parametrize("environment", [{}, {"DDTREE_API_KEY": ""}, {"DDTREE_API_KEY": "\n"}])
def test_without_a_key_everybody_passes_unless_one_was_to_be_there(environment: dict[str, str]) -> None:
    assert ApiKey.from_env(None, environment).admits("/v1/models", None)
    with pytest.raises(ValueError, match="names DDTREE_API_KEY, which holds no key"):
        ApiKey.from_env("DDTREE_API_KEY", environment)


def test_key_is_read_without_the_newline_that_a_file_ends_with() -> None:
    assert ApiKey.from_env("K", {"K": "secret\n"}).admits("/v1/models", "Bearer secret")
