"""The installed SGLang is the one that the CPU platform was written against."""

from __future__ import annotations

import dataclasses

import pytest

from ddtree_sglang.contract import cpu_platform as contract
from ddtree_sglang.cpu_platform import hooks

pytestmark = pytest.mark.sglang


def test_installed_engine_matches_the_table() -> None:
    assert contract.mismatches() == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"attribute": "no_such_function"}, "does not exist"),
        ({"module": "sglang.no_such_module"}, "does not exist"),
        ({"parameters": ("something", "else")}, "takes"),
    ],
)
def test_drift_is_reported_with_name_and_user(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], word: str
) -> None:
    drifted = dataclasses.replace(contract.REPLACED[0], **change)
    monkeypatch.setattr(contract, "REPLACED", (drifted,))
    (message,) = contract.mismatches()
    assert word in message
    assert "triton_replacements.assign_req_to_token_pool" in message


def test_every_hooked_function_is_in_the_table() -> None:
    table = {f"{entry.module}.{entry.attribute}" for entry in contract.REPLACED}
    assert set(hooks.replacements()) <= table
