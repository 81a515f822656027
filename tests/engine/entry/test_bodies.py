"""A body that a validator falls over is the client's mistake, and says so in its endpoint's form."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError

from ddtree_sglang.engine.entry.bodies import give_each_failure_a_reason, name_what_cannot_be_parsed

REQUEST = Request({"type": "http"})


def solved(raised: Exception | None, request: Any = REQUEST) -> Any:
    async def original(*, request: Any, body: Any) -> Any:
        if raised is not None:
            raise raised
        return request, body

    return asyncio.run(name_what_cannot_be_parsed(original, request=request, body=[]))


def test_a_body_that_is_read_passes() -> None:
    assert solved(None) == (REQUEST, [])


@pytest.mark.parametrize("error", [AttributeError("'list' object has no attribute 'get'"), TypeError("an int")])
def test_what_a_validator_falls_over_is_named(error: Exception) -> None:
    with pytest.raises(RequestValidationError) as refused:
        solved(error)
    assert str(error) in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize("error", [HTTPException(401), RequestValidationError([])])
def test_what_has_a_status_keeps_it(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        solved(error)
    assert raised.value is error


def ended(raised: Exception) -> HTTPException:
    async def original(**_kwargs: Any) -> Any:
        raise raised

    with pytest.raises(HTTPException) as answered:
        asyncio.run(give_each_failure_a_reason(original, values={}))
    return answered.value


def test_what_an_endpoint_raises_has_a_status_and_a_reason() -> None:
    refused, nested, failed = ended(ValueError("no such model")), ended(RecursionError("depth")), ended(KeyError("k"))
    assert (refused.status_code, refused.detail) == (400, "no such model")
    assert (nested.status_code, nested.detail) == (400, "the body is nested too deeply: depth")
    assert (failed.status_code, failed.detail) == (500, "Internal server error: KeyError: 'k'")


def test_a_websocket_has_no_400() -> None:
    with pytest.raises(KeyError):
        solved(KeyError("a"), SimpleNamespace())
