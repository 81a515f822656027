"""A trace that was damaged anywhere is shown as far as it is whole, or refused in one sentence; nothing breaks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ddtree_sglang.viewer.page import page
from ddtree_sglang.viewer.page_data import page_data
from ddtree_sglang.viewer.terminal import Ink, listing, overview, picture
from ddtree_sglang.viewer.trace_file import Trace, TraceError
from ddtree_sglang.viewer.vocabulary import Vocabulary
from tests.viewer.cases import SAMPLE, write

CASES = 600
ODD = (
    *(None, True, -1, 0, 1, 40, 40, -5.5, 2**70, 1e308, float("nan"), "x", "", "\x1b[2J"),
    *([], [[]], {}, {"a": 1}, [None], [1, 2, 3], [[-1]], [[0, 0, 0]], [["a"]], [{}]),
)
OPTIONAL = ("decision", "expected_tokens", "expected_ms", "measured", "server")


def damaged(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """The value with something odd in it, in its place, one less or one more."""
    if draw.random() < 0.25 or depth > 3 or not isinstance(value, (list, dict)) or not value:
        return draw.choice(ODD)
    if isinstance(value, dict):
        key = draw.choice(sorted(value))
        return {**value, key: damaged(value[key], draw, depth + 1)}
    place, kind = draw.randrange(len(value)), draw.random()
    odd = draw.choice(ODD)
    middle = [] if kind < 0.2 else [odd, value[place]] if kind < 0.4 else [damaged(value[place], draw, depth + 1)]
    return [*value[:place], *middle, *value[place + 1 :]]


def show(path: Path) -> int:
    """Everything that is made of a trace; the rounds that it has."""
    trace, vocabulary = Trace(path), Vocabulary(lambda ids: "a" * len(ids))
    run = trace.runs[-1]
    assert overview(trace, run, run.rounds, Ink(True))
    assert listing(run.rounds)
    assert all(picture(one.number, trace.load(one), vocabulary, Ink(False)) for one in run.rounds)
    assert page(page_data(trace, run, run.rounds, vocabulary), "title").encode()
    return sum(len(one.rounds) for one in trace.runs)


def test_damaged_traces_are_shown_or_refused(tmp_path: Path) -> None:
    draw, shown, refused = random.Random(5), 0, 0
    lines = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    for _ in range(CASES):
        line = dict(draw.choice(lines))
        for _ in range(draw.randrange(1, 3)):
            key = draw.choice([*line, *OPTIONAL])
            line[key] = damaged(line.get(key), draw)
        text = json.dumps(line)
        cut = draw.randrange(len(text)) if draw.random() < 0.1 else len(text)
        try:
            shown += show(write(tmp_path / "t.jsonl", [text[:cut]]))
        except TraceError:
            refused += 1
    assert min(shown, refused) > CASES / 10, "both ends are reached"
