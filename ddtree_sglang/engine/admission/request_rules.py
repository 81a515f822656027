"""Which requests DDTREE answers, and what it tells the others.

A verify forward scores every node of a tree at once, so anything that changes the target's distribution depending
on the tokens before it (penalties, custom processors) needs a state per node. Until that is built and
proven the request is refused with a 400: silently ignoring it would change the distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


PENALTIES = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
"""Sampling parameters that change the target's distribution by the tokens before, with the values that are off."""


def _is_on(name: str, off: float, req: Req) -> bool:
    return bool(getattr(req.sampling_params, name) != off)


_WITHOUT = "leave it out, or use a server without --speculative-algorithm DDTREE"

REQUEST_RULES: tuple[RequestRule, ...] = (
    *(RequestRule(name, partial(_is_on, name, off), _WITHOUT) for name, off in PENALTIES.items()),
    RequestRule("min_new_tokens", lambda req: req.sampling_params.min_new_tokens > 0, _WITHOUT),
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
    RequestRule("return_sampling_mask", lambda req: bool(req.return_sampling_mask), _WITHOUT),
)


def refusal(req: Req) -> str | None:
    """The message of the 400 that this request gets, or None when DDTREE can answer it exactly."""
    for rule in REQUEST_RULES:
        if rule.asked_for(req):
            return f"DDTREE speculative decoding does not support {rule.name} yet; {rule.instead}."
    return None
