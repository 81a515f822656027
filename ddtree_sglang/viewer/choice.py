"""Which runs and rounds of a trace are shown."""

from __future__ import annotations

from collections.abc import Sequence

from ddtree_sglang.viewer.trace_file import Run, Summary, Trace, TraceError


def choose_run(trace: Trace, number: int | None) -> Run:
    """The last start of a server, or the one of that number, from 1.

    Raises:
        TraceError: the file has no such run.
    """
    if number is None:
        return trace.runs[-1]
    if not 1 <= number <= len(trace.runs):
        raise TraceError(f"--run must be a number from 1 to {len(trace.runs)}, got {number}; {trace.path} has no more.")
    return trace.runs[number - 1]


def parse_span(text: str) -> tuple[int, int]:
    """FIRST:LAST, both included; either may be left out; a single number is that round.

    Raises:
        TraceError: another form, or the first behind the last.
    """
    first, colon, last = text.partition(":")
    try:
        low = int(first) if first else 0
        high = low if not colon else int(last) if last else 2**63
    except ValueError:
        low, high = 1, 0
    if not text or low > high or low < 0:
        raise TraceError(f"--rounds must be FIRST:LAST in ascending order, got {text!r}; give round numbers.")
    return low, high


def choose_rounds(run: Run, span: str | None, request: str | None) -> list[Summary]:
    """Rounds of the run within the span that the request took part in; a request is named by how its id begins.

    Raises:
        TraceError: there is none.
    """
    low, high = (0, 2**63) if span is None else parse_span(span)
    chosen = [
        one for one in run.rounds if low <= one.number <= high and (request is None or _has_request(one, request))
    ]
    if not chosen:
        asked = f"--rounds {span}" if span is not None else ""
        asked += f" --request {request}" if request is not None else ""
        known = f"rounds {run.rounds[0].number} to {run.rounds[-1].number}"
        raise TraceError(f"{asked.strip()} must name rounds of the trace, which has {known}; none fits.")
    return chosen


def newest(rounds: Sequence[Summary], most: int) -> list[Summary]:
    """The last of them."""
    return list(rounds[-most:])


def _has_request(one: Summary, request: str) -> bool:
    return any(name.startswith(request) for name, _ in one.requests)
