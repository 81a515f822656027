"""What a request asks of DDTREE itself: `"custom_params": {"ddtree": {"budget": 0}}` among its sampling parameters.

SGLang carries `custom_params` to the scheduler unread, from `/generate` and from OpenAI's `extra_body`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

KEY = "ddtree"


def requested_budget(req: Req) -> int | None:
    """Nodes besides the root that the request allows itself, None for the server's; 0 is plain decoding.

    Raises:
        ValueError: what `custom_params["ddtree"]` holds is not an object of one integer, `budget`, at least 0.
    """
    given = req.sampling_params.custom_params
    if not isinstance(given, dict) or KEY not in given:
        return None
    options = given[KEY]
    unknown = sorted(set(options) - {"budget"}) if isinstance(options, dict) else [options]
    budget: Any = options.get("budget") if isinstance(options, dict) else None
    if unknown or isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise ValueError(f"custom_params['{KEY}'] must be {{'budget': an integer of 0 or more}}, got {options!r}")
    return budget


def has_bad_options(req: Req) -> bool:
    """Whether `requested_budget` would raise."""
    try:
        requested_budget(req)
    except ValueError:
        return True
    return False
