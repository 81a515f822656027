"""Which requests DDTREE answers, and what it tells the others.

What cannot be answered exactly as plain decoding answers it is refused with a 400: ignoring it silently would change
the distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ddtree_sglang.engine.request_options import bad_options

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class RequestRule(NamedTuple):
    """One thing that a request may ask for and DDTREE does not answer."""

    name: str
    refusal: Callable[[Req], str | None]  # what is wrong, what is allowed, what to do; None where nothing is wrong


def _is_deterministic() -> bool:
    from sglang.srt.runtime_context import get_exec

    return bool(get_exec().deterministic.enable_deterministic_inference)


def _seeded_min_p(req: Req) -> str | None:
    """SGLang's seeded sampler asserts that there is no min-p, and an assertion ends the server."""
    if req.sampling_params.min_p <= 0 or not _is_deterministic():
        return None
    return (
        f"min_p must be 0 under --enable-deterministic-inference, got {req.sampling_params.min_p}; leave it out, or "
        "use a server without the flag."
    )


REQUEST_RULES: tuple[RequestRule, ...] = (
    RequestRule("min_p under --enable-deterministic-inference", _seeded_min_p),
    RequestRule('custom_params.ddtree of another form than {"budget": 8}', bad_options),
)


def refusal(req: Req) -> str | None:
    """The message of the 400 that this request gets, or None when DDTREE can answer it exactly."""
    return next((message for rule in REQUEST_RULES if (message := rule.refusal(req)) is not None), None)
