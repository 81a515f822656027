"""Errors as a client sees them: an HTTP status before the first token, an error event after it.

SGLang's OpenAI classes turn an exception of `generate_request` into a response without headers, and a finish reason
"abort" with an HTTPStatus into an event whose type is that status's name. `with_typed_errors` adds to such a class what
is missing: Retry-After, and the error types `worker_lost` and `deadline_exceeded`. This module imports FastAPI; of
SGLang's classes it knows the method names alone.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException

from workers.answers.protocol import Busy, DeadlineExceeded, GaveUp, NotResumable, Refused

WORKER_LOST = "worker_lost"
# The engine itself aborts with 400, 500 and 503, so within a stream this status marks a lost replica.
WORKER_LOST_STATUS = HTTPStatus.BAD_GATEWAY
LATE = "deadline_exceeded"
LATE_STATUS = HTTPStatus.GATEWAY_TIMEOUT
# The type of an error event by its status; SGLang would use the status's name.
EVENT_TYPES = {WORKER_LOST_STATUS: WORKER_LOST, LATE_STATUS: LATE}

Failure = Busy | Refused | NotResumable | GaveUp
FAILURES = (Busy, Refused, NotResumable, GaveUp)


class ServiceError(HTTPException):
    """An HTTP error with a `type` for OpenAI's error object."""

    def __init__(self, status: int, message: str, error_type: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.error_type = error_type


def error_before_first_token(failure: Failure) -> Exception:
    """The exception to raise for a failure while the response can still have a status."""
    if isinstance(failure, Busy):
        retry_after = {"Retry-After": str(max(1, math.ceil(failure.retry_after_s)))}
        return ServiceError(HTTPStatus.TOO_MANY_REQUESTS, str(failure), "overloaded", retry_after)
    if isinstance(failure, Refused):
        if failure.status == HTTPStatus.BAD_REQUEST:
            return ValueError(str(failure))  # SGLang's own way to say 400
        return ServiceError(status_of(failure.status), str(failure), "refused")
    if isinstance(failure, DeadlineExceeded):
        return ServiceError(LATE_STATUS, f"{LATE}: {failure}", LATE)
    message = f"{WORKER_LOST}: {failure}"
    return ServiceError(HTTPStatus.SERVICE_UNAVAILABLE, message, WORKER_LOST, {"Retry-After": "1"})


def abort_reason(failure: Failure) -> dict[str, Any]:
    """The finish reason for a failure that makes a running stream end with an error event."""
    if isinstance(failure, Busy):
        status, kind = HTTPStatus.TOO_MANY_REQUESTS, "overloaded"
    elif isinstance(failure, Refused):
        status, kind = status_of(failure.status), "refused"
    elif isinstance(failure, DeadlineExceeded):
        status, kind = LATE_STATUS, LATE
    else:
        status, kind = WORKER_LOST_STATUS, WORKER_LOST
    return {"type": "abort", "message": f"{kind}: {failure}", "status_code": status, "err_type": kind}


def unexpected_reason(error: Exception) -> dict[str, Any]:
    """The finish reason for an unexpected exception: a generic message for the client, details in the log."""
    message = f"internal_error: {type(error).__name__}; the server's log has more."
    return {
        "type": "abort",
        "message": message,
        "status_code": HTTPStatus.INTERNAL_SERVER_ERROR,
        "err_type": "internal_error",
    }


def status_of(code: int) -> HTTPStatus:
    """The HTTPStatus of a number, which the OpenAI classes need to show an error; 500 for an unknown number."""
    try:
        return HTTPStatus(code)
    except ValueError:
        return HTTPStatus.INTERNAL_SERVER_ERROR


class TypedErrors:
    """A mixin for classes derived from SGLang's OpenAIServingBase."""

    async def _handle_streaming_request(self, *args: Any) -> Any:
        try:
            return await super()._handle_streaming_request(*args)  # type: ignore[misc]
        except ServiceError as error:
            return self._error_with_headers(error)

    async def _handle_non_streaming_request(self, *args: Any) -> Any:
        try:
            return await super()._handle_non_streaming_request(*args)  # type: ignore[misc]
        except ServiceError as error:
            return self._error_with_headers(error)

    def create_streaming_error_response(
        self, message: str, err_type: str = "BadRequestError", status_code: int = 400
    ) -> str:
        kind = next((kind for status, kind in EVENT_TYPES.items() if status == status_code), err_type)
        event: str = super().create_streaming_error_response(message, kind, status_code)  # type: ignore[misc]
        return event

    def _error_with_headers(self, error: ServiceError) -> Any:
        response = self.create_error_response(  # type: ignore[attr-defined]
            message=error.detail, err_type=error.error_type, status_code=error.status_code
        )
        response.headers.update(error.headers or {})
        return response


def with_typed_errors(serving_class: type) -> type:
    """A subclass of a serving class with `TypedErrors` mixed in; its constructor is the given class's."""
    return type(f"Resilient{serving_class.__name__}", (TypedErrors, serving_class), {})
