"""A table of costs as the server's files and its `/server_info` hold it, looked at and ready to be drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddtree_sglang.core.cost_model import COLUMNS, read_cells
from ddtree_sglang.exceptions import DDTreeError

CLIFF = 1.10
"""A width whose time is so many times the next narrower one's, and rises steeper than the whole curve, is a cliff."""
STEEPER = 2.0
"""Times the mean rise per node of the curve."""


class CostTableError(DDTreeError):
    """A file or an answer that holds no table of costs; the message says what to do."""


@dataclass(frozen=True)
class CostTable:
    """Seconds of a round by context class, requests and nodes of each request."""

    seconds: Mapping[tuple[int, int, int], float]
    """By context (0: up to 256 tokens, each further one twice as long), requests, nodes."""
    drafted: Mapping[int, float] = field(default_factory=dict)
    """By nodes: drafted tokens that a request is expected to have accepted; empty where it is not known."""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, held: Any, source: str) -> CostTable:
        """The table in a file's JSON or a server's answer.

        Raises:
            CostTableError: it is none, or an empty one.
        """
        parts = held if isinstance(held, dict) else {"cells": held}
        try:
            # The server's own check: requests, nodes, context, seconds.
            cells = read_cells(parts.get("cells"))
            nodes, drafted = parts.get("nodes") or [], parts.get("drafted") or []
            pairs = {int(width): float(tokens) for width, tokens in zip(nodes, drafted, strict=bool(drafted))}
        except (ValueError, TypeError, OverflowError) as error:
            raise CostTableError(f"{source} must hold a table of costs, got something else: {error}.") from error
        if not cells:
            raise CostTableError(f"{source} must hold costs of rounds, got none; serve some requests first.")
        facts = parts.get("facts")
        return cls(
            {(context, requests, width): spent for (requests, width, context), spent in cells.items()},
            pairs,
            facts if isinstance(facts, dict) else {},
        )

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """The table of a file: one that a server keeps (`DDTREE_COSTS`), or one that `ddtree calibrate` wrote.

        Raises:
            CostTableError: there is none, or it cannot be read.
        """
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CostTableError(f"a table of costs must be a readable file, got {path}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise CostTableError(f"{path} must hold a table of costs as JSON, got something else: {error}.") from error
        return cls.of(held, str(path))

    def to_json(self) -> dict[str, Any]:
        """As `of` takes it."""
        cells = [[size, width, context, spent] for (context, size, width), spent in sorted(self.seconds.items())]
        return {
            "facts": dict(self.facts),
            "columns": list(COLUMNS),
            "cells": cells,
            "nodes": list(self.drafted),
            "drafted": list(self.drafted.values()),
        }

    def contexts(self) -> list[int]:
        """Classes of contexts that were measured, short ones first."""
        return sorted({context for context, _, _ in self.seconds})

    def sizes(self, context: int) -> list[int]:
        """Numbers of requests that were measured there."""
        return sorted({size for held, size, _ in self.seconds if held == context})

    def curve(self, context: int, size: int) -> dict[int, float]:
        """Seconds by nodes, narrow ones first."""
        found = {width: spent for (held, of, width), spent in self.seconds.items() if (held, of) == (context, size)}
        return dict(sorted(found.items()))

    def break_even(self, context: int, size: int) -> dict[int, float]:
        """Time by nodes in rounds of one node: as many tokens must a round bring to draw with plain decoding."""
        curve = self.curve(context, size)
        return {width: spent / curve[1] for width, spent in curve.items()} if 1 in curve else {}

    def rates(self, context: int, size: int) -> dict[int, float]:
        """Tokens per second of all requests together by nodes, of widths whose acceptance is known."""
        return {
            width: size * (1.0 + (0.0 if width == 1 else self.drafted[width])) / spent
            for width, spent in self.curve(context, size).items()
            if width == 1 or width in self.drafted
        }


def cliffs(curve: Mapping[int, float]) -> set[int]:
    """Widths at which the time jumps: by more than CLIFF, and STEEPER than the curve does on the whole."""
    widths = sorted(curve)
    if len(widths) < 3:
        return set()
    whole = (curve[widths[-1]] - curve[widths[0]]) / (widths[-1] - widths[0])
    found = set()
    # The step from 1 has the drafter's forward in it, and is no cliff of the target.
    for before, width in pairwise(widths[1:]):
        rise = (curve[width] - curve[before]) / (width - before)
        if curve[width] > CLIFF * curve[before] and rise > STEEPER * max(whole, 0.0):
            found.add(width)
    return found


def outdone(curve: Mapping[int, float]) -> set[int]:
    """Drafting widths that no round should have: a wider one takes no longer."""
    widths = sorted(width for width in curve if width > 1)
    return {width for width in widths if any(curve[wider] <= curve[width] for wider in widths if wider > width)}


def context_name(context: int) -> str:
    """In words."""
    return "contexts up to 256 tokens or so" if context == 0 else f"contexts of {256 * 2**context:,} tokens or so"
