"""Which requests DDTREE answers, and what it tells the others.

What cannot be answered exactly as plain decoding answers it is refused with a 400: ignoring it silently would change
the distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ddtree_sglang.engine.request_options import has_bad_options

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class RequestRule(NamedTuple):
    """One thing that a request may ask for and DDTREE does not offer yet."""

    name: str
    asked_for: Callable[[Req], bool]
    instead: str


def _is_deterministic() -> bool:
    from sglang.srt.runtime_context import get_exec

    return bool(get_exec().deterministic.enable_deterministic_inference)


REQUEST_RULES: tuple[RequestRule, ...] = (
    # SGLang's seeded sampler asserts that there is no min-p, and an assertion ends the server.
    RequestRule(
        "min_p under --enable-deterministic-inference",
        lambda req: req.sampling_params.min_p > 0 and _is_deterministic(),
        "leave it out, or use a server without --enable-deterministic-inference",
    ),
    RequestRule(
        'custom_params.ddtree of another form than {"budget": 8}',
        has_bad_options,
        "give a budget of 0 or more, or leave it out",
    ),
)


def refusal(req: Req) -> str | None:
    """The message of the 400 that this request gets, or None when DDTREE can answer it exactly."""
    for rule in REQUEST_RULES:
        if rule.asked_for(req):
            return f"DDTREE speculative decoding does not support {rule.name} yet; {rule.instead}."
    return None
