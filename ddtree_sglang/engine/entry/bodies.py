"""Bodies that a model's validators fall over: a 400 that says what was wrong, not a plain-text 500."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any


async def name_what_cannot_be_parsed(original: Callable[..., Awaitable[Any]], *, request: Any, **kwargs: Any) -> Any:
    """AROUND hook on FastAPI's `solve_dependencies`, which reads a body into its model before an endpoint is called.

    SGLang's validators that run before pydantic's (entrypoints/openai/protocol.py) call `.get` of whatever was sent:
    `[]`, `null` or `"response_format": 1` raise AttributeError, which FastAPI takes for the server's own.

    Raises:
        RequestValidationError: SGLang's handler answers with a 400 in its endpoint's form.
    """
    from fastapi import HTTPException, Request
    from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError

    try:
        return await original(request=request, **kwargs)
    except (HTTPException, RequestValidationError, WebSocketRequestValidationError):
        raise
    except Exception as error:
        if not isinstance(request, Request):
            raise
        message = f"the body has a value of a kind that is not expected there: {type(error).__name__}: {error}"
        raise RequestValidationError([{"type": "value_error", "loc": ("body",), "msg": message}]) from error
