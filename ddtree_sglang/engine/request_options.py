"""What a request asks of DDTREE itself: `"custom_params": {"ddtree": {"budget": 0}}` among its sampling parameters.

With `"adapt": false` beside it, policy "adaptive" leaves the request's budget as it is. With `"learn": false` nothing
is learned from what the target accepts of its trees, and nothing of it is counted: what a server asks itself.

SGLang carries `custom_params` to the scheduler unread, from `/generate` and from OpenAI's `extra_body`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

KEY = "ddtree"
_SWITCHES = ("adapt", "learn")
_NONE: Any = object()


def requested_budget(req: Req) -> int | None:
    """Nodes besides the root that the request allows itself, None for the server's; 0 is plain decoding.

    Raises:
        ValueError: what `custom_params["ddtree"]` holds is not an object of an integer, `budget`, at least 0, and
            perhaps booleans, `adapt` and `learn`.
    """
    options = _options(req)
    if options is _NONE:
        return None
    wrong = _what_is_wrong(options)
    if wrong is not None:
        raise ValueError(f"custom_params.ddtree {wrong}; leave it out for the server's own budget.")
    budget: int = options["budget"]
    return budget


def adapts(req: Req) -> bool:
    """Whether a policy may choose other nodes than the request's budget; true of options that are none."""
    return _is_on(req, "adapt")


def learns(req: Req) -> bool:
    """Whether what the request has accepted says anything of others; true of options that are none."""
    return _is_on(req, "learn")


def bad_options(req: Req) -> str | None:
    """What `requested_budget` would raise, None if nothing."""
    try:
        requested_budget(req)
    except ValueError as error:
        return str(error)
    return None


def _is_on(req: Req, switch: str) -> bool:
    options = _options(req)
    return options is _NONE or bad_options(req) is not None or options.get(switch) is not False


def _options(req: Req) -> Any:
    given = req.sampling_params.custom_params
    return given.get(KEY, _NONE) if isinstance(given, dict) else _NONE


def _what_is_wrong(options: Any) -> str | None:
    if not isinstance(options, dict):
        return f'must be an object such as {{"budget": 8}}, got {options!r}'
    unknown = [name for name in options if name not in ("budget", *_SWITCHES)]
    if unknown:
        return f"has no option but budget, {' and '.join(_SWITCHES)}, got {unknown[0]!r}"
    if "budget" not in options:
        return "must have an option budget, got none"
    budget = options["budget"]
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        return f"must have a whole number from 0 (plain decoding) as its budget, a tree's most nodes, got {budget!r}"
    wrong = [name for name in _SWITCHES if not isinstance(options.get(name, True), bool)]
    return f"must have true or false as its {wrong[0]}, got {options[wrong[0]]!r}" if wrong else None
