"""What SGLang's validators and endpoints raise: a status and a reason in place of a 500 in plain text."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger(__name__)


async def give_each_failure_a_reason(original: Callable[..., Awaitable[Any]], **kwargs: Any) -> Any:
    """AROUND hook on FastAPI's `run_endpoint_function`: what an endpoint raises has a status and a reason.

    SGLang's endpoints make a ValueError a 400, most of them; the others, and other exceptions, are a 500 in plain text.

    Raises:
        HTTPException: SGLang's handler answers in its endpoint's form.
    """
    from fastapi import HTTPException
    from fastapi.exceptions import RequestValidationError

    try:
        return await original(**kwargs)
    except (HTTPException, RequestValidationError):
        raise
    except Exception as error:
        raise as_http(error) from error


def as_http(error: Exception) -> Exception:
    """The exception that SGLang's handler of HTTP errors answers with a reason."""
    from fastapi import HTTPException

    if isinstance(error, ValueError):
        return HTTPException(400, str(error))
    if isinstance(error, RecursionError):
        return HTTPException(400, f"the body is nested too deeply: {error}")
    logger.exception("an endpoint raised")
    return HTTPException(500, f"Internal server error: {type(error).__name__}: {error}")


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
